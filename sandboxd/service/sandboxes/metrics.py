"""What a sandbox uses now, in units that do not depend on the host: percent of one processor, bytes, processes."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import psutil

from sandboxd import clock
from sandboxd.errors import Conflict
from sandboxd.kernel.cgroup_statistics import CgroupStatistics
from sandboxd.model import Limits
from sandboxd.service.sandboxes.entry import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    uptime: float
    cpu_percent: float | None
    """of one processor, over the time since the last question (at first: since the sandbox's start)"""
    memory: int
    memory_percent: float | None
    """of the memory limit, or of the machine's memory"""
    pids: int
    received: int
    """bytes over the sandbox's network interfaces but loopback"""
    sent: int
    limits: Limits
    cgroup: CgroupStatistics | None


class MetricsReader:
    """Remembers the last processor time of each sandbox, so that the next answer is about now."""

    def __init__(self) -> None:
        self._last: WeakKeyDictionary[Entry, tuple[float, float]] = WeakKeyDictionary()

    async def read(self, entry: Entry) -> Metrics:
        """Of a paused one too. Raises: Conflict when it has no machine."""
        running = entry.require_machine()
        usage = await running.usage()
        if entry.running is not running:
            raise Conflict(f"cannot measure sandbox {entry.sandbox.id}: it ended meanwhile")
        now, limits = clock.wall(), entry.sandbox.spec.limits
        started = entry.sandbox.started_at or now
        return Metrics(
            uptime=now - started,
            cpu_percent=self._cpu_percent(entry, now, usage.cpu_seconds, started),
            memory=usage.memory,
            memory_percent=100 * usage.memory / (limits.memory or psutil.virtual_memory().total),
            pids=usage.processes,
            received=usage.received,
            sent=usage.sent,
            limits=limits,
            cgroup=usage.cgroup,
        )

    def _cpu_percent(self, entry: Entry, now: float, cpu: float, started: float) -> float | None:
        then, before = self._last.get(entry, (started, 0.0))
        self._last[entry] = (now, cpu)
        return 100 * max(0.0, cpu - before) / (now - then) if now > then else None
