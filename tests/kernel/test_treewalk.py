"""A walk finds everything, follows nothing, and costs no more descriptors for a wide tree than for a narrow one."""

import os
import subprocess
from pathlib import Path

from sandboxd.kernel.treewalk import walk


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
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_goes_meanwhile_is_passed_over(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    directory = os.open(tmp_path, os.O_RDONLY)
    found = []
    for each in walk(directory):
        found.append(each.path)
        subprocess.run(["rm", "-r", *tmp_path.glob("*")], check=True)
        (tmp_path / "c").symlink_to("/")
    os.close(directory)
    assert set(found) <= {"a", "b", "c"}
    assert not any("/" in path for path in found)


def test_a_tree_deeper_than_any_path_ends_and_leaks_no_descriptor(tmp_path: Path) -> None:
    script = "import os\nfor _ in range(2500):\n    os.mkdir('d')\n    os.chdir('d')\n"
    subprocess.run(["python3", "-c", script], cwd=tmp_path, check=True)
    before = len(os.listdir("/proc/self/fd"))
    assert len(names(tmp_path)) == 2048
    assert len(os.listdir("/proc/self/fd")) == before
    subprocess.run(["rm", "-r", tmp_path / "d"], check=True)
