"""A strict, streaming reader of tar archives that strangers made.

Why not the standard library's tarfile: it reads a long-name or pax header of any declared size into memory, and the
releases this daemon has to run on carry its parsing faults (CVE-2024-6232, quadratic pax parsing; CVE-2025-8194, an
endless loop over negative offsets). This reader knows what tools write today (ustar, GNU, pax), refuses everything
else, holds one header in memory at a time, and never seeks, so it reads from a pipe.

An archive is a run of 512-byte blocks: a header, then the data it announces padded to whole blocks, and so on until
two blocks of zeros. Headers of the types in _EXTENSIONS describe the next entry rather than one of their own.
tar(5) of libarchive is the clearest description of all variants; names below are its names.
"""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

BLOCK: Final = 512
MAX_EXTENSION: Final = 1 << 20
"""Bytes of one long-name or pax header. The kernel's own bounds (4 KiB paths, 64 KiB xattrs) lie far below."""
MAX_SPARSE_MAP: Final = 1 << 16
"""Data regions of one sparse file."""
CHUNK: Final = 1 << 18
FILE_TYPE_RECORD: Final = b"SCHILY.filetype"
"""Record of star's, for what tar has no type for: the entry is an empty file to whoever does not know it."""
ERROR_RECORD: Final = b"SANDBOXD.error"
"""Record of a global pax header: why the archive ends before its end."""


class ArchiveError(Exception):
    """The archive is malformed, or asks for something that is never done. The message begins with "cannot"."""


class ArchiveTruncated(ArchiveError):
    """The archive ends before its end marker: whoever was writing it did not finish."""


class ArchiveTooLarge(ArchiveError):
    """The archive holds more than the limits allow."""


class ByteSource(Protocol):
    def read(self, size: int, /) -> bytes: ...


class EntryType(enum.Enum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    HARDLINK = "hard link"
    FIFO = "fifo"
    SOCKET = "socket"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"


_TYPES: Final = {
    b"0": EntryType.FILE,
    b"\0": EntryType.FILE,
    b"7": EntryType.FILE,  # "contiguous", which nobody distinguishes
    b"S": EntryType.FILE,  # sparse, old GNU format
    b"1": EntryType.HARDLINK,
    b"2": EntryType.SYMLINK,
    b"3": EntryType.CHARACTER_DEVICE,
    b"4": EntryType.BLOCK_DEVICE,
    b"5": EntryType.DIRECTORY,
    b"6": EntryType.FIFO,
}
_EXTENSIONS: Final = b"LKxg"
_GLOBAL_KEYS: Final = frozenset({b"uid", b"gid", b"mtime"})
"""What a global pax header may set here. Others that change entries are refused, comments are passed over."""
_GLOBAL_REFUSED: Final = frozenset({b"path", b"linkpath", b"size"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TarEntry:
    """One member as the archive describes it; nothing in it has been judged yet."""

    path: bytes
    type: EntryType
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    """bytes of the file when unpacked, holes included"""
    link: bytes = b""
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    sparse: tuple[tuple[int, int], ...] | None = None
    """(offset, length) of each data region; None for a file without holes"""
    device: tuple[int, int] = (0, 0)
    """major and minor number"""


@dataclass(slots=True)
class _Extensions:
    """What the headers before an entry said about it."""

    path: bytes | None = None
    link: bytes | None = None
    pax: dict[bytes, bytes] = field(default_factory=dict)


class TarReader:
    """Iterate for the entries; read an entry's data with segments() before taking the next one, or skip it.

    Raises ArchiveError for anything malformed, truncated archives included.
    """

    def __init__(self, source: ByteSource, *, empty: bool = False) -> None:
        """`empty`: an archive without entries is one, too."""
        self._source = source
        self._empty = empty
        self._globals: dict[bytes, bytes] = {}
        self._remaining = 0  # bytes of the current entry's data not read yet
        self._padding = 0
        self._sparse: tuple[tuple[int, int], ...] | None = None

    def __iter__(self) -> Iterator[TarEntry]:
        extensions = _Extensions()
        first = True
        while (header := self._header(first=first)) is not None:
            first = False
            kind = header[156:157]
            if kind in _EXTENSIONS:
                self._extend(extensions, kind, header)
                continue
            yield self._entry(header, extensions)
            self._skip()
            extensions = _Extensions()

    def segments(self) -> Iterator[tuple[int, bytes]]:
        """The current file's data as (offset in the file, bytes); holes are left out."""
        regions = self._sparse if self._sparse is not None else ((0, self._remaining),)
        for offset, length in regions:
            end = offset + length
            while offset < end:
                chunk = self._data(min(CHUNK, end - offset))
                yield offset, chunk
                offset += len(chunk)

    # -- blocks ---------------------------------------------------------------------------------------------------

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._source.read(size)
            if not part:
                raise ArchiveTruncated("cannot unpack the archive: it ends in the middle, so it was cut short")
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _header(self, *, first: bool) -> bytes | None:
        """The next header block, or None at the end of the archive."""
        block = self._exactly(BLOCK)
        if not block.strip(b"\0"):
            if first and not self._empty:
                raise ArchiveError("cannot unpack the archive: it is empty")
            return None
        if not _is_header(block):
            problem = "it is not a tar archive" if first else "a header in it is damaged"
            raise ArchiveError(f"cannot unpack the archive: {problem}")
        return block

    def _begin(self, size: int) -> None:
        self._remaining = size
        self._padding = -size % BLOCK

    def _data(self, size: int) -> bytes:
        if size > self._remaining:
            raise ArchiveError("cannot unpack the archive: a sparse file's map names more data than it has")
        data = self._exactly(size)
        self._remaining -= size
        return data

    def _skip(self) -> None:
        rest = self._remaining + self._padding
        while rest:
            rest -= len(self._exactly(min(CHUNK, rest)))
        self._remaining = self._padding = 0

    # -- headers --------------------------------------------------------------------------------------------------

    def _extend(self, extensions: _Extensions, kind: bytes, header: bytes) -> None:
        size = _number(header[124:136], "size")
        if size > MAX_EXTENSION:
            raise ArchiveTooLarge(
                f"cannot unpack the archive: an extended header of {size} bytes is over the limit of {MAX_EXTENSION}"
            )
        self._begin(size)
        payload = self._data(size)
        self._skip()
        match kind:
            case b"L":
                extensions.path = payload.rstrip(b"\0")
            case b"K":
                extensions.link = payload.rstrip(b"\0")
            case b"x" if extensions.pax:
                raise ArchiveError("cannot unpack the archive: one entry in it has two pax headers")
            case b"x":
                extensions.pax = parse_pax(payload)
            case _:
                self._set_globals(parse_pax(payload))

    def _set_globals(self, records: Mapping[bytes, bytes]) -> None:
        if reason := records.get(ERROR_RECORD):
            raise ArchiveTruncated(f"cannot unpack the archive: who was writing it gave up: {show(reason)}")
        if refused := _GLOBAL_REFUSED & records.keys():
            raise ArchiveError(f"cannot unpack the archive: it sets {min(refused).decode()} for all its entries")
        self._globals.update((key, value) for key, value in records.items() if key in _GLOBAL_KEYS)

    def _entry(self, header: bytes, extensions: _Extensions) -> TarEntry:
        pax = self._globals | extensions.pax
        path = _name(header, extensions, pax)
        entry_type = _TYPES.get(header[156:157])
        if entry_type is None:
            raise ArchiveError(f"cannot unpack {show(path)}: entries of type {header[156:157]!r} are not supported")
        if entry_type is EntryType.FILE and path.endswith(b"/"):
            entry_type = EntryType.DIRECTORY  # how tar wrote directories before it had a type for them
        if entry_type is EntryType.FILE and pax.get(FILE_TYPE_RECORD) == b"socket":
            entry_type = EntryType.SOCKET
        stored = _decimal(pax, b"size", _number(header[124:136], "size"))
        # Only files carry data; what other types say about their size is not to be believed (all readers agree).
        self._begin(stored if entry_type is EntryType.FILE else 0)
        size, self._sparse = self._sparse_map(header, pax) if entry_type is EntryType.FILE else (0, None)
        return TarEntry(
            path=path,
            type=entry_type,
            mode=_number(header[100:108], "mode") & 0o7777,
            uid=_decimal(pax, b"uid", _number(header[108:116], "uid")),
            gid=_decimal(pax, b"gid", _number(header[116:124], "gid")),
            mtime_ns=_time(pax.get(b"mtime"), _number(header[136:148], "mtime")),
            size=size,
            link=pax.get(b"linkpath", extensions.link or _text(header[157:257])),
            xattrs=_xattrs(pax),
            sparse=self._sparse,
            device=(_number(header[329:337], "device"), _number(header[337:345], "device")),
        )

    # -- sparse files ---------------------------------------------------------------------------------------------

    def _sparse_map(
        self, header: bytes, pax: Mapping[bytes, bytes]
    ) -> tuple[int, tuple[tuple[int, int], ...] | None]:
        """The file's real size and its map: from the data (pax 1.0), the header (old GNU), or none."""
        if header[156:157] == b"S":
            size, regions = _number(header[483:495], "size"), self._old_sparse_regions(header)
        elif pax.get(b"GNU.sparse.major") == b"1":
            size, regions = _decimal(pax, b"GNU.sparse.realsize", 0), self._pax_sparse_regions()
        elif any(key.startswith(b"GNU.sparse.") for key in pax):
            raise ArchiveError("cannot unpack the archive: its format of sparse files (pax 0.x) is not supported")
        else:
            return self._remaining, None
        position = 0
        for offset, length in regions:
            if offset < position or offset + length > size:
                raise ArchiveError("cannot unpack the archive: a sparse file's map contradicts itself")
            position = offset + length
        if sum(length for _, length in regions) != self._remaining:
            raise ArchiveError("cannot unpack the archive: a sparse file's map does not fit its data")
        return size, regions

    def _old_sparse_regions(self, header: bytes) -> tuple[tuple[int, int], ...]:
        """Four regions in the header, then 21 in each of any number of blocks that follow it."""
        numbers = _sparse_numbers(header[386:482])
        more = header[482]
        while more:
            if len(numbers) > MAX_SPARSE_MAP:
                raise ArchiveTooLarge("cannot unpack the archive: a sparse file has too many regions")
            block = self._exactly(BLOCK)
            numbers += _sparse_numbers(block[:504])
            more = block[504]
        return tuple(numbers)

    def _pax_sparse_regions(self) -> tuple[tuple[int, int], ...]:
        """Decimal lines at the start of the data: how many regions, then offset and length of each, then padding."""
        text = self._data(BLOCK)
        count = _line_number(text.partition(b"\n")[0])
        if count > MAX_SPARSE_MAP:
            raise ArchiveTooLarge("cannot unpack the archive: a sparse file has too many regions")
        while text.count(b"\n") < 2 * count + 1:
            if len(text) > 2 * 24 * (count + 1) + BLOCK:
                raise ArchiveError("cannot unpack the archive: a sparse file's map is damaged")
            text += self._data(BLOCK)
        numbers = [_line_number(line) for line in text.split(b"\n")[1 : 2 * count + 1]]
        return tuple(zip(numbers[::2], numbers[1::2], strict=True))


# -- fields -------------------------------------------------------------------------------------------------------


def show(path: bytes) -> str:
    """A name from an archive, fit for a message: printable and short."""
    text = ascii(path.decode(errors="backslashreplace"))[1:-1]
    return text if len(text) <= 120 else f"{text[:60]}…{text[-50:]}"


def _is_header(block: bytes) -> bool:
    """Whether the block's checksum, over itself with blanks for the checksum, is right."""
    digits = block[148:156].strip(b" \0")
    return bool(digits) and not digits.strip(b"01234567") and int(digits, 8) == sum(block) - sum(block[148:156]) + 256


def _text(field_: bytes) -> bytes:
    return field_.partition(b"\0")[0]


def _number(field_: bytes, what: str) -> int:
    """Octal digits, or GNU's big-endian binary where the first bit is set."""
    if field_[0] == 0x80:
        return int.from_bytes(field_[1:], "big")
    if field_[0] == 0xFF and what == "mtime":  # before 1970
        return int.from_bytes(field_, "big", signed=True)
    digits = _text(field_).strip(b" ")
    if digits.strip(b"01234567"):
        raise ArchiveError(f"cannot unpack the archive: a header's {what} is not a number")
    return int(digits or b"0", 8)


def _line_number(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise ArchiveError("cannot unpack the archive: a number in it is not a number")
    return int(digits)


def _decimal(pax: Mapping[bytes, bytes], key: bytes, default: int) -> int:
    return _line_number(pax[key]) if key in pax else default


def _time(pax: bytes | None, seconds: int) -> int:
    """Nanoseconds since the epoch; within what file systems can store."""
    nanoseconds = seconds * 1_000_000_000
    if pax is not None:
        whole, _, fraction = pax.partition(b".")
        sign = -1 if whole.startswith(b"-") else 1
        nanoseconds = _line_number(whole.lstrip(b"-") or b"0") * 1_000_000_000
        nanoseconds = sign * (nanoseconds + _line_number((fraction[:9] or b"0").ljust(9, b"0")))
    return max(-(1 << 31) * 1_000_000_000, min(nanoseconds, (1 << 33) * 1_000_000_000))


def _sparse_numbers(table: bytes) -> list[tuple[int, int]]:
    regions = []
    for start in range(0, len(table), 24):
        if table[start] == 0:
            break
        regions.append((_number(table[start : start + 12], "map"), _number(table[start + 12 : start + 24], "map")))
    return regions


def _name(header: bytes, extensions: _Extensions, pax: Mapping[bytes, bytes]) -> bytes:
    if (path := pax.get(b"GNU.sparse.name", pax.get(b"path", extensions.path))) is not None:
        return path
    name = _text(header[0:100])
    # GNU's own format uses the bytes of ustar's prefix for other things, and says so in its magic.
    prefix = _text(header[345:500]) if header[257:265] == b"ustar\x0000" else b""
    return prefix + b"/" + name if prefix else name


def parse_pax(payload: bytes) -> dict[bytes, bytes]:
    """The records `LENGTH KEY=VALUE\\n` of a pax header, in one pass."""
    records, position = {}, 0
    while position < len(payload):
        space = payload.find(b" ", position, position + 8)
        length = _line_number(payload[position:space]) if space > 0 else 0
        record = payload[space + 1 : position + length - 1]
        key, equals, value = record.partition(b"=")
        end = position + length
        if not key or not equals or end > len(payload) or payload[end - 1 : end] != b"\n":
            raise ArchiveError("cannot unpack the archive: a pax header in it is damaged")
        records[key] = value
        position = end
    return records


def _xattrs(pax: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    prefix = b"SCHILY.xattr."
    return {key[len(prefix) :]: value for key, value in pax.items() if key.startswith(prefix)}
