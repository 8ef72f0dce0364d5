"""The archives that the encoders write, read back by others; zip archives that strangers made."""

import contextlib
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.trees.tarencode import TarEncoder
from sandboxd.trees.tarstream import ArchiveError, ArchiveTooLarge, EntryType, TarEntry, TarReader
from sandboxd.trees.zipencode import ZipEncoder
from sandboxd.trees.zipread import MAX_DIRECTORY, MAX_ENTRIES, ZipReader

SECOND = 1_000_000_000
components = st.binary(min_size=1, max_size=90).filter(
    lambda name: not set(name) & {0, ord("/")} and name not in {b".", b".."}
)
paths = st.lists(components, min_size=1, max_size=5).map(b"/".join)


def file_entry(path: bytes, size: int, **more: object) -> TarEntry:
    facts = {"mode": 0o640, "uid": 1, "gid": 2, "mtime_ns": 1_600_000_000 * SECOND, **more}
    return TarEntry(path=path, type=EntryType.FILE, size=size, **facts)  # type: ignore[arg-type]


def other(path: bytes, kind: EntryType, link: bytes = b"") -> TarEntry:
    return TarEntry(
        path=path, type=kind, mode=0o755, uid=0, gid=0, mtime_ns=1_600_000_000 * SECOND, size=0, link=link
    )


def encoded(encoder: TarEncoder | ZipEncoder, entries: Iterable[tuple[TarEntry, bytes]]) -> bytes:
    parts = []
    for entry, data in entries:
        parts.append(encoder.begin(entry))
        if entry.type is EntryType.FILE:
            half = len(data) // 2
            parts += [encoder.content(data[:half]), encoder.content(data[half:])]
        parts.append(encoder.end())
    return b"".join([*parts, encoder.finish()])


def read_back(reader: TarReader | ZipReader) -> list[tuple[TarEntry, bytes]]:
    return [
        (entry, b"".join(data for _, data in reader.segments()) if entry.type is EntryType.FILE else b"")
        for entry in reader
    ]


files = st.lists(st.tuples(paths, st.binary(max_size=2000)), max_size=6, unique_by=lambda item: item[0])


@given(files)
def test_tar_round_trip(contents: list[tuple[bytes, bytes]]) -> None:
    entries = [(file_entry(path, len(data)), data) for path, data in contents]
    data = encoded(TarEncoder(), entries)
    assert len(data) % 512 == 0
    if entries:
        assert read_back(TarReader(io.BytesIO(data))) == entries
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert [member.name.encode("utf-8", "surrogateescape") for member in archive] == [
                entry.path.rstrip(b"/") for entry, _ in entries
            ]


@given(files)
def test_zip_round_trip(contents: list[tuple[bytes, bytes]]) -> None:
    entries = [(file_entry(path, len(data), uid=0, gid=0), data) for path, data in contents]
    data = encoded(ZipEncoder(), entries)
    assert read_back(ZipReader(io.BytesIO(data))) == entries
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert len(archive.infolist()) == len(entries)


@pytest.mark.parametrize("encoder", [TarEncoder, ZipEncoder])
def test_all_that_is_no_file(encoder: type[TarEncoder | ZipEncoder]) -> None:
    entries = [
        (other(b"d", EntryType.DIRECTORY), b""),
        (other(b"d/link", EntryType.SYMLINK, b"../\xff"), b""),
        (file_entry(b"d/empty", 0, uid=0, gid=0), b""),
    ]
    data = encoded(encoder(), [*entries, (other(b"dev", EntryType.CHARACTER_DEVICE), b"")])
    reader = TarReader(io.BytesIO(data)) if encoder is TarEncoder else ZipReader(io.BytesIO(data))
    found = read_back(reader)
    assert [(entry.path.rstrip(b"/"), entry.type, entry.link) for entry, _ in found] == [
        (entry.path, entry.type, entry.link) for entry, _ in entries
    ]


def test_hard_links_of_a_tar() -> None:
    entries = [(file_entry(b"a", 1), b"x"), (other(b"b", EntryType.HARDLINK, b"a"), b"")]
    (_, _), (link, _) = read_back(TarReader(io.BytesIO(encoded(TarEncoder(), entries))))
    assert (link.type, link.path, link.link) == (EntryType.HARDLINK, b"b", b"a")


def test_a_tar_that_ends_early_says_why() -> None:
    encoder = TarEncoder()
    data = encoder.begin(file_entry(b"a", 3)) + b"abc" + encoder.end() + encoder.fail("cannot read x: no rights")
    with pytest.raises(ArchiveError, match="cannot read x: no rights"):
        read_back(TarReader(io.BytesIO(data)))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive, pytest.raises(tarfile.ReadError):
        archive.getnames()


def test_zip_of_more_than_32_bits() -> None:
    """The sizes and offsets are told without the gigabytes between them."""
    encoder = ZipEncoder()
    large = 5 << 30
    head = encoder.begin(file_entry(b"large", large))
    piece = bytes(1 << 26)
    stored = b"".join(encoder.content(piece) for _ in range(large >> 26))
    data = head + stored + encoder.end() + encoded_rest(encoder)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        big, small = archive.infolist()
        assert (big.file_size, small.file_size) == (large, 2)
        assert archive.read("small") == b"ok"


def encoded_rest(encoder: ZipEncoder) -> bytes:
    return encoded(encoder, [(file_entry(b"small", 2), b"ok")])


def zip_of(*names: str, mode: int = stat.S_IFREG | 0o644, **changes: object) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            for key, value in changes.items():
                setattr(info, key, value)
            archive.writestr(info, b"x" * 100)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\5\6",
        b"nonsense" * 100,
        zip_of("a")[:-30],
        zip_of("a")[10:],
        zip_of("a").replace(b"x" * 50, b"y" * 50),
        zip_of("a", mode=stat.S_IFLNK | 0o777).replace(b"\x64\0\0\0", b"\xff\xff\xff\x7f"),
        struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 46, 0, 0),
    ],
)
def test_damaged_zips_are_refused(data: bytes) -> None:
    with pytest.raises(ArchiveError, match=r"^cannot unpack "):
        read_back(ZipReader(io.BytesIO(data)))


@pytest.mark.parametrize(("count", "size"), [(MAX_ENTRIES + 1, 46), (1, MAX_DIRECTORY + 1)])
def test_figures_beyond_the_limits_are_refused_before_they_are_believed(count: int, size: int) -> None:
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    with pytest.raises(ArchiveTooLarge, match="use tar"):
        ZipReader(io.BytesIO(end64 + locator + end))


@given(st.binary(max_size=300), st.integers(0, 400), st.binary(max_size=8))
def test_garbage_zips_raise_nothing_but_archive_errors(junk: bytes, at: int, change: bytes) -> None:
    good = zip_of("a/b", "c")
    for data in (junk, good[:at] + change + good[at + len(change) :], junk + good):
        with contextlib.suppress(ArchiveError):
            read_back(ZipReader(io.BytesIO(data)))


def test_encrypted_zips_are_refused() -> None:
    data = bytearray(zip_of("a"))
    data[data.index(b"PK\1\2") + 8] |= 1
    with pytest.raises(ArchiveError, match="encrypted"):
        read_back(ZipReader(io.BytesIO(bytes(data))))
