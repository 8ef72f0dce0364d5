"""Writes zip archives piece by piece, without I/O and without going back.

Not the standard library's zipfile: it keeps an object for every entry until the end, and cannot say names that are
not UTF-8. Sizes and checksums follow the content (data descriptors); zip64 where 32 bits do not suffice. Names are
APPNOTE's: LFH is a local file header, CDH the same entry's record in the central directory at the end.
"""

import stat
import struct
import time
import zlib
from dataclasses import dataclass
from typing import Final

from sandboxd.trees.tarstream import EntryType, TarEntry

_LFH: Final = struct.Struct("<4s5H3L2H")
_CDH: Final = struct.Struct("<4s6H3L5H2L")
_DESCRIPTOR: Final = struct.Struct("<4s3L")
_DESCRIPTOR64: Final = struct.Struct("<4sL2Q")
_EOCD64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64: Final = struct.Struct("<4sLQL")
_EOCD: Final = struct.Struct("<4s4H2LH")

_UNIX: Final = 3 << 8
_VERSION: Final = 20
_VERSION64: Final = 45
_HAS_DESCRIPTOR: Final = 0x8
_UTF8: Final = 0x800
_MAX16: Final = 0xFFFF
_MAX32: Final = 0xFFFFFFFF
# Deflate may make a file a little larger than it was.
_NEEDS_64: Final = _MAX32 - (1 << 26)
_TYPES: Final = {
    EntryType.FILE: stat.S_IFREG,
    EntryType.DIRECTORY: stat.S_IFDIR,
    EntryType.SYMLINK: stat.S_IFLNK,
}


@dataclass(slots=True)
class _Entry:
    name: bytes
    flags: int
    method: int
    time: int
    date: int
    attributes: int
    offset: int
    large: bool
    crc: int = 0
    size: int = 0
    stored: int = 0


class ZipEncoder:
    """For each entry: `begin`, `content` of exactly its size, `end`; then `finish`. All return bytes to be sent."""

    def __init__(self) -> None:
        self._offset = 0
        self._directory = bytearray()
        self._count = 0
        self._entry: _Entry | None = None
        self._compressor = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)

    def begin(self, entry: TarEntry, *, owner: str = "", group: str = "") -> bytes:
        """b"" for what an archive cannot hold; that has no content either."""
        kind = _TYPES.get(entry.type)
        self._entry = None
        if kind is None:
            return b""
        is_file = entry.type is EntryType.FILE
        date, moment = _dos_time(entry.mtime_ns)
        name = entry.path + b"/" if entry.type is EntryType.DIRECTORY else entry.path
        self._entry = _Entry(
            name=name,
            flags=(_HAS_DESCRIPTOR if is_file else 0) | (_UTF8 if _is_utf8(name) else 0),
            method=zlib.DEFLATED if is_file else 0,
            time=moment,
            date=date,
            attributes=(kind | entry.mode) << 16 | (0x10 if entry.type is EntryType.DIRECTORY else 0),
            offset=self._offset,
            large=is_file and entry.size >= _NEEDS_64,
        )
        self._compressor = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        link = entry.link if entry.type is EntryType.SYMLINK else b""
        if link:
            self._entry.crc, self._entry.size, self._entry.stored = zlib.crc32(link), len(link), len(link)
        return self._sent(_local_header(self._entry) + link)

    def content(self, data: bytes) -> bytes:
        assert self._entry is not None
        self._entry.crc = zlib.crc32(data, self._entry.crc)
        self._entry.size += len(data)
        return self._compressed(self._compressor.compress(data))

    def end(self) -> bytes:
        entry = self._entry
        if entry is None:
            return b""
        tail = b""
        if entry.flags & _HAS_DESCRIPTOR:
            tail = self._compressed(self._compressor.flush())
            layout = _DESCRIPTOR64 if entry.large else _DESCRIPTOR
            tail += self._sent(layout.pack(b"PK\7\x08", entry.crc, entry.stored, entry.size))
        self._directory += _central_header(entry)
        self._count += 1
        self._entry = None
        return tail

    def finish(self) -> bytes:
        start, size, count = self._offset, len(self._directory), self._count
        end = b""
        if count >= _MAX16 or start + size >= _MAX32:
            end += _EOCD64.pack(b"PK\6\6", 44, _UNIX | _VERSION64, _VERSION64, 0, 0, count, count, size, start)
            end += _LOCATOR64.pack(b"PK\6\7", 0, start + size, 1)
        few, small, near = min(count, _MAX16), min(size, _MAX32), min(start, _MAX32)
        end += _EOCD.pack(b"PK\5\6", 0, 0, few, few, small, near, 0)
        return bytes(self._directory) + end

    def fail(self, reason: str) -> bytes:
        """Nothing: an archive without its central directory is no archive."""
        return b""

    def _compressed(self, data: bytes) -> bytes:
        assert self._entry is not None
        self._entry.stored += len(data)
        return self._sent(data)

    def _sent(self, data: bytes) -> bytes:
        self._offset += len(data)
        return data


def _local_header(entry: _Entry) -> bytes:
    extra = struct.pack("<2H2Q", 1, 16, 0, 0) if entry.large else b""
    known = 0 if entry.flags & _HAS_DESCRIPTOR else 1
    return (
        _LFH.pack(
            b"PK\3\4",
            _VERSION64 if entry.large else _VERSION,
            entry.flags,
            entry.method,
            entry.time,
            entry.date,
            entry.crc * known,
            _MAX32 if entry.large else entry.stored * known,
            _MAX32 if entry.large else entry.size * known,
            len(entry.name),
            len(extra),
        )
        + entry.name
        + extra
    )


def _central_header(entry: _Entry) -> bytes:
    values = [value for value in (entry.size, entry.stored, entry.offset) if value >= _MAX32]
    extra = struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""
    return (
        _CDH.pack(
            b"PK\1\2",
            _UNIX | _VERSION64,
            _VERSION64 if values or entry.large else _VERSION,
            entry.flags,
            entry.method,
            entry.time,
            entry.date,
            entry.crc,
            min(entry.stored, _MAX32),
            min(entry.size, _MAX32),
            len(entry.name),
            len(extra),
            0,
            0,
            0,
            entry.attributes,
            min(entry.offset, _MAX32),
        )
        + entry.name
        + extra
    )


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _dos_time(mtime_ns: int) -> tuple[int, int]:
    """Date and time as zip has them, in UTC: from 1980 to 2107, in steps of two seconds."""
    seconds = min(max(mtime_ns // 1_000_000_000, 315_532_800), 4_354_819_198)
    at = time.gmtime(seconds)
    return (at.tm_year - 1980) << 9 | at.tm_mon << 5 | at.tm_mday, at.tm_hour << 11 | at.tm_min << 5 | at.tm_sec // 2
