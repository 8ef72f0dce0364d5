"""The flag by which ext4 spreads directories, as lsattr(1) shows it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from sandboxd.kernel.inodeflags import spread_subdirectories


def attributes(directory: Path) -> str:
    return subprocess.run(["lsattr", "-d", directory], capture_output=True, text=True, check=True).stdout.split()[0]


@pytest.mark.skipif(shutil.which("lsattr") is None, reason="needs lsattr (package e2fsprogs)")
def test_ext4_is_told_to_spread_the_subdirectories(tmp_path: Path) -> None:
    try:
        before = attributes(tmp_path)
    except subprocess.CalledProcessError:
        pytest.skip("this file system has no such flags")
    assert "T" not in before
    spread_subdirectories(tmp_path)
    spread_subdirectories(tmp_path)
    assert "T" in attributes(tmp_path)
    (tmp_path / "below").mkdir()
    assert "T" not in attributes(tmp_path / "below")


def test_where_there_is_no_such_flag_nothing_happens() -> None:
    spread_subdirectories(Path("/dev/shm"))
    spread_subdirectories(Path("/proc"))
