"""Kills for lack of memory, noticed as they happen: one inotify descriptor for all sandboxes' memory.events."""

from collections.abc import Callable

import trio

from sandboxd.kernel.cgroup_events import CgroupWatcher
from sandboxd.kernel.cgroups import Cgroup
from sandboxd.model import EventKind
from sandboxd.service.events import EventLog


class OomWatch:
    """Owns: the inotify descriptor, while run() runs."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._watcher = CgroupWatcher()
        self._watched: dict[Cgroup, tuple[str, Callable[[], None]]] = {}
        self._seen: dict[Cgroup, int] = {}

    async def add(self, cgroup: Cgroup, sandbox: str, noticed: Callable[[], None]) -> None:
        """Watch a sandbox's cgroup; `noticed` is called once for each batch of kills."""
        kills = cgroup.oom_kills()
        if kills is not None:
            self._watched[cgroup] = (sandbox, noticed)
            self._seen[cgroup] = kills
            self._watcher.add(cgroup)
            await self._look(cgroup)  # for a kill between the count and the watch, of which nothing would tell

    def discard(self, cgroup: Cgroup) -> None:
        if cgroup in self._watched:
            del self._watched[cgroup], self._seen[cgroup]
            self._watcher.discard(cgroup)

    async def run(self) -> None:
        """A task of the service."""
        with self._watcher:
            while True:
                await trio.lowlevel.wait_readable(self._watcher.fileno())
                for cgroup in self._watcher.read():
                    await self._look(cgroup)

    async def _look(self, cgroup: Cgroup) -> None:
        kills = cgroup.oom_kills()
        if kills is None or cgroup not in self._watched or kills <= self._seen[cgroup]:
            return
        new, self._seen[cgroup] = kills - self._seen[cgroup], kills
        sandbox, noticed = self._watched[cgroup]
        noticed()
        await self._events.record(EventKind.OOM, sandbox, {"killed": new})
