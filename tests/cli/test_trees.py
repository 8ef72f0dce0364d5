"""Unpacking what a sandbox sent: kept whole, and kept inside the directory it is for."""

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from sandboxd.cli.trees import pack, unpack
from sandboxd.trees.tarstream import ArchiveError


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The directory to fill; its parent is what nothing may touch."""
    (tmp_path / "outside").write_text("untouched")
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def archive(*members: tuple[str, dict[str, object]]) -> io.BytesIO:
    """Members by name and what differs from a plain file with one byte in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, facts in members:
            member = tarfile.TarInfo(name)
            member.mode = 0o644
            for key, value in facts.items():
                setattr(member, key, value)
            if member.type == tarfile.REGTYPE:
                member.size = 1
                tar.addfile(member, io.BytesIO(b"x"))
            else:
                tar.addfile(member)
    buffer.seek(0)
    return buffer


def symlink(target: str) -> dict[str, object]:
    return {"type": tarfile.SYMTYPE, "linkname": target}


def hardlink(target: str) -> dict[str, object]:
    return {"type": tarfile.LNKTYPE, "linkname": target}


DIRECTORY = {"type": tarfile.DIRTYPE, "mode": 0o755}


def test_a_tree_survives_the_journey(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source"
    (source / "deep/er").mkdir(parents=True)
    (source / "deep/er/file").write_bytes(os.urandom(300_000))
    (source / "script").write_text("#!/bin/sh\n")
    (source / "script").chmod(0o755)
    (source / "twin").hardlink_to(source / "script")
    (source / "link").symlink_to("/etc/passwd")
    (source / "empty").mkdir(mode=0o500)
    os.mkfifo(source / "pipe")
    os.utime(source / "script", (1, 1))
    buffer = io.BytesIO()

    assert pack(source, buffer) == {"special files": 1}
    buffer.seek(0)
    assert unpack(buffer, target) == {}

    assert (target / "deep/er/file").read_bytes() == (source / "deep/er/file").read_bytes()
    assert stat.S_IMODE((target / "script").stat().st_mode) == 0o755
    assert (target / "script").stat().st_mtime == 1
    assert (target / "twin").samefile(target / "script")
    assert os.readlink(target / "link") == "/etc/passwd"
    assert stat.S_IMODE((target / "empty").stat().st_mode) == 0o500
    assert not (target / "pipe").exists()


@pytest.mark.parametrize(
    "members",
    [
        [("../outside", {})],
        [("a/../../outside", {})],
        [("link", symlink("..")), ("link/outside", {})],
        [("link", symlink("/tmp")), ("link/outside", {})],
        [("a", symlink("b")), ("b", symlink("..")), ("a/outside", {})],
        [("twin", hardlink("../outside"))],
        [("up", symlink("..")), ("twin", hardlink("up/outside"))],
        [("up", symlink("..")), ("up", DIRECTORY), ("up/outside", {})],
    ],
)
def test_no_name_leads_out(target: Path, members: list[tuple[str, dict[str, object]]]) -> None:
    with pytest.raises((ArchiveError, OSError)):
        unpack(archive(*members), target)
    assert (target.parent / "outside").read_text() == "untouched"
    assert sorted(os.listdir(target.parent)) == ["outside", "target"]


def test_an_absolute_name_stays_below_the_directory(target: Path) -> None:
    unpack(archive(("/etc/passwd", {})), target)
    assert (target / "etc/passwd").read_bytes() == b"x"


def test_a_link_in_the_way_is_replaced_not_followed(target: Path) -> None:
    (target / "file").symlink_to("../outside")
    unpack(archive(("file", {})), target)
    assert not (target / "file").is_symlink()
    assert (target.parent / "outside").read_text() == "untouched"


def test_a_hard_link_to_a_symbolic_link_is_to_the_link_itself(target: Path) -> None:
    unpack(archive(("link", symlink("../outside")), ("twin", hardlink("link"))), target)
    assert (target / "twin").is_symlink()


def test_no_setuid_bit_comes_along(target: Path) -> None:
    unpack(archive(("program", {"mode": 0o6755})), target)
    assert stat.S_IMODE((target / "program").stat().st_mode) == 0o755


def test_the_umask_holds(target: Path) -> None:
    before = os.umask(0o077)
    try:
        unpack(archive(("file", {"mode": 0o666}), ("directory", DIRECTORY)), target)
    finally:
        os.umask(before)
    assert stat.S_IMODE((target / "file").stat().st_mode) == 0o600
    assert stat.S_IMODE((target / "directory").stat().st_mode) == 0o700


def test_devices_and_fifos_are_left_out(target: Path) -> None:
    device = {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}
    assert unpack(archive(("null", device), ("pipe", {"type": tarfile.FIFOTYPE})), target) == {"special files": 2}
    assert os.listdir(target) == []


def test_files_may_lie_in_a_directory_that_is_read_only(target: Path) -> None:
    unpack(archive(("locked", {**DIRECTORY, "mode": 0o555}), ("locked/file", {})), target)
    assert (target / "locked/file").exists()
    assert stat.S_IMODE((target / "locked").stat().st_mode) == 0o555


@pytest.mark.parametrize("length", [0, 100, 512, 1000])
def test_a_broken_archive_is_an_error(target: Path, length: int) -> None:
    whole = archive(("a", {}), ("b", {})).getvalue()
    with pytest.raises(ArchiveError):
        unpack(io.BytesIO(whole[:length]), target)


def test_no_descriptor_is_left_open(target: Path) -> None:
    before = os.listdir("/proc/self/fd")
    unpack(archive(("a/b/c", {}), ("a/d", {})), target)
    with pytest.raises(ArchiveError):
        unpack(archive(("x", {}), ("../y", {})), target)
    assert os.listdir("/proc/self/fd") == before
