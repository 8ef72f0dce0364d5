"""Which host ids belong to which sandbox: 65536 of them each, never two sandboxes with the same.

As root, the space from 0x70000000 up (above what useradd, systemd-nspawn and subuid hand out) is cut into blocks of
2048 ranges. A daemon claims one block for its state directory by a file in /run, which it holds locked while it
runs: two daemons on one host then cannot collide, and a daemon that comes back finds its sandboxes in its own block.
A block whose daemon is gone and in whose ids nothing lives is anybody's again. Without root there is one range, the
user's subordinate ids, and all sandboxes of that user share it.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Final

from sandboxd.errors import StartupError, Unavailable
from sandboxd.isolation.plan import IdRange, Slot
from sandboxd.kernel.userns import IDS_PER_RANGE
from sandboxd.model import Sandbox
from sandboxd.service.resources import Resource

RANGES_PER_BLOCK = 2048
IDS_PER_BLOCK = RANGES_PER_BLOCK * IDS_PER_RANGE
BLOCKS = 16


class IdRanges(Resource):
    """Hands out ranges. The last one returned is the first given again: its user namespace is still warm.

    Which range a sandbox has is in its record, before anything lives with those ids and until nothing does.
    """

    name: Final = "ids"
    idmapped: ClassVar[bool] = True
    """files lie on disk with ids 0..65535, and mounts shift them"""

    def __init__(self, first: int, count: int) -> None:
        self._first, self._count = first, count
        self._fresh = first
        self._returned: list[int] = []
        self._taken: dict[str, int] = {}

    def reserve(self, sandbox: str) -> IdRange:
        """The sandbox's range; a free one if it has none. Raises: Unavailable when all are in use."""
        if sandbox not in self._taken:
            self._taken[sandbox] = self._returned.pop() if self._returned else self._next_fresh()
        return IdRange(start=self._taken[sandbox], idmapped=self.idmapped)

    async def take(self, slot: Slot) -> None:
        """Nothing is left to do: a slot without a range cannot be described, so making it has reserved one."""

    async def release(self, sandbox: str) -> None:
        start = self._taken.pop(sandbox, -1)
        if 0 <= start - self._first < self._count * IDS_PER_RANGE:  # or it is of a block that we had before
            self._returned.append(start)

    def known(self) -> frozenset[str]:
        return frozenset()  # the host knows who lives with which ids, not whose they are

    async def claim(self, record: Sandbox) -> None:
        if record.range_start:
            self._taken[record.id] = record.range_start

    def taken(self) -> frozenset[int]:
        """First ids of the ranges in use."""
        return frozenset(self._taken.values())

    def _next_fresh(self) -> int:
        taken = self.taken()
        while self._fresh < self._first + self._count * IDS_PER_RANGE:
            start, self._fresh = self._fresh, self._fresh + IDS_PER_RANGE
            if start not in taken:
                return start
        raise Unavailable("cannot create the sandbox: no free id range is left, delete a sandbox first")


class SharedRange(IdRanges):
    """The rootless case: one range for every sandbox, shifted on disk too."""

    idmapped = False

    def __init__(self, start: int) -> None:
        super().__init__(start, 1)

    def reserve(self, sandbox: str) -> IdRange:
        return IdRange(start=self._first, idmapped=self.idmapped)

    async def claim(self, record: Sandbox) -> None:
        """It is everybody's, always."""


@contextlib.contextmanager
def claim_block(state_dir: Path, first: int, registry: Path) -> Iterator[int]:
    """The first id of a block that is this state directory's while the context lasts, and longer if nobody needs it.

    `registry` is the directory of one file per block, which names the state directory and is locked while its daemon
    runs. Taken is, in this order: the block that was this directory's before, one that is nobody's, one whose daemon
    does not run. Never one in whose ids any process lives. Raises: StartupError when there is none.
    """
    registry.mkdir(mode=0o700, exist_ok=True)
    owner = os.fsencode(state_dir.resolve())
    with contextlib.ExitStack() as held:
        with _locked_directory(registry):
            block = _choose(owner, first, registry)
            held.enter_context(_held(registry / str(block), owner))
        yield first + block * IDS_PER_BLOCK


def _choose(owner: bytes, first: int, registry: Path) -> int:
    owners = {number: _owner(registry / str(number)) for number in range(BLOCKS)}
    mine = [number for number, name in owners.items() if name == owner and not _is_held(registry / str(number))]
    if mine:
        return mine[0]
    alive = _blocks_alive(first)
    for number in sorted(owners, key=lambda number: owners[number] is not None):
        if number not in alive and not _is_held(registry / str(number)):
            return number
    raise StartupError(
        f"cannot claim host ids: all {BLOCKS} blocks are in use, by these state directories: "
        + ", ".join(sorted(os.fsdecode(name) for name in owners.values() if name is not None))
        + f". End a daemon and its sandboxes to free one (the claims are in {registry})"
    )


@contextlib.contextmanager
def _locked_directory(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _held(path: Path, owner: bytes) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, owner)
        yield
    finally:
        os.close(descriptor)


def _is_held(path: Path) -> bool:
    """Whether a daemon that runs has claimed it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _owner(path: Path) -> bytes | None:
    """Whose block it is; nobody's if that state directory is gone."""
    try:
        owner = path.read_bytes()
    except FileNotFoundError:
        return None
    return owner if os.path.isdir(owner) else None


def _blocks_alive(first: int) -> frozenset[int]:
    """Numbers of the blocks in whose ids a process of this host lives, whoever started it."""
    blocks = set()
    for process in os.listdir("/proc"):
        if process.isdecimal():
            with contextlib.suppress(OSError):  # it has just ended
                blocks.add((os.stat(f"/proc/{process}").st_uid - first) // IDS_PER_BLOCK)
    return frozenset(blocks)
