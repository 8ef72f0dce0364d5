"""What the kernel counts for one cgroup (v2), as frozen values in units that do not depend on the host.

Times are microseconds, sizes bytes, pressures per cent. A value is None where the host has no such counter:
the controller is absent or not enabled, the kernel is older, or pressure accounting is off. Source: the
kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

import errno
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# A counter that this host does not have: no such file, or (pressure) a file that cannot be read when PSI is
# off.
_ABSENT = frozenset({errno.ENOENT, errno.EOPNOTSUPP})


@dataclass(frozen=True, slots=True)
class Pressure:
    """Share of time in which some (or all, `full`) runnable tasks waited for a resource.

    `avg10` is per cent over the last ten seconds, `total` microseconds since the cgroup was made.
    """

    some_avg10: float
    some_total_usec: int
    full_avg10: float
    full_total_usec: int


@dataclass(frozen=True, slots=True)
class MemoryEvents:
    """How often a memory boundary was met. `oom_kill` counts processes killed, here or in a child cgroup."""

    high: int
    max: int
    oom: int
    oom_kill: int


@dataclass(frozen=True, slots=True)
class IoCounters:
    """Sum over all block devices. Buffered writes are counted when they are written back."""

    read_bytes: int
    write_bytes: int
    read_operations: int
    write_operations: int


@dataclass(frozen=True, slots=True)
class CgroupStatistics:
    """One reading. `cpu_*_usec` work without any controller; everything else may be None."""

    cpu_usec: int
    cpu_user_usec: int
    cpu_system_usec: int
    cpu_throttled_periods: int | None
    cpu_throttled_usec: int | None
    memory_current: int | None
    memory_peak: int | None
    memory_anon: int | None
    memory_file: int | None
    memory_inactive_file: int | None
    memory_events: MemoryEvents | None
    swap_current: int | None
    pids_current: int | None
    pids_refused: int | None
    io: IoCounters | None
    cpu_pressure: Pressure | None
    memory_pressure: Pressure | None
    io_pressure: Pressure | None

    @property
    def memory_working_set(self) -> int | None:
        """Bytes that reclaim could not take back cheaply: what people mean by "memory in use"."""
        if self.memory_current is None or self.memory_inactive_file is None:
            return self.memory_current
        return max(0, self.memory_current - self.memory_inactive_file)


def read_statistics(cgroup: Path) -> CgroupStatistics:
    """Read every counter of the cgroup at this path.

    Raises FileNotFoundError when there is no such cgroup (every one has cpu.stat), OSError ENODEV when it is
    removed while being read.
    """
    cpu = parse_flat((cgroup / "cpu.stat").read_text())
    memory = parse_flat(_read_optional(cgroup / "memory.stat") or "")
    return CgroupStatistics(
        cpu_usec=cpu["usage_usec"],
        cpu_user_usec=cpu["user_usec"],
        cpu_system_usec=cpu["system_usec"],
        cpu_throttled_periods=cpu.get("nr_throttled"),
        cpu_throttled_usec=cpu.get("throttled_usec"),
        memory_current=_read_number(cgroup / "memory.current"),
        memory_peak=_read_number(cgroup / "memory.peak"),
        memory_anon=memory.get("anon"),
        memory_file=memory.get("file"),
        memory_inactive_file=memory.get("inactive_file"),
        memory_events=read_memory_events(cgroup),
        swap_current=_read_number(cgroup / "memory.swap.current"),
        pids_current=_read_number(cgroup / "pids.current"),
        pids_refused=parse_flat(_read_optional(cgroup / "pids.events") or "").get("max"),
        io=_read_io(cgroup),
        cpu_pressure=_read_pressure(cgroup / "cpu.pressure"),
        memory_pressure=_read_pressure(cgroup / "memory.pressure"),
        io_pressure=_read_pressure(cgroup / "io.pressure"),
    )


def read_memory_events(cgroup: Path) -> MemoryEvents | None:
    """The counters of memory.events; None without the memory controller."""
    text = _read_optional(f"{cgroup}/memory.events")
    if text is None:
        return None
    counts = parse_flat(text)
    return MemoryEvents(high=counts["high"], max=counts["max"], oom=counts["oom"], oom_kill=counts["oom_kill"])


def parse_flat(text: str) -> dict[str, int]:
    """Parse a "flat keyed" file: one `key number` a line."""
    return {key: int(value) for key, _, value in (line.partition(" ") for line in text.splitlines())}


def parse_io(text: str) -> IoCounters:
    """Add up io.stat, which has a line of `key=number` fields for each device."""
    total: Counter[str] = Counter()
    for line in text.splitlines():
        # Some kernels print a bare device number for a device without traffic, two of them on one line.
        for key, _, value in (field.partition("=") for field in line.split()):
            if value.isdecimal():
                total[key] += int(value)
    return IoCounters(total["rbytes"], total["wbytes"], total["rios"], total["wios"])


def parse_pressure(text: str) -> Pressure:
    """Parse a PSI file. `full` is absent for cpu on kernels before 5.13 and then counts as zero."""
    lines = {line.split(None, 1)[0]: _fields(line.split()[1:]) for line in text.splitlines() if line}
    some, full = lines["some"], lines.get("full", {})
    return Pressure(
        some_avg10=float(some["avg10"]),
        some_total_usec=int(some["total"]),
        full_avg10=float(full.get("avg10", "0")),
        full_total_usec=int(full.get("total", "0")),
    )


def _fields(words: Iterable[str]) -> dict[str, str]:
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def _read_io(cgroup: Path) -> IoCounters | None:
    text = _read_optional(cgroup / "io.stat")
    return None if text is None else parse_io(text)


def _read_pressure(path: Path) -> Pressure | None:
    text = _read_optional(path)
    return parse_pressure(text) if text else None


def _read_number(path: Path) -> int | None:
    text = _read_optional(path)
    return None if text is None else int(text)


def _read_optional(path: Path | str) -> str | None:
    try:
        # Unbuffered bytes: a command's memory.events is read twice, and what read_text() makes for it costs more.
        with open(path, "rb", buffering=0) as file:
            return file.read().decode()
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise
