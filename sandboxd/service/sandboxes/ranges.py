"""Which host ids belong to which sandbox: 65536 of them each, never two sandboxes with the same.

As root, the space from 0x70000000 up (above what useradd, systemd-nspawn and subuid hand out) is cut into blocks of
2048 ranges. A daemon claims one block for its state directory until the host reboots, by a file in /run: two
daemons on one host then cannot collide, and a daemon that comes back finds its sandboxes in its own block. Without
root there is one range, the user's subordinate ids, and all sandboxes of that user share it.
"""

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

from sandboxd.errors import StartupError, Unavailable
from sandboxd.kernel.userns import IDS_PER_RANGE

RANGES_PER_BLOCK = 2048
IDS_PER_BLOCK = RANGES_PER_BLOCK * IDS_PER_RANGE
BLOCKS = 16
REGISTRY = Path("/run/sandboxd-ids")


class IdRanges:
    """Hands out range starts. The last one returned is the first given again: its user namespace is still warm."""

    def __init__(self, first: int, count: int) -> None:
        self._first, self._count = first, count
        self._fresh = first
        self._returned: list[int] = []
        self._taken: set[int] = set()

    def take(self) -> int:
        """A free range. Raises: Unavailable when all are in use."""
        start = self._returned.pop() if self._returned else self._next_fresh()
        self._taken.add(start)
        return start

    def claim(self, starts: Iterable[int]) -> None:
        """Mark ranges as taken that sandboxes of an earlier daemon run with."""
        self._taken.update(starts)

    def give_back(self, start: int) -> None:
        if start in self._taken:
            self._taken.remove(start)
            self._returned.append(start)

    def taken(self) -> frozenset[int]:
        return frozenset(self._taken)

    def _next_fresh(self) -> int:
        while self._fresh < self._first + self._count * IDS_PER_RANGE:
            start, self._fresh = self._fresh, self._fresh + IDS_PER_RANGE
            if start not in self._taken:
                return start
        raise Unavailable("cannot create the sandbox: no free id range is left, delete a sandbox first")


class SharedRange(IdRanges):
    """The rootless case: one range for every sandbox."""

    def __init__(self, start: int) -> None:
        super().__init__(start, 1)

    def take(self) -> int:
        return self._first

    def give_back(self, start: int) -> None:
        pass


def claim_block(state_dir: Path, first: int, registry: Path = REGISTRY) -> int:
    """The first id of the block that belongs to this state directory. Raises: StartupError if all are claimed."""
    registry.mkdir(mode=0o700, exist_ok=True)
    owner = os.fsencode(state_dir.resolve())
    directory = os.open(registry, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        owners = {number: _owner(registry / str(number)) for number in range(BLOCKS)}
        mine = [number for number, name in owners.items() if name == owner]
        free = [number for number, name in owners.items() if name is None]
        if not mine and not free:
            raise StartupError(f"cannot claim host ids: all {BLOCKS} blocks are in use, see {registry}")
        block = (mine or free)[0]
        (registry / str(block)).write_bytes(owner)
    finally:
        os.close(directory)
    return first + block * IDS_PER_BLOCK


def _owner(path: Path) -> bytes | None:
    """Whose block it is; nobody's if that state directory is gone."""
    try:
        owner = path.read_bytes()
    except FileNotFoundError:
        return None
    return owner if os.path.isdir(owner) else None
