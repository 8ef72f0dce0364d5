"""What a tree of processes uses: from its cgroup where that counts, from /proc where it does not."""

from pathlib import Path

import psutil

from sandboxd.isolation.backend import Usage
from sandboxd.kernel.cgroup_statistics import CgroupStatistics
from sandboxd.kernel.cgroups import Cgroup


def measure(pid: int, cgroup: Cgroup) -> Usage:
    """Of the tree below `pid`, which may be in a cgroup. For a thread: such scans are slow on a full machine."""
    counted: CgroupStatistics | None = None
    pids: frozenset[int] = frozenset()
    try:
        pids = cgroup.pids() if cgroup.present else _family(pid)
        counted = cgroup.statistics() if cgroup.present else None
    except OSError:  # it is being deleted at this moment
        pids = frozenset()
    processes, memory, cpu_seconds = _totals(pids)
    if counted is not None:
        cpu_seconds = counted.cpu_usec / 1e6
        memory = counted.memory_working_set or counted.memory_current or memory
        processes = processes if counted.pids_current is None else counted.pids_current
    received, sent = _traffic(pid)
    return Usage(
        processes=processes, memory=memory, cpu_seconds=cpu_seconds, received=received, sent=sent, cgroup=counted
    )


def _family(pid: int) -> frozenset[int]:
    try:
        process = psutil.Process(pid)
        return frozenset({pid, *(child.pid for child in process.children(recursive=True))})
    except psutil.NoSuchProcess:
        return frozenset()


def _totals(pids: frozenset[int]) -> tuple[int, int, float]:
    """Of those that are still there: their number, resident bytes, and seconds of processor time."""
    count, memory, cpu_seconds = 0, 0, 0.0
    for pid in pids:
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                times = process.cpu_times()
                memory += process.memory_info().rss
                cpu_seconds += times.user + times.system
                count += 1
        except psutil.NoSuchProcess:
            continue
    return count, memory, cpu_seconds


def _traffic(pid: int) -> tuple[int, int]:
    """Bytes received and sent, from /proc/PID/net/dev (proc(5)): two header lines, then `name: counters`.

    An interface's name may be any bytes but for blanks.
    """
    received = sent = 0
    try:
        lines = Path(f"/proc/{pid}/net/dev").read_bytes().splitlines()[2:]
    except OSError:
        return 0, 0
    for line in lines:
        name, _, counters = line.rpartition(b":")
        if name.strip() != b"lo":
            fields = counters.split()
            received, sent = received + int(fields[0]), sent + int(fields[8])
    return received, sent
