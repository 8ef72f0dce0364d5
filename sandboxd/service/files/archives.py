"""A directory of a sandbox as a tar or zip archive, packed and unpacked as it streams.

sandbox-init walks the tree and makes what is in an archive; here archives become its frames and back. Reading an
archive is a thread's work (the readers are synchronous), which both ends hold back: the client by what it sends, init
by what it takes. What is refused in an archive, after everything before it has been made:

    names             absolute, or with ".." in them
    anything but      files, directories, symbolic links, hard links to names in the archive
    sparse files      with more than MAX_HOLES bytes of holes in all; what is less is sent as zeros
    counts            more than MAX_ENTRIES entries; zip: kernel.zipread's limits

Setuid and setgid bits are dropped, as are owners unless they are asked for. Existing directories keep their modes.
"""

import contextlib
import enum
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol, Self, cast

import trio

from sandboxd.errors import SandboxdError, TooLarge, Unavailable, Unprocessable
from sandboxd.isolation.init.archives import PackReader, PutEntry, UnpackWriter, data_frames
from sandboxd.isolation.init.messages import Entry
from sandboxd.isolation.init.wire import MAX_PATH, FileType
from sandboxd.threads import run_in_thread
from sandboxd.trees.decompress import decompressed
from sandboxd.trees.tarencode import TarEncoder
from sandboxd.trees.tarstream import ArchiveError, ArchiveTooLarge, EntryType, TarEntry, TarReader, show
from sandboxd.trees.zipencode import ZipEncoder
from sandboxd.trees.zipread import ZipReader

MAX_ENTRIES: Final = 1_000_000
MAX_HOLES: Final = 1 << 30
PIECE: Final = 256 * 1024
# A thread for each upload under way, most of which wait for their client.
_limiter: Final = trio.CapacityLimiter(64)
# Compressing is work for a processor: as many at once as there are likely to be, others wait.
_compressors: Final = trio.CapacityLimiter(4)


class ArchiveFormat(enum.StrEnum):
    TAR = "tar"
    TAR_GZ = "tar.gz"
    ZIP = "zip"


class Encoder(Protocol):
    def begin(self, entry: TarEntry, *, owner: str = "", group: str = "") -> bytes: ...
    def content(self, data: bytes) -> bytes: ...
    def end(self) -> bytes: ...
    def finish(self) -> bytes: ...
    def fail(self, reason: str) -> bytes: ...


# -- out of a sandbox ---------------------------------------------------------------------------------------------

_TAR_TYPES: Final = {
    FileType.REGULAR: EntryType.FILE,
    FileType.DIRECTORY: EntryType.DIRECTORY,
    FileType.SYMLINK: EntryType.SYMLINK,
    FileType.HARDLINK: EntryType.HARDLINK,
    FileType.FIFO: EntryType.FIFO,
    FileType.CHARACTER: EntryType.CHARACTER_DEVICE,
    FileType.BLOCK: EntryType.BLOCK_DEVICE,
}


class Packing:
    """An archive as an async iterator of bytes, fetched as fast as it is consumed. Use `begin` first.

    Raises: what file_errors does, after bytes in which the archive says so where its format has room for that.
    """

    def __init__(self, reader: PackReader, encoder: Encoder) -> None:
        self._reader = reader
        self._encoder = encoder
        self._pending = bytearray()
        self._failure: Exception | None = None
        self._ended = False

    async def begin(self) -> None:
        """Until the directory itself has come: what is no directory raises here."""
        self._take(await anext(self._reader))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._ended and len(self._pending) < PIECE:
            await self._advance()
        if not self._pending:
            if self._failure is not None:
                raise self._failure
            raise StopAsyncIteration
        data, self._pending = bytes(self._pending), bytearray()
        return data

    async def _advance(self) -> None:
        try:
            item = await anext(self._reader)
        except StopAsyncIteration:
            self._ended = True
            self._pending += self._encoder.end() + self._encoder.finish()
        except Exception as failure:
            self._ended, self._failure = True, failure
            self._pending += self._encoder.fail(str(failure))
        else:
            # Compressing more than a little would keep other tasks waiting.
            if isinstance(item, bytes) and isinstance(self._encoder, ZipEncoder) and len(item) > 8192:
                self._pending += await run_in_thread(self._encoder.content, item, limiter=_compressors)
            else:
                self._take(item)

    def _take(self, item: Entry | bytes) -> None:
        if isinstance(item, bytes):
            self._pending += self._encoder.content(item)
            return
        self._pending += self._encoder.end()
        self._pending += self._encoder.begin(_tar_entry(item), owner=item.owner, group=item.group)


def encoder_of(format_: ArchiveFormat) -> Encoder:
    return ZipEncoder() if format_ is ArchiveFormat.ZIP else TarEncoder()


def _tar_entry(entry: Entry) -> TarEntry:
    return TarEntry(
        path=entry.path.encode("utf-8", "surrogateescape"),
        type=_TAR_TYPES.get(entry.file_type, EntryType.CHARACTER_DEVICE),
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime_ns=entry.mtime_ns,
        size=entry.size if entry.file_type is FileType.REGULAR else 0,
        link=(entry.target or "").encode("utf-8", "surrogateescape"),
    )


# -- into a sandbox -----------------------------------------------------------------------------------------------

_FILE_TYPES: Final = {
    EntryType.FILE: FileType.REGULAR,
    EntryType.DIRECTORY: FileType.DIRECTORY,
    EntryType.SYMLINK: FileType.SYMLINK,
    EntryType.HARDLINK: FileType.HARDLINK,
}


@dataclass(frozen=True, slots=True)
class Unpacked:
    entries: int
    bytes: int


class _Reader(Protocol):
    def __iter__(self) -> Iterator[TarEntry]: ...
    def segments(self) -> Iterator[tuple[int, bytes]]: ...


async def unpack_into(
    writer: UnpackWriter, body: AsyncIterator[bytes], format_: ArchiveFormat, *, spool: Path
) -> Unpacked:
    """Make all that is in an archive. `spool`: where a zip, whose directory comes last, waits for its end.

    A tar may be compressed with gzip, bzip2, xz or zstd. Raises: Unprocessable, TooLarge, Unavailable, and what init
    does.
    """
    if _limiter.available_tokens < 1:
        raise Unavailable("cannot unpack more than 64 archives at once: try again later", kind="busy")
    source, sink = _BodyFile(body), _Frames(writer)
    work = _unpack_zip if format_ is ArchiveFormat.ZIP else _unpack_tar
    with _archive_errors():
        await run_in_thread(work, source, sink, spool, limiter=_limiter)
    done = await writer.finish()
    return Unpacked(done.count or 0, done.bytes or 0)


@contextlib.contextmanager
def _archive_errors() -> Iterator[None]:
    try:
        yield
    except ArchiveTooLarge as error:
        raise TooLarge(str(error), kind="archive_too_large") from error
    except ArchiveError as error:
        raise Unprocessable(str(error), kind="bad_archive") from error
    except SandboxdError:
        raise
    except OSError as error:  # the spool's disk
        raise Unavailable(f"cannot keep the archive for now: {error.strerror}", kind="no_space") from error


class _BodyFile:
    """A request's body as a file for a thread to read."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self._rest = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        if not self._rest:
            self._rest = memoryview(trio.from_thread.run(self._next))
        taken, self._rest = self._rest[:size], self._rest[size:]
        return bytes(taken)

    async def _next(self) -> bytes:
        try:
            return await anext(self._body)
        except StopAsyncIteration:
            return b""


class _Frames:
    """Collects init's frames, and sends many at a time."""

    def __init__(self, writer: UnpackWriter) -> None:
        self._writer = writer
        self._pending = bytearray()

    def add(self, frames: bytes) -> None:
        self._pending += frames
        if len(self._pending) >= PIECE:
            self.flush()

    def flush(self) -> None:
        data, self._pending = bytes(self._pending), bytearray()
        if data:
            trio.from_thread.run(self._writer.send, data)


def _unpack_tar(body: _BodyFile, sink: _Frames, spool: Path) -> None:
    with decompressed(cast("IO[bytes]", body)) as source:
        _translate(TarReader(source, empty=True), sink)


def _unpack_zip(body: _BodyFile, sink: _Frames, spool: Path) -> None:
    with tempfile.TemporaryFile(dir=spool) as file:
        while data := body.read(PIECE):
            file.write(data)
        _translate(ZipReader(file), sink)


def _translate(reader: _Reader, sink: _Frames) -> None:
    holes = 0
    for number, entry in enumerate(reader):
        if number >= MAX_ENTRIES:
            raise ArchiveTooLarge(f"cannot unpack the archive: it has more than {MAX_ENTRIES} entries")
        if path := plain_path(entry.path):
            sink.add(_put(path, entry).encode())
            if entry.type is EntryType.FILE:
                holes += _holes(entry)
                if holes > MAX_HOLES:
                    raise ArchiveTooLarge(
                        f"cannot unpack {show(entry.path)}: the holes of sparse files in the archive are more than "
                        f"{MAX_HOLES} bytes"
                    )
                for data in _whole(entry, reader.segments()):
                    sink.add(data_frames(data))
    sink.flush()


def _holes(entry: TarEntry) -> int:
    return 0 if entry.sparse is None else entry.size - sum(length for _, length in entry.sparse)


def _whole(entry: TarEntry, segments: Iterator[tuple[int, bytes]]) -> Iterator[bytes]:
    """The file's content, with zeros for its holes."""
    at = 0
    for offset, data in segments:
        yield from _zeros(offset - at)
        yield data
        at = offset + len(data)
    yield from _zeros(entry.size - at)


def _zeros(count: int) -> Iterator[bytes]:
    for left in range(count, 0, -PIECE):
        yield bytes(min(PIECE, left))


def _put(path: bytes, entry: TarEntry) -> PutEntry:
    kind = _FILE_TYPES.get(entry.type)
    if kind is None:
        raise ArchiveError(
            f"cannot unpack {show(entry.path)}: it is a {entry.type.value}; leave it out of the archive"
        )
    link = plain_path(entry.link) if kind is FileType.HARDLINK else entry.link
    return PutEntry(
        path=path,
        file_type=kind,
        mode=entry.mode,
        mtime_ns=entry.mtime_ns,
        target=link,
        uid=_identity(entry, entry.uid),
        gid=_identity(entry, entry.gid),
    )


def _identity(entry: TarEntry, number: int) -> int:
    if number > 0xFFFFFFFE:
        raise ArchiveError(f"cannot unpack {show(entry.path)}: its owner is {number}")
    return number


def plain_path(name: bytes) -> bytes:
    """A name with nothing but names in it; b"" for the directory itself. Raises: ArchiveError."""
    if name.startswith(b"/"):
        raise ArchiveError(f"cannot unpack {show(name)}: its name is absolute")
    if b"\0" in name:
        raise ArchiveError(f"cannot unpack {show(name)}: its name contains a NUL byte")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise ArchiveError(f'cannot unpack {show(name)}: its name contains ".."')
    if len(name) > MAX_PATH:
        raise ArchiveError(f"cannot unpack {show(name)}: its name is too long")
    return b"/".join(parts)
