"""cp, both ways: files, directories, standard streams, and its refusals."""

import os
import stat
from pathlib import Path

import pytest

from tests.cli.support import Ctl

MIB = 1024 * 1024


def test_a_file_goes_in_and_comes_out_whole(ctl: Ctl, sandbox: str, tmp_path: Path) -> None:
    data = os.urandom(3 * MIB)
    (tmp_path / "file").write_bytes(data)
    ctl.text("cp", str(tmp_path / "file"), f"{sandbox}:/tmp/copy")
    ctl.text("cp", f"{sandbox}:/tmp/copy", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data


def test_permissions_go_along(ctl: Ctl, sandbox: str, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\necho hello\n")
    (tmp_path / "script").chmod(0o755)
    ctl.text("cp", str(tmp_path / "script"), f"{sandbox}:")
    assert ctl.text("exec", sandbox, "./script") == "hello\n"
    ctl.text("cp", f"{sandbox}:script", str(tmp_path / "back"))
    assert stat.S_IMODE((tmp_path / "back").stat().st_mode) == 0o755


def test_a_copy_goes_into_a_directory_that_exists(ctl: Ctl, sandbox: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in")
    (tmp_path / "down").mkdir()
    ctl.text("cp", str(tmp_path / "file"), f"{sandbox}:/tmp")
    ctl.text("cp", f"{sandbox}:/tmp/file", str(tmp_path / "down"))
    assert (tmp_path / "down/file").read_text() == "in"


def test_standard_streams(ctl: Ctl, sandbox: str) -> None:
    data = os.urandom(MIB)
    assert ctl.run("cp", "-", f"{sandbox}:/tmp/piped", stdin=data).returncode == 0
    assert ctl.run("cp", f"{sandbox}:/tmp/piped", "-").stdout == data


def test_a_file_comes_out_to_a_device(ctl: Ctl, sandbox: str) -> None:
    before = os.stat("/dev/null")
    ctl.text("cp", f"{sandbox}:/etc/passwd", "/dev/null")
    assert os.stat("/dev/null").st_rdev == before.st_rdev


def test_a_directory_goes_in_and_comes_out(ctl: Ctl, sandbox: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep/er").mkdir(parents=True)
    (tree / "deep/er/file").write_bytes(os.urandom(MIB))
    (tree / "link").symlink_to("deep/er")
    ctl.text("cp", str(tree), f"{sandbox}:/tmp/copy")
    assert ctl.text("exec", sandbox, "stat", "-c", "%U", "/tmp/copy/deep/er/file") == "user\n"
    ctl.text("cp", f"{sandbox}:/tmp/copy", str(tmp_path / "back"))
    assert (tmp_path / "back/link/file").read_bytes() == (tree / "deep/er/file").read_bytes()


def test_a_directory_goes_into_one_that_exists(ctl: Ctl, sandbox: str, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_text("in")
    ctl.text("cp", ".", f"{sandbox}:/tmp", cwd=tmp_path / "tree")
    assert ctl.text("exec", sandbox, "cat", "/tmp/tree/file") == "in"
    (tmp_path / "down").mkdir()
    ctl.text("cp", f"{sandbox}:/tmp/tree/", str(tmp_path / "down"))
    assert (tmp_path / "down/tree/file").read_text() == "in"


def test_directories_need_no_tar_in_the_sandbox(ctl: Ctl, sandbox: str, tmp_path: Path) -> None:
    ctl.text("exec", "-u", "root", sandbox, "sh", "-c", 'rm -f "$(command -v tar)"')
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_text("in")
    ctl.text("cp", str(tmp_path / "tree"), f"{sandbox}:/tmp/tree")
    ctl.text("cp", f"{sandbox}:/tmp/tree", str(tmp_path / "back"))
    assert (tmp_path / "back/file").read_text() == "in"


def test_a_directory_that_may_not_be_read_is_named(ctl: Ctl, sandbox: str, tmp_path: Path) -> None:
    ctl.text("exec", "-u", "root", sandbox, "sh", "-c", "mkdir -p /tmp/d/a && mkdir -m 700 /tmp/d/secret")
    done = ctl.run("cp", f"{sandbox}:/tmp/d", str(tmp_path / "d"))
    assert done.returncode == 1
    assert 'cannot pack \\"secret\\": Permission denied' in done.stderr.decode().replace('"', '\\"')


def test_special_files_are_left_out_with_a_word(ctl: Ctl, sandbox: str, tmp_path: Path) -> None:
    ctl.text("exec", sandbox, "sh", "-c", "mkdir /tmp/d && mkfifo /tmp/d/pipe && touch /tmp/d/file")
    done = ctl.run("cp", f"{sandbox}:/tmp/d", str(tmp_path / "d"))
    assert done.returncode == 0
    assert b"1 special files" in done.stderr
    assert os.listdir(tmp_path / "d") == ["file"]


def test_a_large_directory_goes_through_in_both_directions(ctl: Ctl, sandbox: str, tmp_path: Path) -> None:
    """More than any window or pipe on the way holds."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(20):
        (tree / str(number)).write_bytes(os.urandom(MIB))
    ctl.text("cp", str(tree), f"{sandbox}:/tmp/tree")
    ctl.text("cp", f"{sandbox}:/tmp/tree", str(tmp_path / "back"))
    for file in tree.iterdir():
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()


def test_a_download_that_fails_leaves_what_was_there(ctl: Ctl, sandbox: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    assert ctl.run("cp", f"{sandbox}:/etc/shadow", str(tmp_path / "file")).returncode == 1
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("{box}:/nonesuch", "{tmp}/x", "there is no such file"),
        ("{tmp}/nonesuch", "{box}:/tmp/x", "cannot read"),
        ("{tmp}", "{box}:/etc/passwd", "is not a directory"),
        ("{box}:/etc", "-", "it is a directory"),
        ("{box}:/etc/passwd", "{tmp}/none/such", "cannot write"),
        ("{tmp}", "{box}:/root/x", "Permission denied"),
        ("/etc/passwd", "{box}:/root/x", "cannot"),
        ("/etc/passwd", "nonesuch:/tmp/x", "cannot find sandbox"),
    ],
)
def test_what_cannot_be_copied_is_said_in_a_sentence(
    ctl: Ctl, sandbox: str, tmp_path: Path, source: str, target: str, words: str
) -> None:
    places = {"box": sandbox, "tmp": str(tmp_path)}
    done = ctl.run("cp", source.format(**places), target.format(**places))
    assert done.returncode == 1
    assert done.stderr.startswith(b"sandboxctl: cannot ")
    assert words in done.stderr.decode()


@pytest.mark.parametrize("arguments", [("a", "b"), ("x:/a", "y:/b"), ("./x:a", "b"), ("x:/a",)])
def test_wrong_use_is_status_2(ctl: Ctl, arguments: tuple[str, ...]) -> None:
    assert ctl.run("cp", *arguments).returncode == 2
