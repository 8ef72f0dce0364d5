"""A process tree stopped and continued by signals: what is left where there is no cgroup to freeze.

The root has to be a pid 1: nothing inside its namespace can stop or continue that one, so its being stopped says
that we did it, and everything else of the namespace descends from it. Parents are stopped before their children and
continued after them, so that no shell sees a child of its stopped and takes it for a job.
"""

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

# States of proc_pid_stat(5): stopped by a signal, stopped by a debugger, dead in two ways.
_STOPPED = frozenset((b"T", b"t", b"Z", b"X"))


def halted(pid: int) -> bool:
    """Whether the process is stopped (or dead)."""
    return _state(pid) in _STOPPED


def stopped_jobs(root: int) -> frozenset[int]:
    """Processes of the tree that are stopped already: jobs of its shells, which are to stay so."""
    return frozenset(pid for pid in _tree(root) if _state(pid) == b"T")


def halt_tree(root: int) -> bool:
    """Stop what runs. False while something still does: a process that was forked meanwhile, or is on its way.

    One in an uninterruptible sleep stops when it comes out of the kernel, and counts as stopped: with vfork(2) that
    may be when its child goes on, which is stopped.
    """
    running = [pid for pid in _tree(root) if not halted(pid)]
    _signal(running, signal.SIGSTOP, root)
    return all(_state(pid) == b"D" for pid in running)


def continue_tree(root: int, *, but: AbstractSet[int] = frozenset()) -> None:
    """Let everything go on except `but`."""
    _signal([pid for pid in reversed(list(_tree(root))) if pid not in but], signal.SIGCONT, root)


def _tree(root: int) -> Iterator[int]:
    """The root and its descendants, parents first."""
    level = [root]
    while level:
        yield from level
        level = [child for pid in level for child in _children(pid)]


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def _state(pid: int) -> bytes:
    """Its letter. The process's name before it is any bytes that the process likes."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return b"X"


def _signal(pids: Iterable[int], number: int, root: int) -> None:
    namespace = _namespace(root)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                # The pid may be another process's by now; behind the descriptor it cannot become one.
                if pid == root or _namespace(pid) == namespace:
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid_for_children")
    except OSError:
        return ""
