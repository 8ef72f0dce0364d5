"""Recognizes and undoes the compression of an archive, in bounded memory."""

import bz2
import lzma
import os
import select
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from sandboxd.trees.tarstream import ArchiveError, ArchiveTooLarge, ByteSource

MEMORY: Final = 256 << 20
"""Bytes that xz and zstd may use. `xz -9` and `zstd --ultra -22` need 65 and 128 MiB."""
_CHUNK: Final = 1 << 18
_MOST_GROWTH: Final = 250
_FREE_GROWTH: Final = 256 << 20
"""Bytes that may come of however little; beyond them an archive grows no more than _MOST_GROWTH times."""
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"


class _Decompressor(Protocol):
    """What BZ2Decompressor and LZMADecompressor have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _GzipDecompressor:
    """zlib's decompressor in the shape of the others."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def _new_xz_decompressor() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY)


_FORMATS: Final[tuple[tuple[bytes, Callable[[], _Decompressor]], ...]] = (
    (b"\x1f\x8b", _GzipDecompressor),
    (b"BZh", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\0", _new_xz_decompressor),
)


class _Plain:
    """A stream with the bytes that were read to recognize it put back in front."""

    def __init__(self, prefix: bytes, rest: ByteSource) -> None:
        self._prefix = prefix
        self._rest = rest

    def read(self, size: int, /) -> bytes:
        if not self._prefix:
            return self._rest.read(size)
        taken, self._prefix = self._prefix[:size], self._prefix[size:]
        return taken


class _Decompressed:
    """Reads through a decompressor, and through a new one for every further stream appended to the first."""

    def __init__(self, source: ByteSource, new_decompressor: Callable[[], _Decompressor]) -> None:
        self._source = source
        self._new_decompressor = new_decompressor
        self._decompressor = new_decompressor()

    def read(self, size: int, /) -> bytes:
        try:
            while not (data := self._step(size)):
                if self._decompressor.eof and not self._next_stream():
                    return b""
        except (OSError, ValueError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise ArchiveError(f"cannot unpack the archive: its compression is damaged: {error}") from error
        return data

    def _step(self, size: int) -> bytes:
        if self._decompressor.eof:
            return b""
        compressed = b""
        if self._decompressor.needs_input:
            compressed = self._source.read(_CHUNK)
            if not compressed:
                raise EOFError("it ends in the middle")
        return self._decompressor.decompress(compressed, size)

    def _next_stream(self) -> bool:
        """Whether another compressed stream follows. Padding of zeros, which some tools add, does not count."""
        rest = self._decompressor.unused_data.lstrip(b"\0")
        while not rest:
            chunk = self._source.read(_CHUNK)
            if not chunk:
                return False
            rest = chunk.lstrip(b"\0")
        self._source = _Chained(rest, self._source)
        self._decompressor = self._new_decompressor()
        return True


class _Counted:
    """Counts what is read."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self.size = 0

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self.size += len(data)
        return data


class _Bounded:
    """Refuses what becomes far more than it was: 160 kB can be 32 GiB."""

    def __init__(self, source: ByteSource, compressed: _Counted) -> None:
        self._source = source
        self._compressed = compressed
        self._size = 0

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self._size += len(data)
        if self._size > _FREE_GROWTH + _MOST_GROWTH * self._compressed.size:
            raise ArchiveTooLarge(
                f"cannot unpack the archive: {self._compressed.size} bytes of it become more than {self._size}, and "
                f"{_MOST_GROWTH} times as much is the most; send it uncompressed"
            )
        return data


class _Chained:
    def __init__(self, first: bytes, rest: ByteSource) -> None:
        self._first = first
        self._rest = rest

    def read(self, size: int, /) -> bytes:
        first, self._first = self._first, b""
        return first or self._rest.read(size)


@contextmanager
def decompressed(archive: ByteSource) -> Iterator[ByteSource]:
    """The archive's contents, whatever of gzip, bzip2, xz, zstd or nothing it was compressed with.

    Raises ArchiveError, also while reading. zstd needs its program.
    """
    prefix = b""
    archive = counted = _Counted(archive)
    while len(prefix) < 6 and (more := archive.read(6 - len(prefix))):
        prefix += more
    if prefix.startswith(_ZSTD_MAGIC):
        with _zstd(_Plain(prefix, archive)) as source:
            yield _Bounded(source, counted)
        return
    for magic, new_decompressor in _FORMATS:
        if prefix.startswith(magic):
            yield _Bounded(_Decompressed(_Plain(prefix, archive), new_decompressor), counted)
            return
    yield _Plain(prefix, archive)


@contextmanager
def _zstd(compressed: ByteSource) -> Iterator[ByteSource]:
    """Python has no zstd before 3.14, so the program undoes it."""
    program = shutil.which("zstd")
    if program is None:
        raise ArchiveError("cannot unpack the archive: it is compressed with zstd; install the package zstd")
    process = subprocess.Popen(
        [program, "-dc", f"--memory={MEMORY}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )
    try:
        yield _Piped(compressed, process)
    finally:
        process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        process.wait()


class _Piped:
    """Reads what a program makes of `source`. It is fed from here, as it takes it, and by no thread beside this one:

    reading the source may be possible in the caller's thread only.
    """

    def __init__(self, source: ByteSource, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._source = source
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self._waiting = memoryview(b"")
        os.set_blocking(self._stdin.fileno(), False)
        self._poll = select.poll()
        self._poll.register(self._stdin, select.POLLOUT)
        self._poll.register(self._stdout, select.POLLIN)

    def read(self, size: int, /) -> bytes:
        while self._stdout.fileno() not in (ready := {descriptor for descriptor, _ in self._poll.poll()}):
            if not self._stdin.closed and self._stdin.fileno() in ready:
                self._feed()
        data = os.read(self._stdout.fileno(), size)
        if not data and self._failed():
            raise ArchiveError("cannot unpack the archive: its compression is damaged")
        return data

    def _failed(self) -> bool:
        """Having closed its output it may still wait for more input, of which it would make nothing."""
        self._end_feeding()
        return self._process.wait() != 0

    def _feed(self) -> None:
        if not self._waiting:
            self._waiting = memoryview(self._source.read(_CHUNK))
        try:
            if self._waiting:
                self._waiting = self._waiting[os.write(self._stdin.fileno(), self._waiting) :]
                return
        except BrokenPipeError:  # it has found a fault, or its end
            pass
        self._end_feeding()

    def _end_feeding(self) -> None:
        if not self._stdin.closed:
            self._poll.unregister(self._stdin)
            self._stdin.close()
