"""Memory of idle sandboxes, from /proc: whose processes they are, and their proportional set size (PSS)."""

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


def pss(pids: Iterable[int]) -> int:
    """Bytes of memory that these processes account for: pages they share are divided among those who share them."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
            total += int(found[1]) * 1024 if found else 0
    return total


def peak_memory(pid: int) -> int:
    """Highest resident set since reset_peak(), in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[0]) * 1024


def reset_peak(pid: int) -> int:
    """Forget the highest resident set; the present one, in bytes. proc(5), clear_refs."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_memory(pid)


def descendants(roots: set[int]) -> set[int]:
    """All processes below these, not including them."""
    children = defaultdict(set)
    for pid in _pids():
        with contextlib.suppress(OSError):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            children[parent].add(pid)
    found: set[int] = set()
    edge = roots
    while edge := {child for parent in edge for child in children[parent]} - found:
        found |= edge
    return found


def processes_with_word(word: str) -> set[int]:
    """Processes with this word in their command line."""
    return {pid for pid in _pids() if word.encode() in command_line(pid).split(b"\0")}


def command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
