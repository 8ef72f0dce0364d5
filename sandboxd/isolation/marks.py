"""The mark by which a sandbox's processes are found where no record or cgroup leads to them.

bwrap has it in its arguments and sandbox-init in its environment. A sandbox's own programs can carry any mark they
like; all that comes of it is that they may be taken for a sandbox that is to be killed.
"""

import contextlib
import os
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

from sandboxd.kernel.userns import parent_userns

MARK = "SANDBOXD_SANDBOX"


def marked_processes(sandboxes: AbstractSet[str]) -> Iterator[int]:
    """Host pids of the bwrap and sandbox-init processes of these sandboxes, as far as this user may look."""
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
        if MARK.encode() in words[:-1]:
            return words[words.index(MARK.encode()) + 1].decode(errors="replace")
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or somebody else's
        return None
    values = (entry.partition(b"=")[2] for entry in environment if entry.startswith(MARK.encode() + b"="))
    value = next(values, None)
    return None if value is None else value.decode(errors="replace")
