"""The fork server: a small single-threaded process that makes sandboxes for the daemon.

Why not the daemon itself: it has threads, so nothing but exec may follow a fork there, no thread of it can change its
mount namespace, and forking its memory costs more than all the mounts. This process imports the standard library,
sandboxd.kernel and assembly.py only. It does three things:

    start         a child in a mount namespace of its own makes a stage and a /dev, enters the sandbox's user
                  namespace, and execs bwrap, which does all that does not depend on the image and then waits
    make_network  this process itself enters the waiting bwrap's network namespace and makes a network there, whose
                  sockets go with the reply (find_network tries the same in a namespace that is gone after)
    assemble      it enters the waiting bwrap's other namespaces and puts the root there, without a fork or exec;
                  that the descriptor of the bwrap's gate is closed with the request lets the bwrap go on

It talks over one SOCK_SEQPACKET socket: a JSON request and a JSON reply, either with descriptors (SCM_RIGHTS). It
ends when the daemon closes the socket. The sandboxes do not end with it: they are reparented, and found again by pid.

Run as: python -I -S forkserver.py SOCKET_FD   (with sandboxd's parent directory as the second argument)
"""

import array
import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys
from typing import Any

MAX_REQUEST = 128 * 1024
MAX_DESCRIPTORS = 16
# The soft limit that the kernel gives pid 1, and with it a login.
USUAL_DESCRIPTORS = 1024


def main(control: socket.socket) -> None:
    # A bwrap that waits with it open would keep the daemon from noticing our death.
    control.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    wakeup_read, wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    server = ForkServer()
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wakeup_read, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if wakeup_read in ready:
            os.read(wakeup_read, 4096)
            _reap()
        if control.fileno() in ready and not _serve_one(control, server):
            return


def _reap() -> None:
    """waitpid(-1) is right here and only here: every child of this process is a bwrap that nobody else waits for."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _serve_one(control: socket.socket, server: "ForkServer") -> bool:
    request, descriptors = _receive(control)
    if request is None:
        return False
    made: tuple[socket.socket, ...] = ()
    try:
        reply, made = server.serve(request, dict(zip(request["descriptors"], descriptors, strict=True)))
    except overlay.NotAMountPoint as error:
        reply = {"error": error.strerror, "errno": error.errno, "kind": "bad_mount_point"}
    except OSError as error:
        reply = {"error": str(error), "errno": error.errno}
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    _send(control, reply, made)
    return True


def _send(control: socket.socket, reply: dict[str, Any], made: tuple[socket.socket, ...]) -> None:
    """Sockets that were made travel beside the reply, and are the daemon's then."""
    rights = array.array("i", [each.fileno() for each in made])
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if made else []
    try:
        control.sendmsg([json.dumps(reply).encode()], ancillary)
    finally:
        for each in made:
            each.close()


def _receive(control: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    data, ancillary, _, _ = control.recvmsg(
        MAX_REQUEST, socket.CMSG_SPACE(MAX_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC
    )
    received = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
    return (json.loads(data) if data else None), list(received)


class ForkServer:
    """Owns: one user namespace for each id range it was ever asked to use."""

    def __init__(self) -> None:
        own_namespaces()
        self._namespaces: dict[int, int] = {}
        self._home = Home()

    def serve(
        self, request: dict[str, Any], named: dict[str, int]
    ) -> tuple[dict[str, Any], tuple[socket.socket, ...]]:
        """The reply, and the sockets beside it."""
        plan = request["plan"]
        if request["op"] == "find_network":
            return {"kind": sandbox_network.find_kind()}, ()
        if request["op"] == "make_network":
            with self._home.visit_network(named["machine"]):
                return {}, sandbox_network.make_network(kind=plan["kind"], ipv6=plan["ipv6"])
        userns = self._namespace(plan["range_start"], plan["max_processes"])
        if request["op"] == "start":
            return {"pid": _start(plan, named, userns)}, ()
        assemble(plan, machine=named["machine"], userns=userns, home=self._home)
        return {}, ()

    def _namespace(self, start: int, max_processes: int) -> int:
        """The range's user namespace. One is made per range and kept: making it costs milliseconds."""
        if start not in self._namespaces:
            self._namespaces[start] = make_userns(start, max_processes=max_processes)
        return self._namespaces[start]


def _start(plan: dict[str, Any], named: dict[str, int], userns: int) -> int:
    """Start one bwrap; the pid of the child. What goes wrong in the child is told through its `error` pipe."""
    child = syscalls.clone3(flags=syscalls.CLONE_NEWNS, cgroup=named.get("cgroup", -1))
    if child:
        return child
    try:
        _become_bwrap(plan, named, userns)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(named["error"], str(error).encode()[:4000] or b"unknown failure")
    finally:
        os._exit(127)


def _become_bwrap(plan: dict[str, Any], named: dict[str, int], userns: int) -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    overlay.make_private()
    init = os.open(plan["init"], os.O_RDONLY | os.O_CLOEXEC)  # now: the stage may hide it
    overlay.make_stage(plan["stage"])
    with overlay.acting_as(plan["range_start"]):
        devices.make_dev(DEV, root_id=plan["range_start"])
        devices.add_program(f"{DEV}/{plan['init_name']}", init)
    with contextlib.suppress(OSError):
        _write("/proc/self/oom_score_adj", str(_oom_score(int(_read("/proc/self/oom_score_adj")))))
    enter_userns(userns)
    os.umask(0o022)
    _place_standard_streams(named["error"])
    placed = _pass_descriptors(named)
    _lower_descriptor_limit()
    argv = [placed.get(part, part) for part in plan["argv"]]
    os.execv(argv[0], argv)


def _oom_score(ours: int) -> int:
    """What the kernel's OOM killer is told of a sandbox: to take it before the daemon and this process, who may be
    told to be taken early themselves. sandbox-init makes it a little more for each command.
    """
    return min(1000, max(400, ours + 100))


def _lower_descriptor_limit() -> None:
    """What the daemon raised for itself is not for the sandbox, whose programs expect what a login gives them."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(USUAL_DESCRIPTORS, most), most))


def _place_standard_streams(error: int) -> None:
    """What bwrap and sandbox-init have to say goes where our own failure would; init lets go of it when it is up."""
    null = os.open("/dev/null", os.O_RDWR)
    for target, source in ((0, null), (1, null), (2, error)):
        os.dup2(source, target)


def _pass_descriptors(named: dict[str, int]) -> dict[str, str]:
    """Copies for the program, by placeholder; everything else closes on exec.

    Under whatever numbers are free: fixed ones would be taken once the fork server holds many namespaces.
    """
    passed = {name: descriptor for name, descriptor in named.items() if name not in ("error", "cgroup")}
    return {f"{{{name}}}": str(fcntl.fcntl(descriptor, fcntl.F_DUPFD, 3)) for name, descriptor in passed.items()}


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[2])

from sandboxd.isolation.bwrap.assembly import DEV, assemble
from sandboxd.kernel import devices, overlay, sandbox_network, syscalls
from sandboxd.kernel.namespaces import Home, own_namespaces
from sandboxd.kernel.userns import enter_userns, make_userns

if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
