"""Digests name contents, and copies of directories follow the policy of archives."""

import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandboxd.trees.tarstream import ArchiveError, ArchiveTooLarge
from sandboxd.trees.treecopy import copy_tree
from sandboxd.trees.treedigest import TreeDigest, digest_tree
from sandboxd.trees.treewriter import UnpackLimits, UnpackSummary

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files of other owners can only be made by root")


def digest(path: Path, *, id_base: int = 0) -> TreeDigest:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return digest_tree(descriptor, id_base=id_base)
    finally:
        os.close(descriptor)


def copy(source: Path, target: Path, *, id_base: int = 0, limits: UnpackLimits | None = None) -> UnpackSummary:
    target.mkdir()
    source_fd, target_fd = (os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (source, target))
    try:
        return copy_tree(source_fd, target_fd, id_base=id_base, limits=limits)
    finally:
        os.close(source_fd)
        os.close(target_fd)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "d").mkdir(parents=True)
    (root / "d/file").write_text("contents")
    (root / "d/script").write_text("#!/bin/sh\n")
    (root / "d/script").chmod(0o4755)
    os.link(root / "d/file", root / "other name")
    (root / "link").symlink_to("/etc/passwd")
    os.mkfifo(root / "fifo")
    os.chown(root / "d", 1000, 1001)
    os.setxattr(root / "d", "user.note", b"x")
    with open(root / "sparse", "wb") as file:
        file.truncate(10 << 20)
        file.seek(5 << 20)
        file.write(b"in the middle")
    return root


# -- digests ------------------------------------------------------------------------------------------------------


def replace_hard_link(root: Path) -> None:
    (root / "other name").unlink()
    (root / "other name").write_text("contents")


CHANGES: dict[str, Callable[[Path], object]] = {
    "contents": lambda root: (root / "d/script").write_text("#!/bin/zz\n"),
    "name": lambda root: (root / "link").rename(root / "knil"),
    "mode": lambda root: (root / "d/script").chmod(0o755),
    "owner": lambda root: os.chown(root / "fifo", 1, 0),
    "group": lambda root: os.chown(root / "link", 0, 1, follow_symlinks=False),
    "target": lambda root: ((root / "link").unlink(), (root / "link").symlink_to("/etc/group")),
    "type": lambda root: ((root / "fifo").unlink(), (root / "fifo").touch(0o644)),
    "attribute": lambda root: os.setxattr(root / "d", "user.note", b"y"),
    "new attribute": lambda root: os.setxattr(root / "d/file", "user.more", b""),
    "hard link": replace_hard_link,
    "root's mode": lambda root: root.chmod(0o700),
    "empty directory": lambda root: (root / "e").mkdir(),
    "length of a hole": lambda root: os.truncate(root / "sparse", 11 << 20),
}


@pytest.mark.parametrize("what", sorted(CHANGES))
def test_a_change_changes_the_digest(what: str, tree: Path) -> None:
    before = digest(tree)
    CHANGES[what](tree)
    assert digest(tree).sha256 != before.sha256


def test_times_do_not_change_the_digest(tree: Path) -> None:
    before = digest(tree)
    for path in tree.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
    assert digest(tree) == before


def test_shifted_owners_do_not_change_the_digest(tree: Path, tmp_path: Path) -> None:
    copy(tree, tmp_path / "shifted", id_base=1)
    assert (tmp_path / "shifted/d").stat().st_uid == 1001
    assert digest(tmp_path / "shifted", id_base=1) == digest(tree)


def test_size_counts_a_file_with_two_names_once(tree: Path) -> None:
    assert digest(tree).size == len("contents") + len("#!/bin/sh\n") + (10 << 20)


# -- copies -------------------------------------------------------------------------------------------------------


def test_a_copy_is_the_same_and_as_sparse(tree: Path, tmp_path: Path) -> None:
    copy(tree, tmp_path / "copy")
    assert digest(tmp_path / "copy") == digest(tree)
    assert (tmp_path / "copy/sparse").stat().st_blocks * 512 < 1 << 20
    assert (tmp_path / "copy/d/file").stat().st_mtime_ns == (tree / "d/file").stat().st_mtime_ns


def test_links_are_copied_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/file").touch()
    (tmp_path / "source").mkdir()
    (tmp_path / "source/link").symlink_to(tmp_path / "secret")
    copy(tmp_path / "source", tmp_path / "copy")
    assert (tmp_path / "copy/link").is_symlink()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A directory with a file system mounted in it."""
    point = tmp_path / "source/mounted"
    point.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
    (point / "inside").touch()
    yield tmp_path / "source"
    subprocess.run(["umount", point], check=True)


def test_a_copy_stays_on_one_file_system(mounted: Path, tmp_path: Path) -> None:
    summary = copy(mounted, tmp_path / "copy")
    assert (tmp_path / "copy/mounted").is_dir()
    assert list((tmp_path / "copy/mounted").iterdir()) == []
    assert summary.dropped == {"contents of mount points": 1}


def test_sockets_are_left_out() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # short: a socket's path has 107 bytes
        (source := Path(place, "s")).mkdir()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(source / "socket"))
            summary = copy(source, Path(place, "copy"))
        assert summary.dropped == {"sockets": 1}
        assert list(Path(place, "copy").iterdir()) == []


def test_devices_are_refused_except_below_dev(tmp_path: Path) -> None:
    (tmp_path / "source/dev").mkdir(parents=True)
    os.mknod(tmp_path / "source/dev/null", 0o020666, os.makedev(1, 3))
    assert copy(tmp_path / "source", tmp_path / "copy").dropped == {"devices below /dev": 1}
    os.mknod(tmp_path / "source/null", 0o020666, os.makedev(1, 3))
    with pytest.raises(ArchiveError, match="devices outside /dev"):
        copy(tmp_path / "source", tmp_path / "copy2")


def test_limits_hold_for_copies_too(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchiveTooLarge):
        copy(tree, tmp_path / "copy", limits=UnpackLimits(size=1 << 20))
