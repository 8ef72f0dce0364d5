"""Streaming responses: server-sent events and newline-delimited JSON, for every dialect.

A stream's source is a receive channel in a context manager: what a function decorated with `trio.as_safe_channel`
returns, or simply a `trio.MemoryReceiveChannel`. Nothing is buffered here, so a client that reads slowly holds back
its own source and nobody else; what a source does then (wait, or drop and say so) is the source's business.

A stream ends when its source ends, when the client leaves, when the daemon begins to stop, or when the key that
opened it is revoked; each time the source's context is left, and unless the client has left the response is completed
properly.
"""

import json
import re
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import trio
from quart.wrappers.response import ResponseBody

from sandboxd.errors import SandboxdError
from sandboxd.http.kit.conversation import Conversation, key_revoked, stopping
from sandboxd.http.server.stack import TrioResponse

T = TypeVar("T")

# Proxies commonly cut a connection that is silent for 60 s (nginx's proxy_read_timeout); the HTML standard advises a
# comment every 15 s.
KEEP_ALIVE_INTERVAL = 15.0

# Legal in every SSE stream, ignored by every conforming parser.
SSE_COMMENT = b":\n\n"

# For clients whose parser takes nothing but `data:` frames.
SSE_KEEP_ALIVE_EVENT = b'data: {"type":"keepalive"}\n\n'

STREAM_HEADERS = {
    "cache-control": "no-cache, no-store",
    "x-accel-buffering": "no",  # nginx and others that follow it: pass every byte on at once
    "x-content-type-options": "nosniff",
}

# The HTML standard's line ends; Python's splitlines() knows more and would change the text.
_LINE_END = re.compile(r"\r\n|\r|\n")


def to_json(value: Any) -> str:
    """`value` as compact JSON on one line; anything JSON does not know, a NaN included, is an error."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event as the HTML standard defines it. `data` is text; `retry` is in milliseconds."""

    data: str
    event: str | None = None
    id: str | None = None
    retry: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("event", self.event), ("id", self.id)):
            if value is not None and _LINE_END.search(value):
                raise ValueError(f"cannot send an SSE {name} that contains a line end: {value!r}")
        if self.id is not None and "\0" in self.id:
            raise ValueError("cannot send an SSE id that contains a NUL: clients ignore it")

    @classmethod
    def of(cls, value: Any, *, event: str | None = None, id: str | None = None) -> Self:  # noqa: A002 - the field's name
        """An event whose data is `value` as JSON."""
        return cls(to_json(value), event=event, id=id)

    def encode(self) -> bytes:
        lines = [f"event: {self.event}"] if self.event is not None else []
        if self.id is not None:
            lines.append(f"id: {self.id}")
        if self.retry is not None:
            lines.append(f"retry: {self.retry}")
        lines.extend(f"data: {line}" for line in _lines(self.data))
        return ("\n".join(lines) + "\n\n").encode("utf-8", "replace")


def _lines(text: str) -> list[str]:
    """JSON has no line ends, and looking for single characters is ten times as fast as the expression."""
    return _LINE_END.split(text) if "\n" in text or "\r" in text else [text]


def sse_response(
    conversation: Conversation,
    source: AbstractAsyncContextManager[trio.abc.ReceiveChannel[ServerSentEvent]],
    *,
    keep_alive: bytes = SSE_COMMENT,
    interval: float = KEEP_ALIVE_INTERVAL,
) -> TrioResponse:
    """Answer the current request with server-sent events; `keep_alive` is sent after `interval` s of silence."""
    return stream_response(
        conversation,
        source,
        encode=ServerSentEvent.encode,
        content_type="text/event-stream",
        keep_alive=keep_alive,
        interval=interval,
    )


def stream_response(
    conversation: Conversation,
    source: AbstractAsyncContextManager[trio.abc.ReceiveChannel[T]],
    *,
    encode: Callable[[T], bytes],
    content_type: str,
    keep_alive: bytes | None = None,
    interval: float = KEEP_ALIVE_INTERVAL,
) -> TrioResponse:
    """Answer the current request with what `source` sends, encoded one by one, headers at once.

    `keep_alive` None: silence stays silent, as it must for a format with no room for filler.
    """
    body = _StreamBody(
        source,
        encode=encode,
        keep_alive=keep_alive,
        interval=interval if keep_alive is not None else float("inf"),
        conversation=conversation,
    )
    return TrioResponse(body, headers=STREAM_HEADERS, content_type=content_type)


class OwningBody(ResponseBody):
    """A response body that is its own iterator. Owns: what `_stack` holds, until the response has ended."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(exc_type, exc, tb)

    def __aiter__(self) -> Self:
        return self

    @abstractmethod
    async def __anext__(self) -> bytes:
        """The next piece."""


class _StreamBody(OwningBody):
    """A response body that follows a channel.

    Owns: the source's context, while the body is being sent.
    Cancelled: when the client leaves; the source's context is left.
    """

    def __init__(
        self,
        source: AbstractAsyncContextManager[trio.abc.ReceiveChannel[T]],
        *,
        encode: Callable[[T], bytes],
        keep_alive: bytes | None,
        interval: float,
        conversation: Conversation,
    ) -> None:
        super().__init__()
        self._source = source
        self._encode = encode
        self._keep_alive = keep_alive
        self._interval = interval
        self._conversation = conversation
        self._end: SandboxdError | None = None
        """why the daemon ends it"""
        self._over = False
        self._waiting = trio.CancelScope()
        self._channel: trio.abc.ReceiveChannel[T]

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._channel = await stack.enter_async_context(self._source)
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel, "the stream has ended")
            nursery.start_soon(self._end_when_stopping)
            stack.enter_context(self._conversation.ended_gently(lambda: self._end_by(key_revoked())))
            self._stack = stack.pop_all()
        return self

    async def __anext__(self) -> bytes:
        if (end := self._cut_short()) is not None:
            return self._last_words(end)
        # A channel's receive() either returns an item or is cancelled, never both: no item is lost here.
        with trio.move_on_after(self._interval) as self._waiting:
            try:
                return self._encode(await self._channel.receive())
            except trio.EndOfChannel:
                raise StopAsyncIteration from None
        if (end := self._cut_short()) is not None:
            return self._last_words(end)
        assert self._keep_alive is not None, "without filler there is no interval"
        return self._keep_alive

    def _cut_short(self) -> SandboxdError | None:
        return self._end

    def _last_words(self, why: SandboxdError) -> bytes:
        if self._over or not (words := self._conversation.errors.end_stream(why)):
            raise StopAsyncIteration
        self._over = True
        return words

    async def _end_when_stopping(self) -> None:
        await self._conversation.stopping.wait()
        self._end_by(stopping())

    def _end_by(self, why: SandboxdError) -> None:
        self._end = self._end or why
        self._waiting.cancel(why.message)
