"""Reads zip archives that strangers made, from a file that can seek.

The standard library's zipfile does the parsing. It believes the archive's own figures: the size of the central
directory, which it reads whole, and the number of entries, for each of which it makes an object. Both are looked at
here first.
"""

import calendar
import lzma
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Final

from sandboxd.trees.tarstream import CHUNK, ArchiveError, ArchiveTooLarge, EntryType, TarEntry, show

MAX_ENTRIES: Final = 100_000
MAX_DIRECTORY: Final = 64 << 20
MAX_LINK: Final = 4095
_EOCD: Final = struct.Struct("<4s4H2LH")
_LOCATOR64: Final = struct.Struct("<4sLQL")
_EOCD64: Final = struct.Struct("<4sQ2H2L4Q")
_MAX_COMMENT: Final = 0xFFFF
_UTF8: Final = 0x800
_ENCRYPTED: Final = 0x1
_UNIX: Final = 3
# What zipfile raises for archives that lie.
_FAULTS: Final = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)


class ZipReader:
    """Iterate for the entries; read an entry's data with segments() before taking the next one.

    Raises: ArchiveError, ArchiveTooLarge.
    """

    def __init__(self, file: IO[bytes]) -> None:
        _check_figures(file)
        try:
            self._zip = zipfile.ZipFile(file)
        except _FAULTS as error:
            raise ArchiveError(f"cannot unpack the archive: {error}") from error
        self._current: zipfile.ZipInfo

    def __iter__(self) -> Iterator[TarEntry]:
        for info in self._zip.infolist():
            self._current = info
            yield self._entry(info)

    def segments(self) -> Iterator[tuple[int, bytes]]:
        """The current file's data as (offset in the file, bytes)."""
        offset = 0
        for data in self._data(self._current):
            yield offset, data
            offset += len(data)

    def _entry(self, info: zipfile.ZipInfo) -> TarEntry:
        path = _name(info)
        mode = info.external_attr >> 16 if info.create_system == _UNIX else 0
        kind = _type(path, info, mode)
        link = b""
        if kind is EntryType.SYMLINK:
            if info.file_size > MAX_LINK:
                raise ArchiveError(f"cannot unpack {show(path)}: it is a link of {info.file_size} bytes")
            link = b"".join(self._data(info))
        return TarEntry(
            path=path.rstrip(b"/") or b".",
            type=kind,
            mode=stat.S_IMODE(mode) if mode else 0o755 if kind is EntryType.DIRECTORY else 0o644,
            uid=0,
            gid=0,
            mtime_ns=_seconds(info) * 1_000_000_000,
            size=info.file_size if kind is EntryType.FILE else 0,
            link=link,
        )

    def _data(self, info: zipfile.ZipInfo) -> Iterator[bytes]:
        left = info.file_size
        try:
            with self._zip.open(info) as content:
                while data := content.read(CHUNK):
                    left -= len(data)
                    yield data
        except _FAULTS as error:
            raise ArchiveError(f"cannot unpack {show(_name(info))}: {error}") from error
        if left:
            raise ArchiveError(f"cannot unpack {show(_name(info))}: it is not as long as it says")


def _type(path: bytes, info: zipfile.ZipInfo, mode: int) -> EntryType:
    if info.flag_bits & _ENCRYPTED:
        raise ArchiveError(f"cannot unpack {show(path)}: it is encrypted")
    if stat.S_ISLNK(mode):
        return EntryType.SYMLINK
    if path.endswith(b"/") or stat.S_ISDIR(mode):
        return EntryType.DIRECTORY
    if stat.S_IFMT(mode) in {0, stat.S_IFREG}:
        return EntryType.FILE
    return EntryType.FIFO if stat.S_ISFIFO(mode) else EntryType.CHARACTER_DEVICE


def _name(info: zipfile.ZipInfo) -> bytes:
    """The bytes that the archive has: without the UTF-8 flag Unix tools store names as they are."""
    name = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437", "surrogateescape")
    if b"\0" in name:
        raise ArchiveError(f"cannot unpack {show(name)}: its name contains a NUL byte")
    return name


def _seconds(info: zipfile.ZipInfo) -> int:
    try:
        return calendar.timegm((*info.date_time, 0, 0, 0))
    except ValueError:
        return 0


def _check_figures(file: IO[bytes]) -> None:
    """Raises: ArchiveError when there is no end of a zip archive, ArchiveTooLarge when it announces too much."""
    length = file.seek(0, os.SEEK_END)
    start = max(0, length - _EOCD.size - _MAX_COMMENT)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _EOCD.size:
        raise ArchiveError("cannot unpack the archive: it is not a zip archive, or its end is missing")
    *_, count, size, _offset, _comment = _EOCD.unpack_from(tail, at)
    if at >= _LOCATOR64.size and tail[at - _LOCATOR64.size :].startswith(b"PK\6\7"):
        # Where zipfile looks for it, whatever offset the locator tells.
        count, size = _figures64(file, start + at - _LOCATOR64.size - _EOCD64.size)
    if count > MAX_ENTRIES or size > MAX_DIRECTORY:
        raise ArchiveTooLarge(
            f"cannot unpack the archive: {count} entries in a directory of {size} bytes are over the limits of "
            f"{MAX_ENTRIES} and {MAX_DIRECTORY}; use tar"
        )


def _figures64(file: IO[bytes], offset: int) -> tuple[int, int]:
    if offset < 0:
        raise ArchiveError("cannot unpack the archive: its end is damaged")
    file.seek(offset)
    fields = _EOCD64.unpack(file.read(_EOCD64.size))
    return fields[7], fields[8]
