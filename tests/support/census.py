"""What exists on this machine that only sandboxd makes: taken before and after each test, it must not have grown."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

OURS = ("sandbox-init", "bwrap", "forkserver.py", "sandboxd", "linux.uml", "mmdebstrap")
# The kernel finishes some things after it told us: a network namespace, a dead process's cgroup, a reaped zombie.
SETTLE = 5.0


@dataclass(frozen=True)
class Census:
    processes: frozenset[tuple[int, str]] = frozenset()
    mounts: Counter[str] = field(default_factory=Counter)
    cgroups: frozenset[str] = frozenset()
    descriptors: Counter[str] = field(default_factory=Counter)

    def grown_since(self, before: "Census") -> dict[str, list[str]]:
        """What is here now and was not then, by kind; empty if nothing is."""
        grown = {
            "processes": [f"{pid} {command}" for pid, command in sorted(self.processes - before.processes)],
            "mounts": sorted((self.mounts - before.mounts).elements()),
            "cgroups": sorted(self.cgroups - before.cgroups),
            "descriptors": sorted((self.descriptors - before.descriptors).elements()),
        }
        return {kind: found for kind, found in grown.items() if found}


def take() -> Census:
    return Census(frozenset(_processes()), Counter(_mounts()), frozenset(_cgroups()), Counter(_descriptors()))


def settled_growth(before: Census) -> dict[str, list[str]]:
    """What has grown and does not go away by itself."""
    deadline = time.monotonic() + SETTLE
    while (grown := take().grown_since(before)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return grown


def _processes() -> Iterator[tuple[int, str]]:
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if any(name in words for name in OURS) and "pytest" not in words:
                yield int(entry), words[:120]


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        yield " ".join(line.split()[3:5])


def _cgroups() -> Iterator[str]:
    root = next((place for place in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")) if _is_v2(place)), None)
    if root is not None:
        for path, names, _ in os.walk(root):
            yield from (os.path.join(path, name) for name in names if "/sandboxd-" in os.path.join(path, name))


def _is_v2(place: Path) -> bool:
    return (place / "cgroup.procs").exists() and (place / "cgroup.controllers").exists()


def _descriptors() -> Iterator[str]:
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
        # Numbers in names (socket:[123]) differ from one to the next; what counts is how many there are of a kind.
        yield target.partition(":[")[0] if ":[" in target else target
