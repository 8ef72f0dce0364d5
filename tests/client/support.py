"""A server that says what it is told to, for the client to survive."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio


@asynccontextmanager
async def server(path: Path, *answers: bytes) -> AsyncIterator[str]:
    """A server that takes one request per connection, answers it with the next of `answers`, and closes."""
    rest = iter(answers)

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(next(rest))

    listening = trio.socket.socket(trio.socket.AF_UNIX)
    await listening.bind(str(path))
    listening.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, [trio.SocketListener(listening)])
        yield f"unix:{path}"
        nursery.cancel_scope.cancel()
