"""What the client's streams are: iterators without an end of their own to clean up.

No async generators: one that its consumer leaves early must be closed by somebody, and users rightly do not.
"""

import json
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Generic, Self, TypeVar

from sandboxd.client.errors import ConnectionLost, error_from
from sandboxd.client.http import Answer
from sandboxd.client.sse import EventDecoder

T = TypeVar("T")
Message = tuple[str, dict[str, Any]]
"""name and data of a server-sent event"""
Reader = Callable[[str, dict[str, Any]], T | None]
"""makes a value of a message, or None for one to pass over"""


class Messages(Generic[T]):
    """Server-sent events as values."""

    def __init__(self, answer: Answer, read: Reader[T]) -> None:
        self._answer = answer
        self._read = read
        self._decoder = EventDecoder()
        self._waiting: deque[Message] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while True:
            while self._waiting:
                if (value := self._interpret(*self._waiting.popleft())) is not None:
                    return value
            chunk = await anext(self._answer)
            self._waiting.extend((event.name, read_object(event.data)) for event in self._decoder.feed(chunk))

    def _interpret(self, name: str, data: dict[str, Any]) -> T | None:
        """Raises: ApiError for an event named "error", ConnectionLost for one that makes no sense."""
        if name == "error":
            raise error_from(data, status=500)
        try:
            return self._read(name, data)
        except (LookupError, TypeError, ValueError) as error:
            raise ConnectionLost(f"cannot read the daemon's event: {error!r}") from error


class Pages(Generic[T]):
    """The items of all pages. `fetch` gets the page after a cursor, and the next cursor or None."""

    def __init__(self, fetch: Callable[[str | None], Awaitable[tuple[list[T], str | None]]]) -> None:
        self._fetch = fetch
        self._waiting: deque[T] = deque()
        self._cursor: str | None = None
        self._more = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while not self._waiting:
            if not self._more:
                raise StopAsyncIteration
            items, self._cursor = await self._fetch(self._cursor)
            self._waiting.extend(items)
            self._more = self._cursor is not None
        return self._waiting.popleft()


Content = bytes | Iterable[bytes] | AsyncIterable[bytes]
"""What is sent: bytes, or pieces of any size and number, e.g. a file opened in binary mode."""


class Chunks(AsyncIterator[bytes]):
    """Content as an asynchronous iterator."""

    def __init__(self, content: bytes | Iterable[bytes]) -> None:
        self._pieces = iter([content] if isinstance(content, bytes) else content)

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


def chunks_of(content: Content) -> AsyncIterable[bytes]:
    """Content as what HTTP sends."""
    return content if isinstance(content, AsyncIterable) else Chunks(content)


def read_object(text: str | bytes) -> dict[str, Any]:
    """Raises: ConnectionLost for what is no JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConnectionLost(f"cannot read the daemon's answer: {error}") from error
    if not isinstance(value, dict):
        raise ConnectionLost("cannot read the daemon's answer: it is not a JSON object")
    return value
