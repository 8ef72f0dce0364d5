"""A walk finds everything, follows nothing, and costs no more descriptors for a wide tree than for a narrow one."""

import os
import subprocess
from pathlib import Path

from sandboxd.trees.treewalk import walk


def names(top: Path) -> list[str]:
    directory = os.open(top, os.O_RDONLY)
    try:
        return [found.path for found in walk(directory)]
    finally:
        os.close(directory)


def test_everything_is_found_each_directory_before_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").touch()
    (tmp_path / "out").symlink_to("/")
    found = names(tmp_path)
    assert sorted(found) == ["a", "a/b", "a/b/c", "out"]
    assert found.index("a") < found.index("a/b") < found.index("a/b/c")


def test_directories_side_by_side_take_no_descriptors(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / str(number)).mkdir()
    before = len(os.listdir("/proc/self/fd"))
    directory = os.open(tmp_path, os.O_RDONLY)
    most = max(len(os.listdir("/proc/self/fd")) for _ in walk(directory))
    os.close(directory)
    assert most - before <= 4
    assert len(os.listdir("/proc/self/fd")) <= before


def test_what_goes_or_becomes_a_link_meanwhile_is_not_entered(tmp_path: Path) -> None:
    top, outside = tmp_path / "top", tmp_path / "outside"
    for place in (outside, top / "a", top / "b", top / "c"):
        place.mkdir(parents=True)
        (place / "file").touch()
    directory = os.open(top, os.O_RDONLY)
    found = []
    for each in walk(directory):
        found.append(each.path)
        subprocess.run(["rm", "-r", *top.glob("*")], check=True)
        (top / each.path).symlink_to(outside)
    os.close(directory)
    assert len(found) == 1  # the others were gone when their turn came, and this one was no directory any more


def test_a_tree_deeper_than_any_path_ends_and_leaks_no_descriptor(tmp_path: Path) -> None:
    script = "import os\nfor _ in range(2500):\n    os.mkdir('d')\n    os.chdir('d')\n"
    subprocess.run(["python3", "-c", script], cwd=tmp_path, check=True)
    before = len(os.listdir("/proc/self/fd"))
    try:
        assert len(names(tmp_path)) == 2048
        assert len(os.listdir("/proc/self/fd")) <= before
    finally:  # pytest could not remove it
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)
