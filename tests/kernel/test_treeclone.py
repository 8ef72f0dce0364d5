"""Copies of trees are exact, and layers laid over one another are what overlayfs shows of them."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.trees.redirects import redirects_of
from sandboxd.trees.treeclone import MAX_DEPTH, CloneSummary, TreeRefused, bring_in, clone_tree, lay_over
from tests.support.trees import Scribbler, describe

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files of other owners can only be made by root")

seeds = st.integers(0, 2**32)


@contextmanager
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="treeclone-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def opened(*paths: Path) -> Iterator[list[int]]:
    found = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in paths]
    try:
        yield found
    finally:
        for descriptor in found:
            os.close(descriptor)


def clone(source: Path, target: Path) -> CloneSummary:
    scratch = Path(f"{target}.scratch")
    target.mkdir()
    scratch.mkdir()
    with opened(source, target, scratch) as (source_fd, target_fd, scratch_fd):
        summary = clone_tree(source_fd, target_fd, scratch=scratch_fd)
    scratch.rmdir()
    return summary


def lay(source: Path, target: Path) -> None:
    scratch = Path(f"{target}.scratch")
    scratch.mkdir()
    with opened(source, target, scratch) as (source_fd, target_fd, scratch_fd):
        lay_over(source_fd, target_fd, scratch=scratch_fd)
    scratch.rmdir()


@given(seed=seeds)
@settings(max_examples=60)
def test_a_clone_is_the_same_in_everything(seed: int) -> None:
    with place() as top:
        (top / "tree").mkdir()
        Scribbler(top / "tree", Random(seed), root=True).scribble(60)
        summary = clone(top / "tree", top / "clone")
        assert describe(top / "clone") == describe(top / "tree")
        assert summary.skipped == 0


@contextmanager
def overlay(point: Path, *lowers: Path, upper: Path | None = None) -> Iterator[Path]:
    point.mkdir(exist_ok=True)
    options = f"redirect_dir=on,lowerdir={':'.join(map(str, lowers))}"
    if upper is not None:
        work = Path(f"{upper}.work")
        work.mkdir()
        options += f",upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "none", "-o", options, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


def rename_directories(view: Path, random: Random) -> None:
    """Into one another, back, and over what was there, with changes in between."""
    renamer = Scribbler(view, random, root=True)
    for _ in range(8):
        renamer.scribble(3)
        with contextlib.suppress(OSError):
            os.rename(renamer.directory_path(), renamer.fresh())


@given(seed=seeds)
@settings(max_examples=25)
def test_layers_laid_over_one_another_show_what_the_overlay_of_them_shows(seed: int) -> None:
    random = Random(seed)
    with place() as top:
        for name in ("image", "one", "two", "empty"):
            (top / name).mkdir()
        Scribbler(top / "image", random, root=True).scribble(40)
        with overlay(top / "view", top / "image", upper=top / "one"):
            Scribbler(top / "view", random, root=True).scribble(40)
            rename_directories(top / "view", random)
        with overlay(top / "view", top / "one", top / "image", upper=top / "two"):
            Scribbler(top / "view", random, root=True).scribble(40)
            rename_directories(top / "view", random)
            expected = describe(top / "view")
        clone(top / "one", top / "merged")
        lay(top / "two", top / "merged")
        with overlay(top / "view", top / "empty", top / "merged", top / "image"):
            shown = describe(top / "view")
        # What a read-only overlay's own top directory says is that of the layer that was put on top for this test.
        del expected[b"."], shown[b"."]
        assert shown == expected


@given(seed=seeds)
@settings(max_examples=25)
def test_a_layer_with_its_renamed_directories_brought_in_shows_the_same(seed: int) -> None:
    random = Random(seed)
    with place() as top:
        for name in ("image", "one", "two", "empty", "scratch"):
            (top / name).mkdir()
        Scribbler(top / "image", random, root=True).scribble(60)
        with overlay(top / "view", top / "image", upper=top / "one"):
            rename_directories(top / "view", random)
        # A file of the image with a name in the directory and another outside of it becomes two by this.
        with overlay(top / "view", top / "empty", top / "one", top / "image"):
            expected = describe(top / "view", links=False)
        with opened(top / "one", top / "image", top / "scratch") as (tree, image, scratch):
            bring_in(tree, image, scratch=scratch)
            assert redirects_of(tree, max_depth=MAX_DEPTH) == []
        assert os.listdir(top / "scratch") == []
        with overlay(top / "view", top / "empty", top / "one", top / "image"):
            shown = describe(top / "view", links=False)
        del expected[b"."], shown[b"."]
        assert shown == expected


def test_a_merged_layer_lists_no_name_that_is_gone(tmp_path: Path) -> None:
    """Overlayfs lists the whiteouts of a directory that only one layer has, unless it was copied up: and what tells
    that is lost where the layer goes through a file."""
    for name in ("image", "one", "two", "empty"):
        (tmp_path / name).mkdir()
    with overlay(tmp_path / "view", tmp_path / "image", upper=tmp_path / "one") as view:
        (view / "mine").mkdir()
        (view / "mine/gone").touch()
        (view / "mine/kept").touch()
    with overlay(tmp_path / "view", tmp_path / "one", tmp_path / "image", upper=tmp_path / "two") as view:
        (view / "mine/gone").unlink()
    clone(tmp_path / "one", tmp_path / "merged")
    lay(tmp_path / "two", tmp_path / "merged")
    os.removexattr(tmp_path / "merged/mine", "trusted.overlay.origin")
    with overlay(tmp_path / "view", tmp_path / "empty", tmp_path / "merged", tmp_path / "image") as view:
        assert os.listdir(view / "mine") == ["kept"]


def test_whiteouts_and_opaque_directories_are_kept(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "dir").mkdir(parents=True)
    os.setxattr(tree / "dir", "trusted.overlay.opaque", b"y")
    os.mknod(tree / "gone", 0o020000, os.makedev(0, 0))
    clone(tree, tmp_path / "clone")
    assert os.getxattr(tmp_path / "clone/dir", "trusted.overlay.opaque") == b"y"
    assert (tmp_path / "clone/gone").stat().st_rdev == 0
    assert (tmp_path / "clone/gone").is_char_device()


def test_a_device_node_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    os.mknod(tmp_path / "tree/null", 0o020666, os.makedev(1, 3))
    with pytest.raises(TreeRefused, match="null"):
        clone(tmp_path / "tree", tmp_path / "clone")


def test_directories_without_end_are_refused_and_leak_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    here = os.open(tmp_path / "tree", os.O_RDONLY)
    for _ in range(2100):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TreeRefused, match="2048 deep"):
        clone(tmp_path / "tree", tmp_path / "clone")
    assert len(os.listdir("/proc/self/fd")) <= before
    subprocess.run(["rm", "-rf", tmp_path / "tree", tmp_path / "clone", tmp_path / "clone.scratch"], check=True)


def test_a_name_of_a_file_outside_the_tree_leaves_nothing_in_scratch(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "outside").touch()
    os.link(tmp_path / "outside", tmp_path / "tree/inside")
    clone(tmp_path / "tree", tmp_path / "clone")
    assert (tmp_path / "clone/inside").stat().st_nlink == 1


class Stopped(Exception):
    pass


def test_a_copy_can_be_stopped_half_way(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for number in range(20):
        (tmp_path / f"tree/{number}").touch()
    left = iter(range(10))

    def check() -> None:
        if next(left, None) is None:
            raise Stopped

    for name in ("clone", "scratch"):
        (tmp_path / name).mkdir()
    places = opened(tmp_path / "tree", tmp_path / "clone", tmp_path / "scratch")
    with places as (source, target, scratch), pytest.raises(Stopped):
        clone_tree(source, target, scratch=scratch, check=check)
    assert 0 < len(list((tmp_path / "clone").iterdir())) < 20
