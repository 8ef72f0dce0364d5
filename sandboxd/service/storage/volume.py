"""The file system under sandboxes and layers: how a tree is made, copied, bounded and thrown away there.

    PlainVolume   the state directory as it is: copies share blocks if the file system can, or are copies
    XfsVolume     a pool: reflink copies, a project quota for every sandbox
    BtrfsVolume   a pool: every tree a subvolume, copied and removed in constant time, with its own quota

A tree here is a directory that holds `upper`; what else is in it belongs to overlayfs. Everything blocks.
"""

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from sandboxd.kernel import btrfs, projects
from sandboxd.kernel.overlay import UPPER
from sandboxd.trees.redirects import redirects_of
from sandboxd.trees.treeclone import (
    MAX_DEPTH,
    CloneSummary,
    bring_in,
    clone_tree,
    copy_directory_attributes,
    lay_over,
)

_SCRATCH: Final = "scratch"
_PLAIN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Volume(Protocol):
    kind: str
    root: Path
    limits_disk: str
    """empty if a sandbox's disk can be bounded; otherwise why not, and what would help"""
    moves: bool
    """a tree's `upper` can be moved into another tree: sealing what nobody writes to any more costs nothing"""

    def make(self, tree: Path) -> None:
        """An empty tree, without `upper`."""

    def limit(self, tree: Path, size: int) -> None:
        """Bound what is written into a tree with nothing in it yet but empty directories."""

    def copy(self, source: Path, target: Path, *, check: Callable[[], None]) -> CloneSummary:
        """Make `target` a tree with a copy of source's `upper`."""

    def lay_over(self, source: Path, target: Path, *, check: Callable[[], None]) -> CloneSummary:
        """Lay source's `upper` over target's (see treeclone)."""

    def has_renamed(self, tree: Path) -> bool:
        """Whether a directory of what lies below the tree was renamed in it."""

    def bring_in(self, tree: Path, image: Path, *, check: Callable[[], None]) -> None:
        """Have the tree show the same over the image without noting where directories of that were renamed."""

    def remove(self, trees: Sequence[Path]) -> None:
        """Remove trees for good."""


class PlainVolume:
    kind = "plain"
    moves = True

    def __init__(self, root: Path, *, userxattr: bool) -> None:
        self.root = root
        self.limits_disk = (
            "a sandbox's disk can be limited only in a pool, which takes root"
            if userxattr
            else "a sandbox's disk can be limited only in a pool: make one with `sandboxd storage init`"
        )
        self._userxattr = userxattr

    def make(self, tree: Path) -> None:
        os.mkdir(tree, 0o700)

    def limit(self, tree: Path, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, self.limits_disk, str(tree))

    def copy(self, source: Path, target: Path, *, check: Callable[[], None]) -> CloneSummary:
        self.make(target)
        os.mkdir(target / UPPER, 0o700)
        with (
            opened(source / UPPER) as before,
            opened(target / UPPER) as after,
            scratch(target) as links,
        ):
            return clone_tree(before, after, scratch=links, userxattr=self._userxattr, check=check)

    def lay_over(self, source: Path, target: Path, *, check: Callable[[], None]) -> CloneSummary:
        """Lay the tree `source` over the tree `target` (see treeclone)."""
        with (
            opened(source / UPPER) as before,
            opened(target / UPPER) as after,
            scratch(target) as links,
        ):
            return lay_over(before, after, scratch=links, userxattr=self._userxattr, check=check)

    def bring_in(self, tree: Path, image: Path, *, check: Callable[[], None]) -> None:
        """See treeclone."""
        with opened(tree / UPPER) as layer, opened(image) as below, scratch(tree) as empty:
            bring_in(layer, below, scratch=empty, check=check)

    def has_renamed(self, tree: Path) -> bool:
        """See redirects."""
        with opened(tree / UPPER) as layer:
            return bool(redirects_of(layer, max_depth=MAX_DEPTH))

    def remove(self, trees: Sequence[Path]) -> None:
        # With rm, because a hostile tree can be deeper than Python may recurse.
        if trees:
            command = ["rm", "-rf", "--one-file-system", "--", *map(str, trees)]
            subprocess.run(command, check=True, capture_output=True)


class XfsVolume(PlainVolume):
    kind = "xfs"
    # A moved tree would go on counting for the sandbox that wrote it.
    moves = False

    def __init__(self, root: Path, device: str, *, quotas: bool) -> None:
        super().__init__(root, userxattr=False)
        self._device = device
        self.limits_disk = "" if quotas else "this kernel has no quotas for XFS; make the pool with --fs btrfs"

    def limit(self, tree: Path, size: int) -> None:
        # The tree's own inode number: no other tree has it while this one exists, and a limit is set before a use.
        project = tree.stat().st_ino & 0x7FFFFFFF
        projects.limit_project(self._device, project, size)
        for directory in (tree, *(entry for entry in tree.iterdir() if entry.is_dir())):
            projects.set_project(directory, project)


class BtrfsVolume(PlainVolume):
    kind = "btrfs"
    # Renaming does not cross subvolumes; copying one costs as little.
    moves = False

    def __init__(self, root: Path, *, quotas: bool) -> None:
        super().__init__(root, userxattr=False)
        self.limits_disk = "" if quotas else "limits in a btrfs pool need Linux 6.7; make the pool with --fs xfs"

    def make(self, tree: Path) -> None:
        btrfs.create_subvolume(tree)
        tree.chmod(0o700)

    def limit(self, tree: Path, size: int) -> None:
        btrfs.limit_subvolume(tree, size)

    def copy(self, source: Path, target: Path, *, check: Callable[[], None]) -> CloneSummary:
        check()
        btrfs.snapshot_subvolume(source, target)
        return CloneSummary()

    def remove(self, trees: Sequence[Path]) -> None:
        for tree in trees:
            if tree.is_dir() and btrfs.is_subvolume(tree):
                btrfs.destroy_subvolume(tree)
            else:
                super().remove([tree])


def seed(layer: Path, tree: Path) -> None:
    """Have a new, empty `upper` over the layer show the attributes of directories that something else lies upon.

    An overlay shows a directory as its uppermost layer has it: / as `upper` itself, and /etc as the layer with the
    sandbox's identity. So both are put into `upper`, as overlayfs would when it copies them up.
    """
    with opened(layer / UPPER) as source, opened(tree / UPPER) as target:
        try:
            etc = os.open("etc", _PLAIN_DIRECTORY, dir_fd=source)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}:
                raise
        else:
            os.mkdir("etc", 0o700, dir_fd=target)
            with _closing(etc), _closing(os.open("etc", _PLAIN_DIRECTORY, dir_fd=target)) as made:
                _copy_visible_attributes(etc, made)
        _copy_visible_attributes(source, target)


def _copy_visible_attributes(source: int, target: int) -> None:
    """All but overlayfs's own, which are about what lies below."""
    copy_directory_attributes(source, target)
    for name in os.listxattr(target):
        if name.partition(".")[2].startswith("overlay."):
            os.removexattr(target, name)


@contextlib.contextmanager
def scratch(tree: Path) -> Iterator[int]:
    """An empty directory beside a tree's `upper`, on the same file system and gone afterwards."""
    os.mkdir(tree / _SCRATCH, 0o700)
    try:
        with opened(tree / _SCRATCH) as descriptor:
            yield descriptor
    finally:
        os.rmdir(tree / _SCRATCH)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    with _closing(os.open(path, _PLAIN_DIRECTORY)) as descriptor:
        yield descriptor


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
