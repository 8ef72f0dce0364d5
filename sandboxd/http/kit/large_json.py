"""JSON that is too large to be made at once: written piece by piece as it is sent, and never there as a whole.

A character may take six bytes in JSON, so that 60 MB of output are 360 MB, which took the event loop seconds. Here a
piece of 64 Ki characters is made when the client has taken the one before.
"""

import json
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

from pydantic import BaseModel
from quart.wrappers import Response
from quart.wrappers.response import ResponseBody

from sandboxd.http.server.stack import TrioResponse
from sandboxd.service.output_memory import Share

_PIECE: Final = 64 * 1024
"""Characters of a text, or bytes of an answer, that are made at once."""

JsonResponse = Response | TrioResponse
"""An answer made at once, or piece by piece."""


def is_large(model: BaseModel) -> bool:
    """Whether a field of it is a text that takes its time."""
    return any(isinstance(value, str) and len(value) > _PIECE for value in model.__dict__.values())


def large_response(value: Any, status: int = 200, *, share: Share | None = None) -> TrioResponse:
    """An answer whose JSON is `value`, of which encode() tells what it may be. `share`: what it is in, until then."""
    return TrioResponse(_Body(encode(value), share), status, content_type="application/json")


def small_or_large(
    value: Mapping[str, Any], size: int, status: int = 200, *, share: Share | None = None
) -> JsonResponse:
    """The same of about `size` bytes: with its length, if it is so small that it may be made at once."""
    if size > _PIECE:
        return large_response(value, status, share=share)
    return Response(b"".join(encode(value)), status, content_type="application/json")


class _Body(ResponseBody):
    """Owns: the share of the daemon's memory for output that the answer is in."""

    def __init__(self, pieces: Iterator[bytes], share: Share | None) -> None:
        self._pieces = pieces
        self._share = share

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._pieces = iter(())  # what is not sent needs no memory any more
        if self._share is not None:
            self._share.give_back()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


def encode(value: Any) -> Iterator[bytes]:
    """`value` as JSON: of dicts, lists, texts, numbers, and iterators of texts, which are one text together."""
    waiting: list[str] = []
    size = 0
    for part in _parts(value):
        waiting.append(part)
        size += len(part)
        if size >= _PIECE:
            yield "".join(waiting).encode("utf-8", "replace")
            waiting, size = [], 0
    if waiting:
        yield "".join(waiting).encode("utf-8", "replace")


def _parts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield from _text(iter((value,)))
        case dict():
            yield "{"
            for number, (name, item) in enumerate(value.items()):
                yield "," if number else ""
                yield from _text(iter((name,)))
                yield ":"
                yield from _parts(item)
            yield "}"
        case list() | tuple():
            yield "["
            for number, item in enumerate(value):
                yield "," if number else ""
                yield from _parts(item)
            yield "]"
        case Iterator():
            yield from _text(value)
        case _:
            yield json.dumps(value, ensure_ascii=False, allow_nan=False)


def _text(pieces: Iterator[str]) -> Iterator[str]:
    yield '"'
    for piece in pieces:
        for at in range(0, len(piece), _PIECE):
            yield json.dumps(piece[at : at + _PIECE], ensure_ascii=False)[1:-1]
    yield '"'
