"""gzip on the way in and out, piece by piece, in bounded memory."""

import zlib
from collections.abc import AsyncIterator
from typing import Final, Self

import trio
from werkzeug.datastructures import Headers
from werkzeug.http import parse_accept_header

from sandboxd.errors import InvalidRequest
from sandboxd.threads import run_in_thread

_GZIP: Final = 16 + zlib.MAX_WBITS
_FASTEST: Final = 1
_PIECE: Final = 256 * 1024

# Compressing is work for a processor: as many at once as there are likely to be, others wait.
_limiter: Final = trio.CapacityLimiter(4)


def wants_gzip(headers: Headers) -> bool:
    """Whether gzip was asked for, by name and alone.

    HTTP libraries offer `gzip, deflate, …` by themselves. Taking that up would cut a download over a local connection
    to a quarter of its speed.
    """
    accepted = {
        name.lower() for name, quality in parse_accept_header(headers.get("Accept-Encoding", "")) if quality > 0
    }
    return accepted - {"identity"} == {"gzip"}


class Gzip:
    """Compresses an iterator's bytes, in a thread."""

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self._compressor = zlib.compressobj(_FASTEST, zlib.DEFLATED, _GZIP)
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._ended:
            if data := await self._next():
                return data
        raise StopAsyncIteration

    async def _next(self) -> bytes:
        try:
            data = await anext(self._source)
        except StopAsyncIteration:
            self._ended = True
            return self._compressor.flush()
        return await run_in_thread(self._compressor.compress, data, limiter=_limiter)


class Gunzip:
    """Undoes an upload's compression; however little it comes from, memory holds one piece.

    Raises: InvalidRequest for what is not gzip, or ends in the middle.
    """

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self._decompressor = zlib.decompressobj(_GZIP)
        self._input = b""
        self._started = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while True:
            if not self._input and not await self._fill():
                raise StopAsyncIteration
            await trio.lowlevel.checkpoint()  # a little input may be a lot of output
            if data := self._decompress():
                return data

    async def _fill(self) -> bool:
        try:
            self._input = await anext(self._source)
        except StopAsyncIteration:
            if not self._decompressor.eof and self._started:
                raise InvalidRequest("cannot decompress the request body: it ends in the middle") from None
            return False
        return True

    def _decompress(self) -> bytes:
        if self._decompressor.eof:  # gzip allows several members, one after the other
            self._decompressor = zlib.decompressobj(_GZIP)
        self._started = True
        try:
            data = self._decompressor.decompress(self._input, _PIECE)
        except zlib.error as error:
            raise InvalidRequest(f"cannot decompress the request body: {error}") from error
        self._input = self._decompressor.unused_data or self._decompressor.unconsumed_tail
        return data


def decoded_body(body: AsyncIterator[bytes], headers: Headers) -> AsyncIterator[bytes]:
    """A request's body without its Content-Encoding. Raises: InvalidRequest for one that is not known here."""
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in {"identity", ""}:
        return body
    if encoding in {"gzip", "x-gzip"}:
        return Gunzip(body)
    raise InvalidRequest(
        f"cannot undo the Content-Encoding {encoding[:40]!r}: use gzip, or send the bytes as they are"
    )
