"""The census counts what this run has made, all of it, and nothing that others of the machine do meanwhile."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.kernel.cgroup_tree import discover_cgroups
from tests.support import census
from tests.support.daemon import CHECKOUT, Daemon

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts something")

# In a mount namespace of its own, or the censuses of other runs would see it.
MOUNT_AND_LOOK = """
import json, subprocess, sys
from pathlib import Path
from sandboxd.kernel.cgroup_tree import discover_cgroups
from tests.support import census
census.directories.add(sys.argv[1])
before = census.take()
subprocess.run(["mount", *sys.argv[2:]], check=True)
print(json.dumps(census.take().grown_since(before)))
"""


def growth(*words: str | Path) -> dict[str, list[str]]:
    """What a census sees of one mount, which `mount` makes of these words, if this run's directory is the first."""
    alone = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", MOUNT_AND_LOOK]
    done = subprocess.run([*alone, *map(str, words)], cwd=CHECKOUT, check=True, stdout=subprocess.PIPE)
    return dict(json.loads(done.stdout))


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    for name in ("ours", "ours/upper", "ours/work", "ours/a b"):
        (tmp_path / name).mkdir()
    return tmp_path / "ours"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    for name in ("ours-not", "ours-not/lower"):
        (tmp_path / name).mkdir()
    return tmp_path / "ours-not"


@needs_root
def test_a_foreign_mount_is_not_counted(ours: Path, foreign: Path) -> None:
    assert growth(ours, "-t", "tmpfs", "none", foreign) == {}
    assert growth(ours, "--bind", foreign, foreign / "lower") == {}


@needs_root
def test_a_mount_is_counted_that_lies_in_our_directory_or_shows_it(ours: Path, foreign: Path) -> None:
    assert growth(ours, "-t", "tmpfs", "none", ours / "a b") == {"mounts": [f"/ {ours}/a b"]}
    assert growth(ours, "--bind", foreign, ours)["mounts"][0].endswith(f" {ours}")
    assert growth(ours, "--bind", ours / "upper", foreign)["mounts"][0].endswith(f" {foreign}")
    layers = f"lowerdir={foreign}/lower,upperdir={ours}/upper,workdir={ours}/work"
    assert growth(ours, "-t", "overlay", "none", "-o", layers, foreign) == {"mounts": [f"/ {foreign}"]}


@needs_root
def test_what_only_sandboxd_mounts_is_counted_wherever_it_is(ours: Path, foreign: Path) -> None:
    assert growth(ours, "-t", "tmpfs", "stage", foreign) == {"mounts": [f"/ {foreign}"]}


def test_a_part_of_a_file_system_is_ours_by_its_path_in_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the temporary directory is a file system of its own, the root of such a mount does not begin with it."""
    monkeypatch.setattr(census, "directories", {"/tmp/run"})
    monkeypatch.setattr(os.path, "ismount", lambda path: path in {"/", "/tmp"})
    shown = "100 27 0:40 /run/upper /elsewhere rw - tmpfs tmpfs rw"
    other = "101 27 0:40 /running /elsewhere rw - tmpfs tmpfs rw"
    assert list(census.our_mounts(f"{shown}\n{other}\n")) == ["/run/upper /elsewhere"]


def test_all_kinds_of_remains_are_found_and_go_with_what_left_them() -> None:
    before = census.take()
    with subprocess.Popen(["sleep", "600"]) as process, tempfile.NamedTemporaryFile() as file:
        try:
            grown = census.take().grown_since(before)
        finally:
            process.kill()
    assert grown == {
        "processes": [f"{process.pid} sleep 600"],
        "descriptors": [file.name],
        "files": [Path(file.name).name],
    }
    assert census.settled_growth(before) == {}


def test_processes_of_another_run_are_not_counted() -> None:
    before = census.take()
    environment = {**os.environ, census.RUN: "another"}
    with subprocess.Popen(["sleep", "600"], env=environment) as process:
        try:
            assert census.take().grown_since(before) == {}
        finally:
            process.kill()


@pytest.fixture
def another_daemons_cgroup() -> Iterator[Path]:
    root = discover_cgroups().root
    if root is None:
        pytest.skip("there is no place for cgroups")
    other = root / f"sandboxd-other-{os.getpid()}"
    other.mkdir()
    yield other
    other.rmdir()


def test_cgroups_are_counted_by_the_name_of_a_daemon(another_daemons_cgroup: Path, tmp_path: Path) -> None:
    before = census.take()
    (another_daemons_cgroup / "sandbox").mkdir()
    try:
        assert census.take().grown_since(before) == {}
        own = another_daemons_cgroup.with_name(Daemon(tmp_path, tmp_path).cgroup_name)
        own.mkdir()
        try:
            assert census.take().grown_since(before) == {"cgroups": [str(own)]}
        finally:
            own.rmdir()
    finally:
        (another_daemons_cgroup / "sandbox").rmdir()
