"""The mark by which a sandbox's processes are found where no record or cgroup leads to them.

bwrap and sandbox-init have it in their arguments, which everybody may read; it outlives the daemon and its memory.
A sandbox's own programs can carry any mark they like: all that comes of it is that they may be taken for those of a
sandbox that is to be killed.
"""

import contextlib
import os
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

from sandboxd.kernel.userns import parent_userns

# sandbox-init ignores it; it comes before the id.
MARK = "--mark"


def marked_processes(sandboxes: AbstractSet[str]) -> Iterator[int]:
    """Host pids of the bwrap and sandbox-init processes of these sandboxes."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and _mark_of(entry) in sandboxes:
            yield int(entry)


def find_namespace(sandboxes: Path) -> int | None:
    """A descriptor of the user namespace whose root launched what still runs of the sandboxes in this directory."""
    try:
        known = frozenset(os.listdir(sandboxes))
    except FileNotFoundError:
        return None
    for pid in marked_processes(known):
        with contextlib.suppress(OSError):  # it ends at this moment
            return parent_userns(pid)
    return None


def _mark_of(pid: str) -> str | None:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:  # gone
        return None
    mark = MARK.encode()
    return words[words.index(mark) + 1].decode(errors="replace") if mark in words[:-1] else None
