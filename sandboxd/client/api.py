"""The client: one method per operation of the daemon's native API."""

import json
import os
from base64 import b64encode
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

from sandboxd.client.address import Address, default_address
from sandboxd.client.execution import Exec, ExecEvent, read_event
from sandboxd.client.http import Answer, Headers, HttpPool
from sandboxd.client.models import (
    ApiKey,
    Capabilities,
    CommandResult,
    Event,
    Health,
    Image,
    Json,
    LogRecord,
    Metrics,
    Sandbox,
)
from sandboxd.client.streams import Messages, OneChunk, Pages, read_object
from sandboxd.client.websocket import WebSocket

Command = str | Sequence[str]
"""a string for the sandbox's shell, or a program and its arguments"""


class Client:
    """A daemon's native API. Owns: its idle connections, closed when its context ends.

    Safe to use from several tasks at once. Every method raises ApiError, DaemonUnreachable or ConnectionLost.
    """

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

    # The daemon

    async def health(self) -> Health:
        return Health.read(await self._call("GET", "/v1/health"))

    async def capabilities(self) -> Capabilities:
        return Capabilities.read(await self._call("GET", "/v1/capabilities"))

    # Sandboxes

    async def create(
        self,
        *,
        image: str | None = None,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout_ms: int | None = None,
        limits: Json | None = None,
        user: str | None = None,
        workdir: str | None = None,
        hostname: str | None = None,
    ) -> Sandbox:
        """`limits`: memory_bytes, swap_bytes, pids, cpus, cpu_weight, read_bps, write_bps. None is the default."""
        wish = _given(
            image=image,
            name=name,
            env=env,
            metadata=metadata,
            timeout_ms=timeout_ms,
            limits=limits,
            user=user,
            workdir=workdir,
            hostname=hostname,
        )
        return Sandbox.read(await self._call("POST", "/v1/sandboxes", wish))

    async def get(self, sandbox: str) -> Sandbox:
        """By id or name, as everywhere below."""
        return Sandbox.read(await self._call("GET", _path(sandbox)))

    def sandboxes(
        self, *, status: str | None = None, metadata: Mapping[str, str] | None = None, page: int = 100
    ) -> AsyncIterator[Sandbox]:
        """All sandboxes that match, oldest first, asked for in pages."""
        labels = {f"metadata.{key}": value for key, value in (metadata or {}).items()}

        async def fetch(cursor: str | None) -> tuple[list[Sandbox], str | None]:
            query = _given(limit=page, status=status, cursor=cursor, **labels)
            answer = await self._call("GET", "/v1/sandboxes", query=query)
            return [Sandbox.read(raw) for raw in answer["sandboxes"]], answer.get("next_cursor")

        return Pages(fetch)

    async def delete(self, sandbox: str) -> None:
        """Returns once nothing of it is left."""
        await self._call("DELETE", _path(sandbox))

    async def set_timeout(self, sandbox: str, *, timeout_ms: int | None) -> Sandbox:
        """Its lifetime from now; None lets it live until it is deleted."""
        return Sandbox.read(await self._call("POST", _path(sandbox, "timeout"), {"timeout_ms": timeout_ms}))

    async def metrics(self, sandbox: str) -> Metrics:
        return Metrics.read(await self._call("GET", _path(sandbox, "metrics")))

    # Commands

    async def shell(
        self,
        sandbox: str,
        command: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        stdin: bytes | None = None,
        timeout_ms: int | None = None,
        max_output_bytes: int | None = None,
    ) -> CommandResult:
        """Run a command to its end. A command that fails is a result, not an error."""
        wish = _given(
            cwd=cwd,
            env=env,
            user=user,
            stdin_b64=None if stdin is None else b64encode(stdin).decode(),
            timeout_ms=timeout_ms,
            max_output_bytes=max_output_bytes,
            encoding="base64",
        )
        return CommandResult.read(await self._call("POST", _path(sandbox, "shell"), {**_command(command), **wish}))

    @asynccontextmanager
    async def shell_stream(
        self,
        sandbox: str,
        command: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        stdin: bytes | None = None,
        timeout_ms: int | None = None,
    ) -> AsyncIterator[AsyncIterator[ExecEvent]]:
        """Run a command to its end and get its output as it comes; leaving the context early kills it."""
        stdin_b64 = None if stdin is None else b64encode(stdin).decode()
        wish = _given(cwd=cwd, env=env, user=user, stdin_b64=stdin_b64, timeout_ms=timeout_ms, encoding="base64")
        body = json.dumps({**_command(command), **wish}).encode()
        async with self._follow("POST", _path(sandbox, "shell/stream"), body) as answer:
            yield Messages[ExecEvent](answer, read_event)

    @asynccontextmanager
    async def exec(
        self,
        sandbox: str,
        command: Command,
        *,
        stdin: bool = False,
        terminal: tuple[int, int] | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        timeout_ms: int | None = None,
    ) -> AsyncIterator[Exec]:
        """Start a command and talk to it while it runs. `terminal`: its (cols, rows), and stdin goes through it.

        Leaving the context kills the command if it still runs.
        """
        options = _given(cwd=cwd, env=env, user=user, timeout_ms=timeout_ms)
        if terminal is not None:
            options["terminal"] = {"cols": terminal[0], "rows": terminal[1]}
        websocket = WebSocket(await self.address.connect())
        try:
            target = self.address.prefix + _path(sandbox, "exec")
            await websocket.open(self.address.authority, target, self._auth)
            await websocket.send(json.dumps({"type": "start", **_command(command), "stdin": stdin, **options}))
            yield Exec(websocket)
        finally:
            await websocket.aclose()

    # Files

    async def upload(
        self,
        sandbox: str,
        path: str,
        data: bytes | AsyncIterable[bytes],
        *,
        size: int | None = None,
        mode: int | None = None,
        user: str | None = None,
        parents: bool = False,
    ) -> int:
        """Write a file as one atomic step, from bytes or a stream of any length; returns its size.

        `size`: what a stream will yield, if known. `mode`: permission bits. `parents`: make missing directories.
        """
        chunks = OneChunk(data) if isinstance(data, bytes) else data
        length = len(data) if isinstance(data, bytes) else size
        query = _given(path=path, mode=None if mode is None else f"{mode:04o}", user=user)
        if parents:
            query["parents"] = "true"
        target = _target(_path(sandbox, "files"), query)
        headers = _body_headers("application/octet-stream", length)
        async with self._pool.exchange("PUT", target, chunks, headers) as answer:
            return int((await _json(answer))["size"])

    @asynccontextmanager
    async def download(self, sandbox: str, path: str, *, user: str | None = None) -> AsyncIterator[Answer]:
        """A file's content: `answer.size`, then iterate over `answer`, or `await answer.read()`."""
        target = _target(_path(sandbox, "files"), _given(path=path, user=user))
        async with self._pool.exchange("GET", target) as answer:
            yield answer

    # Events and the log

    async def events(
        self, *, after: int = 0, limit: int = 100, sandbox: str | None = None
    ) -> tuple[list[Event], int | None]:
        """Up to `limit` past events after the one with id `after`, and where the next page starts."""
        answer = await self._call("GET", "/v1/events", query=_given(after=after, limit=limit, sandbox=sandbox))
        return [Event.read(raw) for raw in answer["events"]], answer.get("next_after")

    @asynccontextmanager
    async def follow_events(
        self, *, after: int | None = None, sandbox: str | None = None
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Events as they happen, from now or after the one with id `after`."""
        target = _target("/v1/events", _given(follow="true", after=after, sandbox=sandbox))
        async with self._follow("GET", target) as answer:
            yield Messages[Event](answer, lambda _, data: Event.read(data))

    async def log(self, *, after: int = 0, limit: int = 100) -> tuple[list[LogRecord], int | None]:
        """The latest `limit` lines of the daemon's log that it still holds, and where the next page starts."""
        answer = await self._call("GET", "/v1/log", query={"after": after, "limit": limit})
        return [LogRecord.read(raw) for raw in answer["records"]], answer.get("next_after")

    @asynccontextmanager
    async def follow_log(self, *, after: int | None = None) -> AsyncIterator[AsyncIterator[LogRecord]]:
        """Lines of the daemon's log as they are written, from now or after the one with id `after`."""
        target = _target("/v1/log", _given(follow="true", after=after))
        async with self._follow("GET", target) as answer:
            yield Messages[LogRecord](answer, lambda _, data: LogRecord.read(data))

    # Images

    async def images(self) -> list[Image]:
        return [Image.read(raw) for raw in (await self._call("GET", "/v1/images"))["images"]]

    async def delete_image(self, name: str) -> None:
        """By name or digest."""
        await self._call("DELETE", f"/v1/images/{quote(name, safe='')}")

    async def import_image(self, name: str, archive: AsyncIterable[bytes], *, size: int | None = None) -> Image:
        """Make an image from a tar archive of a root file system."""
        target = _target("/v1/images/import", {"name": name})
        async with self._pool.exchange("POST", target, archive, _body_headers("application/x-tar", size)) as answer:
            return Image.read(await _json(answer))

    @asynccontextmanager
    async def build_image(self, recipe: str, *, rebuild: bool = False) -> AsyncIterator[AsyncIterator[str | Image]]:
        """Build an image from a recipe the daemon knows: lines of progress, then the image."""
        body = json.dumps({"recipe": recipe, "rebuild": rebuild}).encode()
        async with self._follow("POST", "/v1/images/build", body) as answer:
            yield Messages[str | Image](answer, _build_news)

    # Keys

    async def create_key(self, name: str, *, scopes: Sequence[str]) -> ApiKey:
        """The only answer that contains the key itself."""
        return ApiKey.read(await self._call("POST", "/v1/keys", {"name": name, "scopes": [*scopes]}))

    async def keys(self) -> list[ApiKey]:
        return [ApiKey.read(raw) for raw in (await self._call("GET", "/v1/keys"))["keys"]]

    async def revoke_key(self, key: str) -> None:
        await self._call("DELETE", f"/v1/keys/{quote(key, safe='')}")

    # How

    async def _call(self, method: str, path: str, body: Any = None, *, query: Json | None = None) -> dict[str, Any]:
        data = b"" if body is None else json.dumps(body).encode()
        async with self._pool.exchange(method, _target(path, query), data) as answer:
            return await _json(answer)

    @asynccontextmanager
    async def _follow(self, method: str, target: str, body: bytes = b"") -> AsyncIterator[Answer]:
        async with self._pool.exchange(method, target, body, [("Accept", "text/event-stream")]) as answer:
            yield answer


def _build_news(name: str, data: dict[str, Any]) -> str | Image | None:
    if name == "image":
        return Image.read(data)
    return str(data["message"]) if name == "progress" else None


async def _json(answer: Answer) -> dict[str, Any]:
    return read_object(await answer.read())


def _given(**values: Any) -> dict[str, Any]:
    """Without those that are None: the daemon's defaults hold for them."""
    return {name: value for name, value in values.items() if value is not None}


def _body_headers(content_type: str, size: int | None) -> Headers:
    """Of a streamed body; one of unknown size is sent in chunks."""
    framing = ("Transfer-Encoding", "chunked") if size is None else ("Content-Length", str(size))
    return [("Content-Type", content_type), framing]


def _command(command: Command) -> dict[str, Any]:
    return {"cmd": command} if isinstance(command, str) else {"argv": [*command]}


def _path(sandbox: str, operation: str = "") -> str:
    return f"/v1/sandboxes/{quote(sandbox, safe='')}{'/' if operation else ''}{operation}"


def _target(path: str, query: Json | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path
