"""What /proc tells of processes that are not our children, tolerant of their vanishing (proc(5))."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

# Fields of /proc/PID/stat after the command name, which ends at the last parenthesis.
_STARTTIME = 22 - 3


@cache
def boot_id() -> str:
    """Differs for every boot of the host: a pid and its start time name a process within one boot only."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 if there is no such process (any more)."""
    try:
        # Unbuffered bytes: every launch asks twice, and what read_text() makes for it costs more than the kernel.
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(text.rpartition(b")")[2].split()[_STARTTIME])


def proportional_set_size(pids: Iterable[int]) -> int:
    """Bytes of memory of these processes together, shared pages counted in shares (PSS)."""
    return sum(_pss(pid) for pid in pids)


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
