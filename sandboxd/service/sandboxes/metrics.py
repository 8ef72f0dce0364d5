"""What a sandbox uses now, from its cgroup where that counts, from /proc where it does not.

The units do not depend on the host: percent of one processor, bytes, processes. What the host cannot tell is None.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import psutil

from sandboxd.errors import Conflict
from sandboxd.kernel.cgroup_statistics import CgroupStatistics
from sandboxd.kernel.cgroups import Cgroup
from sandboxd.model import Limits
from sandboxd.service.sandboxes.entry import Entry
from sandboxd.threads import run_in_thread


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessTotals:
    """Sums over a sandbox's processes."""

    count: int
    rss: int
    cpu_seconds: float


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
        pid, cgroup = running.machine.pid, running.cgroup
        statistics, totals, traffic = await run_in_thread(_gather, pid, cgroup)
        if entry.running is not running:
            raise Conflict(f"cannot measure sandbox {entry.sandbox.id}: it ended meanwhile")
        now, limits = time.time(), entry.sandbox.spec.limits
        started = entry.sandbox.started_at or now
        cpu = statistics.cpu_usec / 1e6 if statistics else totals.cpu_seconds
        memory = totals.rss
        if statistics is not None and statistics.memory_current is not None:
            memory = statistics.memory_working_set or statistics.memory_current
        return Metrics(
            uptime=now - started,
            cpu_percent=self._cpu_percent(entry, now, cpu, started),
            memory=memory,
            memory_percent=100 * memory / (limits.memory or psutil.virtual_memory().total),
            pids=statistics.pids_current if statistics and statistics.pids_current is not None else totals.count,
            received=traffic[0],
            sent=traffic[1],
            limits=limits,
            cgroup=statistics,
        )

    def _cpu_percent(self, entry: Entry, now: float, cpu: float, started: float) -> float | None:
        then, before = self._last.get(entry, (started, 0.0))
        self._last[entry] = (now, cpu)
        return 100 * max(0.0, cpu - before) / (now - then) if now > then else None


def _gather(pid: int, cgroup: Cgroup | None) -> tuple[CgroupStatistics | None, ProcessTotals, tuple[int, int]]:
    """In a thread: /proc-wide scans are slow on a full machine."""
    try:
        pids = cgroup.pids() if cgroup else _family(pid)
        statistics = cgroup.statistics() if cgroup else None
    except OSError:  # it is being deleted at this moment
        pids, statistics = frozenset(), None
    return statistics, _totals(pids), _traffic(pid)


def _family(pid: int) -> frozenset[int]:
    try:
        process = psutil.Process(pid)
        return frozenset({pid, *(child.pid for child in process.children(recursive=True))})
    except psutil.NoSuchProcess:
        return frozenset()


def _totals(pids: frozenset[int]) -> ProcessTotals:
    rss, cpu, count = 0, 0.0, 0
    for pid in pids:
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                times = process.cpu_times()
                rss += process.memory_info().rss
                cpu += times.user + times.system
                count += 1
        except psutil.NoSuchProcess:
            continue
    return ProcessTotals(count=count, rss=rss, cpu_seconds=cpu)


def _traffic(pid: int) -> tuple[int, int]:
    """Bytes received and sent, from /proc/PID/net/dev (proc(5)): two header lines, then `name: counters`."""
    received = sent = 0
    try:
        lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    except OSError:
        return 0, 0
    for line in lines:
        name, _, counters = line.partition(":")
        if name.strip() != "lo":
            fields = counters.split()
            received, sent = received + int(fields[0]), sent + int(fields[8])
    return received, sent
