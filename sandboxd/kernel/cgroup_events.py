"""Waiting for what happens to cgroups: frozen, emptied, a limit met, a process killed for memory.

One inotify descriptor serves any number of cgroups. The alternative, POLLPRI on every cgroup.events and
memory.events, costs two descriptors for each sandbox, and an event loop that waits for readability (trio)
cannot use them: kernfs reports such files as readable all the time.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from sandboxd.kernel.cgroups import Cgroup

IN_CLOEXEC = os.O_CLOEXEC
IN_MODIFY = 0x2
IN_NONBLOCK = os.O_NONBLOCK
IN_Q_OVERFLOW = 0x4000

_EVENT = struct.Struct("iIII")
# Events for watched files carry no name, so this takes some 4000 of them in one read.
_READ_SIZE = 65536

# memory.events.local is left out: an OOM kill in a nested cgroup is the sandbox's OOM kill too.
_FILES = ("cgroup.events", "memory.events", "pids.events")

_libc = ctypes.CDLL(None, use_errno=True)


class CgroupWatcher:
    """Says which cgroups have news. `fileno()` polls readable when `read()` has something to return.

    News means: read `frozen`, `populated`, memory_events() again. Several changes may come as one, so
    counters are to be compared, not events counted; and there may be none after all.

    The kernel holds back a file's second notice within 10 ms (CGROUP_FILE_NOTIFY_MIN_INTV). Where that
    matters, look first and wait then: a freeze is mostly over at once, and the end of a sandbox that lived
    for 5 ms is told sooner by a pidfd.

    Owns: one inotify descriptor, closed by close() or on leaving `with`.
    Raises: OSError EMFILE when the user has no inotify instance left (fs.inotify.max_user_instances).
    """

    def __init__(self) -> None:
        self._fd = _checked(_libc.inotify_init1(IN_CLOEXEC | IN_NONBLOCK), "inotify_init1")
        self._cgroups: dict[int, Cgroup] = {}
        self._watches: dict[Cgroup, tuple[int, ...]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        return self._fd

    def add(self, cgroup: Cgroup) -> None:
        """Watch a cgroup. What happened before is not reported: read its state after this call.

        Raises FileNotFoundError when it does not exist, OSError ENOSPC when the user has no inotify watch
        left (fs.inotify.max_user_watches); then nothing is watched.
        """
        watches: list[int] = []
        try:
            for name in _FILES:
                path = cgroup.path / name
                # Without its controller a cgroup has no such file; cgroup.events is always there.
                if name == "cgroup.events" or path.exists():
                    watches.append(self._add_watch(os.fsencode(path)))
        except OSError:
            for watch in watches:
                _libc.inotify_rm_watch(self._fd, watch)
            raise
        self._watches[cgroup] = tuple(watches)
        self._cgroups.update(dict.fromkeys(watches, cgroup))

    def discard(self, cgroup: Cgroup) -> None:
        """Stop watching; one that is not watched, or is gone, is fine.

        To be called for every cgroup: the kernel keeps the watches of one that was removed.
        """
        for watch in self._watches.pop(cgroup, ()):
            del self._cgroups[watch]
            _libc.inotify_rm_watch(self._fd, watch)

    def read(self) -> frozenset[Cgroup]:
        """The cgroups with news since the last call; empty when there is none. Never blocks."""
        changed: set[Cgroup] = set()
        for watch, mask in self._events():
            if mask & IN_Q_OVERFLOW:
                changed.update(self._watches)
            elif cgroup := self._cgroups.get(watch):
                changed.add(cgroup)
        return frozenset(changed)

    def _events(self) -> Iterator[tuple[int, int]]:
        try:
            data = os.read(self._fd, _READ_SIZE)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(data):
            watch, mask, _cookie, length = _EVENT.unpack_from(data, offset)
            yield watch, mask
            offset += _EVENT.size + length

    def _add_watch(self, path: bytes) -> int:
        return _checked(_libc.inotify_add_watch(self._fd, path, IN_MODIFY), "inotify_add_watch", path)


def _checked(result: int, call: str, path: bytes | None = None) -> int:
    if result >= 0:
        return result
    number = ctypes.get_errno()
    message = f"{call}: {os.strerror(number)}"
    if number in {errno.EMFILE, errno.ENOSPC}:
        message += " (raise fs.inotify.max_user_instances or max_user_watches)"
    raise OSError(number, message, path and os.fsdecode(path))
