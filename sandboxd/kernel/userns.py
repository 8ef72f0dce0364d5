"""User namespaces: one per id range, held open as a descriptor.

A sandbox sees ids 0..65535; on the host they are `start`..`start`+65535. The namespace is made by a short-lived
child whose maps its parent writes, because a process may not map ids that it does not own (user_namespaces(7)).
"""

import fcntl
import os
import resource
import signal

from sandboxd.kernel import syscalls

IDS_PER_RANGE = 65536

# <linux/nsfs.h>
_NS_GET_PARENT = 0xB702


def make_userns(start: int, *, max_processes: int) -> int:
    """A descriptor of a new user namespace that maps 0..65535 to `start`...

    max_processes bounds all processes in the namespace together: the kernel charges them to the namespace's
    creator against the creator's RLIMIT_NPROC at creation (since Linux 5.14, ucounts), which is why the child first
    becomes the range's own first id. A fork bomb is then harmless even where no pids controller exists.
    """
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        _become_and_wait(start, max_processes, ready[1], done)
    try:
        os.close(ready[1])
        os.close(done[0])
        failure = os.read(ready[0], 200)
        if failure != b"ok":
            raise OSError(f"cannot make a user namespace for ids from {start}: {failure.decode()}")
        _write_maps(child, start)
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready[0])
        os.close(done[1])
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _become_and_wait(start: int, max_processes: int, ready: int, done: tuple[int, int]) -> None:
    """The child: never returns. Closing `done` in the parent (or its death) ends it."""
    message = b"ok"
    try:
        os.close(done[1])
        _limit_processes(max_processes)
        os.setgroups([])
        os.setresgid(start, start, start)
        os.setresuid(start, start, start)
        # Changing ids made /proc/PID the host root's; a parent that is root of a namespace only could not write it.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
        syscalls.unshare(syscalls.CLONE_NEWUSER)
    except BaseException as error:  # whatever it is: this process must not go on as a second copy of its parent
        message = str(error).encode()[:200]
    try:
        os.write(ready, message)
        os.close(ready)
        os.read(done[0], 1)
    finally:
        os._exit(0)


def _limit_processes(wanted: int) -> None:
    """As many as wanted, or as our own hard limit lets us: an ordinary user's may be lower."""
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))


def _write_maps(pid: int, start: int) -> None:
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(f"0 {start} {IDS_PER_RANGE}\n")


def enter_userns(descriptor: int) -> None:
    """Join the namespace as its root. Capabilities are then the namespace's own: none over the host are left."""
    syscalls.setns(descriptor, syscalls.CLONE_NEWUSER)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def parent_userns(pid: int) -> int:
    """A descriptor of the user namespace in which a process's own was made. Raises: OSError."""
    namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(namespace, _NS_GET_PARENT)
    finally:
        os.close(namespace)
