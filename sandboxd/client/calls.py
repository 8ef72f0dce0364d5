"""How the client's methods speak to the daemon, apart from what they say."""

import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlencode

from sandboxd.client.address import Address, default_address
from sandboxd.client.errors import ClientError
from sandboxd.client.http import Answer, Headers, HttpPool
from sandboxd.client.models import Json, Sandbox
from sandboxd.client.network import Network
from sandboxd.client.streams import read_object

if TYPE_CHECKING:
    from sandboxd.client.websocket import WebSocket

Command = str | Sequence[str]
"""A command: a string for the sandbox's shell, or a program and its arguments."""

SandboxRef = str | Sandbox
"""A sandbox by its id or its name, or as a method has returned it."""


class Caller:
    """What the parts of `AsyncClient` have in common. Owns: its idle connections, closed when its context ends."""

    def __init__(self, url: str | None, *, api_key: str | None, network: Network) -> None:
        self._network = network
        self.address = default_address() if url is None else Address.parse(url)
        key = os.environ.get("SANDBOXD_API_KEY") if api_key is None else api_key
        self._auth = [("Authorization", f"Bearer {key}")] if key else []
        self._pool = HttpPool(self.address, self._auth, network)

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
    async def _websocket(self, path: str) -> AsyncIterator["WebSocket"]:
        from sandboxd.client.websocket import WebSocket  # loaded by the few who need it

        websocket = WebSocket(await self.address.connect(self._network), self._network)
        try:
            await websocket.open(self.address.authority, self.address.prefix + path, self._auth)
            yield websocket
        finally:
            await websocket.aclose()


async def json_of(answer: Answer) -> dict[str, Any]:
    return read_object(await answer.read())


def drop_none(**values: Any) -> dict[str, Any]:
    """Without those that are None: the daemon's defaults hold for them."""
    return {name: value for name, value in values.items() if value is not None}


def body_headers(content_type: str, size: int | None) -> Headers:
    """Of a streamed body; one of unknown size is sent in chunks."""
    framing = ("Transfer-Encoding", "chunked") if size is None else ("Content-Length", str(size))
    return [("Content-Type", content_type), framing]


def command_fields(command: Command) -> dict[str, Any]:
    return {"cmd": command} if isinstance(command, str) else {"argv": [*command]}


def sandbox_id(sandbox: SandboxRef) -> str:
    """What the API calls a sandbox."""
    return sandbox.id if isinstance(sandbox, Sandbox) else sandbox


def sandbox_path(sandbox: SandboxRef, operation: str = "") -> str:
    """The path of a sandbox, or of an operation on it. Raises: ClientError for a name that cannot be one."""
    sandbox = sandbox_id(sandbox)
    if "/" in sandbox:  # the server would take it for a longer path, and say that there is none
        raise ClientError(f"cannot find a sandbox {sandbox!r}: no id and no name has a slash in it")
    return f"/v1/sandboxes/{quote(sandbox, safe='')}{'/' if operation else ''}{operation}"


def target_of(path: str, query: Json | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path
