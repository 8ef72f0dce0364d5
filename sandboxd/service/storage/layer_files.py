"""Sealed trees on the volume.

    <volume>/layers/<id>/upper    what a sandbox had written, with its natural ids
    <volume>/layers/.new-…        being made; thrown away by the next start-up

Nothing appears under its id before it is complete and on the disk. Everything here blocks: callers use a thread.
"""

import os
import secrets
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from sandboxd.crashpoints import crash_point
from sandboxd.kernel import syscalls
from sandboxd.kernel.overlay import UPPER
from sandboxd.service.storage.disk import Disk
from sandboxd.trees.treeclone import CloneSummary
from sandboxd.trees.treewalk import walk

_NEW: Final = ".new-"


class LayerFiles:
    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._volume = disk.volume
        self._directory = disk.volume.root / "layers"
        self._directory.mkdir(exist_ok=True)
        self._directory.chmod(0o700)

    def tree(self, layer: str) -> Path:
        return self._directory / layer

    def new(self) -> Path:
        """A name for a tree in the making."""
        return self._directory / f"{_NEW}{secrets.token_hex(8)}"

    def make(self, new: Path) -> None:
        """An empty tree in the making."""
        self._volume.make(new)

    def copy(self, source: Path, *, check: Callable[[], None]) -> tuple[Path, CloneSummary]:
        """A copy of a tree that is at rest, not yet sealed. On failure nothing is left."""
        new = self.new()
        try:
            return new, self._volume.copy(source, new, check=check)
        except BaseException:
            self.abandon(new)
            raise

    def squash(self, trees: Sequence[Path], *, check: Callable[[], None]) -> tuple[Path, CloneSummary]:
        """One tree of several, uppermost first."""
        *upper, lowest = trees
        new, cost = self.copy(lowest, check=check)
        try:
            for tree in reversed(upper):
                more = self._volume.lay_over(tree, new, check=check)
                cost.copied += more.copied
                cost.shared += more.shared
        except BaseException:
            self.abandon(new)
            raise
        return new, cost

    def alone(self, trees: Sequence[Path], image: Path, *, check: Callable[[], None]) -> Path | None:
        """A tree, not yet sealed, that shows what these do over the image, wherever the image is the same.

        None: the only one of them does already. On failure nothing is left.
        """
        if len(trees) == 1 and not self._volume.has_renamed(trees[0]):
            return None
        new, _ = self.squash(trees, check=check)
        try:
            self._volume.bring_in(new, image, check=check)
        except BaseException:
            self.abandon(new)
            raise
        return new

    def seal(self, new: Path, layer: str) -> None:
        """Bring it to the disk, then give it its name, which is on the disk too before a record names it."""
        self.settle()
        crash_point("layer:copied")
        new.rename(self.tree(layer))
        self._on_directory(os.fsync)

    def settle(self) -> None:
        """Write everything on the volume to its disk."""
        self._on_directory(syscalls.syncfs)

    def _on_directory(self, synchronize: Callable[[int], None]) -> None:
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            synchronize(directory)
        finally:
            os.close(directory)

    def abandon(self, new: Path) -> None:
        if new.exists():
            self._disk.throw_away(new)

    def move(self, sandbox: str, layer: str) -> None:
        """Make what a sandbox that does not run has written the layer's tree. May be repeated after a crash."""
        tree, source = self.tree(layer), self._disk.paths(sandbox).writable / UPPER
        tree.mkdir(mode=0o700, exist_ok=True)
        if not (tree / UPPER).exists():
            source.rename(tree / UPPER)
        self.settle()

    def discard(self, layer: str) -> None:
        if self.tree(layer).exists():
            self._disk.throw_away(self.tree(layer))

    def names(self) -> frozenset[str]:
        """Everything there, what was never finished included."""
        return frozenset(os.listdir(self._directory))

    def measure(self, layer: str) -> tuple[int, int]:
        """(bytes on disk, entries) of a layer; a file with several names counts once."""
        return measure_tree(self.tree(layer) / UPPER)


def measure_tree(top: Path) -> tuple[int, int]:
    """(bytes on disk, entries) below a directory that strangers have filled, and may be filling."""
    size = entries = 0
    linked: set[int] = set()
    directory = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for found in walk(directory):
            entries += 1
            if found.status.st_ino not in linked:
                size += found.status.st_blocks * 512
            if found.status.st_nlink > 1 and not stat.S_ISDIR(found.status.st_mode):
                linked.add(found.status.st_ino)
    finally:
        os.close(directory)
    return size, entries
