"""Unpacking: nothing outside changes, whatever the archive; refusals say why; honest archives come out whole."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import shutil
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.trees.archive import unpack
from sandboxd.trees.tarstream import ArchiveError, ArchiveTooLarge, parse_pax
from sandboxd.trees.treedigest import digest_tree
from sandboxd.trees.treewriter import UnpackLimits, UnpackSummary
from tests.kernel.hostile_archives import archive, escapes, member, refused, unpack_naively

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files of other owners can only be made by root")

HOSTILE = settings(max_examples=150)


def unpack_bytes(data: bytes, target: Path, *, id_base: int = 0, limits: UnpackLimits | None = None) -> UnpackSummary:
    target.mkdir(exist_ok=True)
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return unpack(io.BytesIO(data), descriptor, id_base=id_base, limits=limits)
    finally:
        os.close(descriptor)


def digest_of(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return digest_tree(descriptor).sha256.hex()
    finally:
        os.close(descriptor)


def picture(directory: Path) -> list[tuple[str, int, int, int, bytes]]:
    """Everything about a directory that an escape could change, times of change included."""
    found = []
    for path in [directory, *sorted(directory.rglob("*"))]:
        about = path.lstat()
        contents = path.read_bytes() if stat.S_ISREG(about.st_mode) else b""
        found.append((str(path), about.st_mode, about.st_nlink, about.st_ctime_ns, contents))
    return found


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    directory = tmp_path / "victim"
    directory.mkdir()
    (directory / "precious").write_text("as it was")
    return directory


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "target"
    shutil.rmtree(tmp_path / "target", ignore_errors=True)


# -- hostile archives ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", sorted(escapes(Path("/victim"))))
def test_no_way_leads_out(way: str, victim: Path, target: Path) -> None:
    before = picture(victim)
    with pytest.raises(ArchiveError, match=r"^cannot unpack"):
        unpack_bytes(escapes(victim)[way], target)
    assert picture(victim) == before


@pytest.mark.parametrize("way", sorted(escapes(Path("/victim"))))
def test_every_way_leads_out_of_a_naive_extraction(way: str, victim: Path, target: Path) -> None:
    """The control: these archives are dangerous, and picture() would show it."""
    before = picture(victim)
    target.mkdir()
    unpack_naively(escapes(victim)[way], target)
    assert picture(victim) != before


@pytest.mark.parametrize("case", sorted(refused()))
def test_refusals_say_why(case: str, target: Path) -> None:
    data, reason = refused()[case]
    with pytest.raises(ArchiveError, match=reason):
        unpack_bytes(data, target)


names = st.lists(st.sampled_from(["a", "b", "c", ".", "..", "", "victim", "precious"]), min_size=1, max_size=5).map(
    "/".join
)
links = names | st.sampled_from(["{victim}", "{victim}/precious", "../victim", "../victim/precious", ".."])
members = st.builds(
    member,
    names,
    st.sampled_from(["file", "directory", "symlink", "symlink", "hardlink", "fifo", "character"]),
    link=links,
    mode=st.sampled_from([0o644, 0o4755, 0o777, 0]),
)


@HOSTILE
@given(st.lists(members, min_size=1, max_size=8))
def test_no_sequence_of_entries_leads_out(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    place = tmp_path_factory.mktemp("sequence")
    victim = place / "victim"
    victim.mkdir()
    (victim / "precious").write_text("as it was")
    before, siblings = picture(victim), set(place.iterdir())
    for info, _ in entries:
        info.linkname = info.linkname.replace("{victim}", str(victim))
    with contextlib.suppress(ArchiveError):
        unpack_bytes(archive(*entries), place / "target")
    assert picture(victim) == before
    assert set(place.iterdir()) - {place / "target"} == siblings
    for path in (place / "target").rglob("*"):
        assert not stat.S_ISCHR(path.lstat().st_mode)
    shutil.rmtree(place)


HONEST = archive(
    member("etc", "directory", mode=0o755),
    member("etc/passwd", data=b"root:x:0:0\n" * 30, uid=7, pax={"SCHILY.xattr.user.note": "kept"}),
    member("etc/link", "symlink", link="passwd"),
    member("etc/again", "hardlink", link="etc/passwd"),
    member("x" * 180, data=b"long"),
)


@HOSTILE
@given(
    cut=st.integers(0, len(HONEST)),
    changes=st.lists(st.tuples(st.integers(0, len(HONEST) - 1), st.integers(0, 255)), max_size=6),
)
def test_damaged_archives_are_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, cut: int, changes: list[tuple[int, int]]
) -> None:
    place = tmp_path_factory.mktemp("damaged")
    data = bytearray(HONEST)
    for position, value in changes:
        data[position] = value
    for header in range(0, len(data), 512):  # most damage would only be caught by the checksum: make it right again
        if data[header + 257 : header + 262] == b"ustar":
            data[header + 148 : header + 156] = b" " * 8
            data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
    with contextlib.suppress(ArchiveError):
        unpack_bytes(bytes(data[:cut]) if changes else bytes(data), place / "target")
    assert {path.name for path in place.iterdir()} <= {"target"}
    shutil.rmtree(place)


@HOSTILE
@given(st.binary(max_size=2000))
def test_junk_is_refused(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    place = tmp_path_factory.mktemp("junk")
    for prefix in (b"", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", HONEST[:512]):
        with pytest.raises(ArchiveError):
            unpack_bytes(prefix + junk, place)
    shutil.rmtree(place)


@given(st.binary(max_size=200))
def test_pax_headers_parse_or_are_refused(payload: bytes) -> None:
    with contextlib.suppress(ArchiveError):
        parse_pax(payload)


# -- limits -------------------------------------------------------------------------------------------------------


def test_sizes_are_bounded_before_they_are_written(target: Path) -> None:
    with pytest.raises(ArchiveTooLarge, match="more than 1000 bytes"):
        unpack_bytes(archive(member("a", data=bytes(1001))), target, limits=UnpackLimits(size=1000))
    assert not (target / "a").exists()
    unpack_bytes(archive(member("a", data=bytes(1000))), target, limits=UnpackLimits(size=1000))


def test_counts_are_bounded_with_the_directories_nobody_listed(target: Path) -> None:
    limits = UnpackLimits(entries=5)
    unpack_bytes(archive(member("a/b/c/d/e")), target, limits=limits)
    with pytest.raises(ArchiveTooLarge, match="more than 5 entries"):
        unpack_bytes(archive(member("f/b/c/d/e/g")), target, limits=limits)


def test_a_sparse_bomb_counts_as_large_as_it_looks(tmp_path: Path, target: Path) -> None:
    with open(tmp_path / "bomb", "wb") as file:
        file.truncate(1 << 40)
    data = subprocess.run(["tar", "-C", tmp_path, "-cS", "bomb"], capture_output=True, check=True).stdout
    assert len(data) < 100_000
    with pytest.raises(ArchiveTooLarge):
        unpack_bytes(data, target)


def test_a_compressed_bomb_stops_at_the_limit(target: Path) -> None:
    data = gzip.compress(archive(member("a", data=bytes(64 << 20))))
    assert len(data) < 100_000
    with pytest.raises(ArchiveTooLarge):
        unpack_bytes(data, target, limits=UnpackLimits(size=1 << 20))


def test_headers_are_bounded(target: Path) -> None:
    data = archive(member("a", pax={"comment": "x" * (1 << 20)}))
    with pytest.raises(ArchiveTooLarge, match="extended header"):
        unpack_bytes(data, target)


def test_a_header_that_promises_much_takes_no_memory(target: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    with pytest.raises(ArchiveTooLarge, match="extended header"):
        unpack_bytes(info.tobuf(tarfile.GNU_FORMAT), target)


# -- honest archives ----------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with one of everything an archive can hold."""
    root = tmp_path / "tree"
    deep = root.joinpath(*["directory-with-a-long-name"] * 12)
    deep.mkdir(parents=True)
    (deep / ("f" * 200)).write_bytes(os.urandom(100_000))
    (root / "empty").touch()
    (root / "ünïcode \n name").write_text("x")
    (root / os.fsdecode(b"\xff\xfe")).write_text("not utf-8")
    (root / "link").symlink_to("empty")
    (root / "dangling").symlink_to("/nowhere/" + "x" * 150)
    os.link(root / "empty", root / "hard")
    os.link(root / "link", root / "hard link to a link", follow_symlinks=False)
    os.mkfifo(root / "fifo", 0o640)
    for name, mode in (("setuid", 0o4755), ("closed", 0o000), ("sticky", 0o1777)):
        (root / name).touch()
        (root / name).chmod(mode)
    os.chown(root / "empty", 1000, 65535)
    os.setxattr(root / "empty", "user.note", b"\x00\xff kept")
    with open(root / "sparse", "wb") as file:
        for offset in range(0, 40 << 20, 4 << 20):
            file.seek(offset)
            file.write(os.urandom(5000))
        file.truncate(50 << 20)
    os.utime(root / "empty", ns=(1, 1_234_567_890_123_456_789))
    return root


@pytest.mark.parametrize("format_", ["gnu", "posix"])
@pytest.mark.parametrize("options", [(), ("--sparse",)], ids=["plain", "sparse"])
def test_what_tar_packs_comes_out_the_same(format_: str, options: tuple[str, ...], tree: Path, target: Path) -> None:
    if format_ == "gnu":
        os.removexattr(tree / "empty", "user.note")  # the older format cannot carry it
    command = ["tar", "-C", tree, f"--format={format_}", "--xattrs", "--numeric-owner", *options, "-c", "."]
    unpack_bytes(subprocess.run(command, capture_output=True, check=True).stdout, target)
    assert digest_of(target) == digest_of(tree)
    if format_ == "posix":
        assert (target / "empty").stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert abs(target.stat().st_mtime - tree.stat().st_mtime) < 1
    if options:
        assert (target / "sparse").stat().st_blocks < 2 * (tree / "sparse").stat().st_blocks


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_the_standard_library_packs_comes_out_the_same(format_: int, tree: Path, target: Path) -> None:
    os.removexattr(tree / "empty", "user.note")
    if format_ == tarfile.USTAR_FORMAT:
        shutil.rmtree(tree / "directory-with-a-long-name")
        (tree / "dangling").unlink()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as tar:
        tar.add(tree, ".")
    unpack_bytes(buffer.getvalue(), target)
    assert digest_of(target) == digest_of(tree)


def test_sparse_files_with_more_regions_than_a_header_holds(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with open(source / "file", "wb") as file:
        for number in range(100):
            file.seek(number * 100_000)
            file.write(b"%d" % number)
        file.truncate(100 * 100_000)
    for format_ in ("gnu", "posix"):
        command = ["tar", "-C", source, f"--format={format_}", "--sparse", "-c", "."]
        unpack_bytes(subprocess.run(command, capture_output=True, check=True).stdout, target)
        assert (target / "file").read_bytes() == (source / "file").read_bytes()


def test_owners_are_shifted_for_a_daemon_without_root(target: Path) -> None:
    data = archive(member("d", "directory", mode=0o755), member("d/a", uid=1000), member("l", "symlink", link="x"))
    unpack_bytes(data, target, id_base=1)
    assert (target / "d/a").stat().st_uid == 1001
    assert (target / "d").stat().st_uid == 1
    assert (target / "l").lstat().st_uid == 1


def test_devices_below_dev_and_foreign_attributes_are_left_out_and_counted(target: Path) -> None:
    data = archive(
        member("dev/sda", "block"),
        member("./dev/null", "character"),
        member("ping", pax={"SCHILY.xattr.security.capability": "\x01\x02", "SCHILY.xattr.user.kept": "yes"}),
    )
    summary = unpack_bytes(data, target)
    assert sum(summary.dropped.values()) == 3
    assert sorted(path.name for path in target.rglob("*")) == ["ping"]
    assert os.listxattr(target / "ping") == ["user.kept"]


def test_a_later_file_replaces_an_earlier_one_and_not_its_other_names(target: Path) -> None:
    data = archive(member("a", data=b"old"), member("b", "hardlink", link="a"), member("a", data=b"new"))
    unpack_bytes(data, target)
    assert (target / "a").read_bytes() == b"new"
    assert (target / "b").read_bytes() == b"old"


def test_directories_nobody_listed_belong_to_root(target: Path) -> None:
    unpack_bytes(archive(member("a/b/c", uid=5)), target)
    about = (target / "a/b").stat()
    assert (stat.S_IMODE(about.st_mode), about.st_uid) == (0o755, 0)


# -- compression --------------------------------------------------------------------------------------------------


def compress_with_zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-c"], input=data, capture_output=True, check=True).stdout


COMPRESSORS = {
    "none": bytes,
    "gzip": gzip.compress,
    "gzip in members": lambda data: gzip.compress(data[:3000]) + gzip.compress(data[3000:]),
    "bzip2": bz2.compress,
    "bzip2 in streams": lambda data: bz2.compress(data[:3000]) + bz2.compress(data[3000:]),
    "xz": lzma.compress,
    "xz, padded": lambda data: lzma.compress(data) + bytes(8),
    "zstd": compress_with_zstd,
}


@pytest.mark.parametrize("how", sorted(COMPRESSORS))
def test_compressed_archives_are_recognized(how: str, target: Path) -> None:
    data = os.urandom(2 << 20)
    unpack_bytes(COMPRESSORS[how](archive(member("a", data=data), member("b"))), target)
    assert (target / "a").read_bytes() == data
    assert (target / "b").exists()


@pytest.mark.parametrize("how", sorted(COMPRESSORS))
def test_compressed_archives_that_are_cut_short_are_refused(how: str, target: Path) -> None:
    whole = COMPRESSORS[how](archive(member("a", data=os.urandom(100_000)), member("b", data=os.urandom(100_000))))
    with pytest.raises(ArchiveError):
        unpack_bytes(whole[: len(whole) // 2], target)


@pytest.mark.parametrize("how", sorted(COMPRESSORS))
def test_an_archive_may_come_through_a_pipe(how: str, target: Path) -> None:
    data = COMPRESSORS[how](archive(member("a", data=os.urandom(1 << 20))))
    target.mkdir()
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as archive_, os.fdopen(write_end, "wb") as pipe:
        writer = threading.Thread(target=lambda: (pipe.write(data), pipe.close()))
        writer.start()
        descriptor = os.open(target, os.O_RDONLY)
        try:
            unpack(archive_, descriptor)
        finally:
            os.close(descriptor)
            while archive_.read(1 << 16):
                pass
            writer.join()
    assert (target / "a").stat().st_size == 1 << 20


def test_xz_may_not_ask_for_any_memory(target: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    data = lzma.compress(archive(member("a")), filters=filters)
    with pytest.raises(ArchiveError, match="compression"):
        unpack_bytes(data, target)
