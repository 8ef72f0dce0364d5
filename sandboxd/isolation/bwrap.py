"""bubblewrap as a backend: a plan becomes a fork request, the fork server runs it, sandbox-init answers.

bwrap runs inside the sandbox's own user namespace and so has no privileges over the host; what it may do is made
ready before (kernel/overlay.py). It stays as the monitor, the parent of sandbox-init, which is pid 1 inside.
"""

import contextlib
import json
import os
import shlex
import signal
import socket
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Self

import trio

from sandboxd.crashpoints import crash_point
from sandboxd.errors import LaunchFailed
from sandboxd.isolation import seccomp
from sandboxd.isolation.backend import KILL_LIMIT, RunningMachine, attach_by_pid, remove_cgroup
from sandboxd.isolation.init_client import InitGone
from sandboxd.isolation.launcher import Launcher
from sandboxd.isolation.marks import MARK, marked_processes
from sandboxd.isolation.plan import ForkRequest, LaunchPlan, StageMount
from sandboxd.kernel import procstat
from sandboxd.kernel.cgroups import Cgroup
from sandboxd.model import Machine

# /tmp exists everywhere, and covered by the stage it is one world-writable directory less that bwrap could reach.
STAGE = "/tmp"
INIT_INSIDE = "/dev/sandbox-init"
READY_LIMIT = 20.0
LISTEN_BACKLOG = 128
SAID_LIMIT = 2000

HOSTS = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n"

# Docker's default set less MKNOD, NET_RAW and AUDIT_WRITE, which nothing here needs.
CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)

# Where bwrap mounts something in the sandbox's own tree. Checked for symbolic links before bwrap runs.
MOUNT_POINTS = ("/dev", "/proc")

# What Docker masks, and the host's pressure, as far as this kernel has them: they tell of, or act on, the whole host.
MASKED_FILES = (
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/proc/timer_stats",
)
MASKED_DIRECTORIES = ("/proc/acpi", "/proc/asound", "/proc/pressure", "/proc/scsi")
# /proc/sys, sysrq-trigger, irq and bus are made read-only by bwrap itself.

DESCRIPTORS = ("error", "listener", "info", "seccomp", "boot_id")


class BwrapBackend:
    """Owns: the fork server. See Backend for the contract."""

    name = "bwrap"

    def __init__(self, *, bwrap: Path, profile: bytes, max_processes: int) -> None:
        self._bwrap = bwrap
        self._profile = profile
        self._max_processes = max_processes
        self._launcher = Launcher()
        self._masked = _existing(MASKED_FILES), _existing(MASKED_DIRECTORIES)

    async def prepare(self, range_start: int) -> None:
        await self._launcher.prepare(range_start, max_processes=self._max_processes)

    def attach(self, machine: Machine, runtime: Path, *, cgroup: Cgroup | None) -> RunningMachine | None:
        return attach_by_pid(machine, runtime, cgroup=cgroup)

    async def sweep(self, sandboxes: AbstractSet[str]) -> None:
        if sandboxes:
            await trio.to_thread.run_sync(_kill_marked, frozenset(sandboxes))

    def close(self) -> None:
        self._launcher.close()

    async def launch(self, plan: LaunchPlan, *, cgroup: Cgroup | None) -> RunningMachine:
        request = self.render(plan, in_cgroup=cgroup is not None)
        with _Pipe() as error, _Pipe() as info:
            monitor = await self._start(plan, request, cgroup, error, info)
            crash_point("create:forked")
            try:
                with trio.fail_after(READY_LIMIT):
                    pid = await _init_pid(info)
                    return await _take_over(plan, pid, monitor, cgroup)
            except BaseException as failure:
                with trio.CancelScope(shield=True):
                    await _undo(monitor, cgroup)
                if isinstance(failure, OSError | ValueError | trio.TooSlowError | InitGone):
                    error.close_write_end()
                    raise _explained(plan, request, await _said(error), failure) from failure
                raise

    async def _start(
        self, plan: LaunchPlan, request: ForkRequest, cgroup: Cgroup | None, error: "_Pipe", info: "_Pipe"
    ) -> int:
        """Have the fork server run the request; the monitor's pid."""
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(_listening_socket(plan.socket))
            descriptors = {
                "error": error.write_end,
                "listener": listener.fileno(),
                "info": info.write_end,
                "seccomp": stack.enter_context(_closing(seccomp.profile_descriptor(self._profile))),
                "boot_id": stack.enter_context(_closing(_memory_file(plan.boot_id + "\n"))),
            }
            if cgroup is not None:
                descriptors["cgroup"] = stack.enter_context(_closing(cgroup.open_fd()))
            pid = await self._launcher.launch(request, descriptors)
        error.close_write_end()
        info.close_write_end()
        return pid

    def render(self, plan: LaunchPlan, *, in_cgroup: bool) -> ForkRequest:
        """The plan as a fork request; pure, so that a test can compare it and a log can print it."""
        idmapped = plan.ids.idmapped
        layers = [StageMount(source=str(path), name=f"l{n}", idmapped=idmapped) for n, path in enumerate(plan.layers)]
        binds = [StageMount(source=str(bind.source), name=f"b{n}") for n, bind in enumerate(plan.binds)]
        writable = StageMount(source=str(plan.writable), name="w", idmapped=idmapped)
        targets = tuple(bind.target for bind in plan.binds) + plan.hidden
        return ForkRequest(
            range_start=plan.ids.start,
            max_processes=self._max_processes,
            idmapped=idmapped,
            stage=STAGE,
            mounts=(*layers, writable, *binds),
            lowers=tuple(layer.name for layer in layers),
            writable=writable.name,
            root="r",
            init=str(plan.init),
            init_inside=INIT_INSIDE,
            mount_points=MOUNT_POINTS + targets,
            argv=self._argv(plan),
            descriptors=DESCRIPTORS + (("cgroup",) if in_cgroup else ()),
            identity=(
                ("etc/hostname", f"{plan.hostname}\n"),
                ("etc/hosts", HOSTS.format(hostname=plan.hostname)),
                ("etc/machine-id", f"{plan.machine_id}\n"),
            ),
        )

    def _argv(self, plan: LaunchPlan) -> tuple[str, ...]:
        masked_files, masked_directories = self._masked
        # fmt: off
        argv = [
            str(self._bwrap),
            "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup",
            "--hostname", plan.hostname, "--as-pid-1", "--clearenv",
            "--dev-bind", f"{STAGE}/r", "/",
        ]
        # fmt: on
        for number, bind in enumerate(plan.binds):
            argv += ["--ro-bind", f"{STAGE}/b{number}", bind.target]
        for path in plan.hidden:
            argv += ["--tmpfs", path, "--remount-ro", path]
        argv += ["--proc", "/proc"]
        argv += ["--perms", "0444", "--ro-bind-data", "{boot_id}", "/proc/sys/kernel/random/boot_id"]
        for path in masked_files:
            argv += ["--ro-bind", "/dev/null", path]
        for path in masked_directories:
            argv += ["--tmpfs", path, "--remount-ro", path]
        argv += ["--cap-drop", "ALL"]
        for capability in CAPABILITIES:
            argv += ["--cap-add", capability]
        argv += ["--chdir", "/", "--info-fd", "{info}", "--seccomp", "{seccomp}"]
        return (*argv, "--", INIT_INSIDE, "--listen-fd", "{listener}", MARK, plan.sandbox)


class _Pipe:
    """A pipe whose write end goes to the child; both ends are closed with the block."""

    def __init__(self) -> None:
        read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        self._stream = trio.lowlevel.FdStream(read_end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close_write_end()
        self._stream.close()

    def close_write_end(self) -> None:
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    async def read_all(self) -> bytes:
        """Everything until the last writer closed its end."""
        chunks = []
        while chunk := await self._stream.receive_some(4096):
            chunks.append(chunk)
        return b"".join(chunks)


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _memory_file(text: str) -> int:
    descriptor = os.memfd_create("sandboxd", os.MFD_CLOEXEC)
    os.write(descriptor, text.encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _listening_socket(path: Path) -> socket.socket:
    """sandbox-init's socket. Bound by its short name, since an address may have 107 bytes only."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        listener.listen(LISTEN_BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(directory)
    return listener


async def _init_pid(info: _Pipe) -> int:
    """The host pid of sandbox-init, from what bwrap writes (`--info-fd`) the moment it has forked."""
    told = await info.read_all()
    if not told:
        raise OSError("bwrap ended before it started the sandbox")
    return int(json.loads(told)["child-pid"])


async def _said(error: _Pipe) -> str:
    """What the fork server's child, bwrap or sandbox-init said, once all of them are dead."""
    with trio.move_on_after(1, shield=True):
        return (await error.read_all())[-SAID_LIMIT:].decode(errors="replace").strip()
    return ""


async def _take_over(plan: LaunchPlan, pid: int, monitor: int, cgroup: Cgroup | None) -> RunningMachine:
    machine = Machine(
        pid=pid,
        pid_started=procstat.start_time(pid),
        monitor=monitor,
        monitor_started=procstat.start_time(monitor),
        host_boot_id=procstat.boot_id(),
    )
    running = attach_by_pid(machine, plan.runtime, cgroup=cgroup)
    if running is None:
        raise OSError("the sandbox ended while it started")
    try:
        await running.init.hello()
    except BaseException:
        running.close()
        raise
    return running


async def _undo(monitor: int, cgroup: Cgroup | None) -> None:
    """Leave nothing of a launch that failed half way; the fork server reaps the monitor."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(monitor, signal.SIGKILL)
    if cgroup is not None:
        cgroup.kill()
        with trio.move_on_after(KILL_LIMIT):
            await remove_cgroup(cgroup)


def _explained(plan: LaunchPlan, request: ForkRequest, said: str, failure: BaseException) -> LaunchFailed:
    """The failure with what was said and the complete command, so that a person can run it by hand."""
    reason = said or str(failure) or type(failure).__name__
    return LaunchFailed(f"cannot start sandbox {plan.sandbox}: {reason}", command=shlex.join(request.argv))


def _existing(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(path for path in paths if os.path.lexists(path))


def _kill_marked(sandboxes: frozenset[str]) -> None:
    for pid in marked_processes(sandboxes):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
