"""How the client's methods speak to the daemon, apart from what they say."""

import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

from sandboxd.client.address import Address, default_address
from sandboxd.client.errors import ClientError
from sandboxd.client.http import Answer, Headers, HttpPool
from sandboxd.client.models import Json
from sandboxd.client.streams import read_object
from sandboxd.client.websocket import WebSocket

Command = str | Sequence[str]
"""a string for the sandbox's shell, or a program and its arguments"""


class Caller:
    """What the parts of `Client` stand on. Owns: its idle connections, closed when its context ends."""

    def __init__(self, url: str | None = None, *, api_key: str | None = None) -> None:
        """By default the daemon of SANDBOXD_URL or of this user, with the key of SANDBOXD_API_KEY."""
        self.address = default_address() if url is None else Address.parse(url)
        key = os.environ.get("SANDBOXD_API_KEY") if api_key is None else api_key
        self._auth = [("Authorization", f"Bearer {key}")] if key else []
        self._pool = HttpPool(self.address, self._auth)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()

    async def _call(self, method: str, path: str, body: Any = None, *, query: Json | None = None) -> dict[str, Any]:
        data = b"" if body is None else json.dumps(body).encode()
        async with self._pool.exchange(method, target_of(path, query), data) as answer:
            return await json_of(answer)

    @asynccontextmanager
    async def _follow(self, method: str, target: str, body: bytes = b"") -> AsyncIterator[Answer]:
        async with self._pool.exchange(method, target, body, [("Accept", "text/event-stream")]) as answer:
            yield answer

    @asynccontextmanager
    async def _websocket(self, path: str) -> AsyncIterator[WebSocket]:
        websocket = WebSocket(await self.address.connect())
        try:
            await websocket.open(self.address.authority, self.address.prefix + path, self._auth)
            yield websocket
        finally:
            await websocket.aclose()


async def json_of(answer: Answer) -> dict[str, Any]:
    return read_object(await answer.read())


def given(**values: Any) -> dict[str, Any]:
    """Without those that are None: the daemon's defaults hold for them."""
    return {name: value for name, value in values.items() if value is not None}


def body_headers(content_type: str, size: int | None) -> Headers:
    """Of a streamed body; one of unknown size is sent in chunks."""
    framing = ("Transfer-Encoding", "chunked") if size is None else ("Content-Length", str(size))
    return [("Content-Type", content_type), framing]


def command_wish(command: Command) -> dict[str, Any]:
    return {"cmd": command} if isinstance(command, str) else {"argv": [*command]}


def sandbox_path(sandbox: str, operation: str = "") -> str:
    if "/" in sandbox:  # the server would take it for a longer path, and say that there is none
        raise ClientError(f"cannot find a sandbox {sandbox!r}: no id and no name has a slash in it")
    return f"/v1/sandboxes/{quote(sandbox, safe='')}{'/' if operation else ''}{operation}"


def target_of(path: str, query: Json | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path
