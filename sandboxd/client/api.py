"""The asynchronous client: one method per operation of the daemon's native API."""

import json
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Unpack
from urllib.parse import quote

from sandboxd.client.background import CommandMethods
from sandboxd.client.calls import (
    Caller,
    Command,
    SandboxRef,
    body_headers,
    command_fields,
    drop_none,
    json_of,
    sandbox_id,
    sandbox_path,
    target_of,
)
from sandboxd.client.code import CodeMethods
from sandboxd.client.execution import Exec, ExecEvent, read_event
from sandboxd.client.files import FileMethods
from sandboxd.client.lifecycle import LifecycleMethods
from sandboxd.client.models import (
    ApiKey,
    Capabilities,
    CommandResult,
    Event,
    Health,
    Image,
    LogRecord,
    Metrics,
    Sandbox,
    SandboxOptions,
)
from sandboxd.client.network import Network, current
from sandboxd.client.ports import PortMethods
from sandboxd.client.ptys import PtyMethods
from sandboxd.client.snapshots import SnapshotMethods
from sandboxd.client.streams import Content, Messages, Pages, chunks_of
from sandboxd.client.watches import WatchMethods


class AsyncClient(
    CodeMethods,
    CommandMethods,
    FileMethods,
    LifecycleMethods,
    PortMethods,
    PtyMethods,
    SnapshotMethods,
    WatchMethods,
    Caller,
):
    """A daemon's native API, on trio or asyncio: whichever runs where it is made.

    Owns: its idle connections, closed when its context ends. Safe to use from several tasks at once. Every method
    raises ApiError when the daemon refuses, DaemonUnreachable or ConnectionLost. To bound a call in time use
    `trio.fail_after` or `asyncio.timeout`: cancelling it closes its connection, which the daemon notices.
    """

    def __init__(self, url: str | None = None, *, api_key: str | None = None, network: Network | None = None) -> None:
        """`url`: unix:PATH, http://HOST:PORT or https://HOST:PORT; by default SANDBOXD_URL, or this user's daemon.

        `api_key`: by default that of SANDBOXD_API_KEY. `network`: what it runs on, by default the running event loop.
        Raises: ClientError for an address that is none, RuntimeError outside of an event loop.
        """
        super().__init__(url, api_key=api_key, network=network or current())

    # The daemon

    async def health(self) -> Health:
        return Health.read(await self._call("GET", "/v1/health"))

    async def capabilities(self) -> Capabilities:
        return Capabilities.read(await self._call("GET", "/v1/capabilities"))

    # Sandboxes

    async def create(self, **options: Unpack[SandboxOptions]) -> Sandbox:
        """Make a sandbox; see SandboxOptions. None is the daemon's default, as if the option were not given."""
        return Sandbox.read(await self._call("POST", "/v1/sandboxes", drop_none(**options)))

    async def get(self, sandbox: SandboxRef) -> Sandbox:
        """By id or name, as everywhere below."""
        return Sandbox.read(await self._call("GET", sandbox_path(sandbox)))

    def sandboxes(
        self, *, status: str | None = None, metadata: Mapping[str, str] | None = None, page: int = 100
    ) -> AsyncIterator[Sandbox]:
        """All sandboxes that match, oldest first, asked for in pages."""
        labels = {f"metadata.{key}": value for key, value in (metadata or {}).items()}

        async def fetch(cursor: str | None) -> tuple[list[Sandbox], str | None]:
            query = drop_none(limit=page, status=status, cursor=cursor, **labels)
            answer = await self._call("GET", "/v1/sandboxes", query=query)
            return [Sandbox.read(raw) for raw in answer["sandboxes"]], answer.get("next_cursor")

        return Pages(fetch)

    async def delete(self, sandbox: SandboxRef) -> None:
        """Returns once nothing of it is left."""
        await self._call("DELETE", sandbox_path(sandbox))

    async def metrics(self, sandbox: SandboxRef) -> Metrics:
        return Metrics.read(await self._call("GET", sandbox_path(sandbox, "metrics")))

    # Commands

    async def shell(
        self,
        sandbox: SandboxRef,
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
        body = drop_none(
            cwd=cwd,
            env=env,
            user=user,
            stdin_b64=None if stdin is None else b64encode(stdin).decode(),
            timeout_ms=timeout_ms,
            max_output_bytes=max_output_bytes,
            encoding="base64",
        )
        return CommandResult.read(
            await self._call("POST", sandbox_path(sandbox, "shell"), {**command_fields(command), **body})
        )

    @asynccontextmanager
    async def shell_stream(
        self,
        sandbox: SandboxRef,
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
        options = drop_none(
            cwd=cwd, env=env, user=user, stdin_b64=stdin_b64, timeout_ms=timeout_ms, encoding="base64"
        )
        body = json.dumps({**command_fields(command), **options}).encode()
        async with self._follow("POST", sandbox_path(sandbox, "shell/stream"), body) as answer:
            yield Messages[ExecEvent](answer, read_event)

    @asynccontextmanager
    async def exec(
        self,
        sandbox: SandboxRef,
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
        options = drop_none(cwd=cwd, env=env, user=user, timeout_ms=timeout_ms)
        if terminal is not None:
            options["terminal"] = {"cols": terminal[0], "rows": terminal[1]}
        async with self._websocket(sandbox_path(sandbox, "exec")) as websocket:
            running = Exec(websocket, self._network)
            await running.begin(type="start", **command_fields(command), stdin=stdin, **options)
            yield running

    # Events and the log

    async def events(
        self, *, after: int = 0, limit: int = 100, sandbox: SandboxRef | None = None
    ) -> tuple[list[Event], int | None]:
        """Up to `limit` past events after the one with id `after`, and where the next page starts."""
        answer = await self._call(
            "GET", "/v1/events", query=drop_none(after=after, limit=limit, sandbox=_optional_id(sandbox))
        )
        return [Event.read(raw) for raw in answer["events"]], answer.get("next_after")

    @asynccontextmanager
    async def follow_events(
        self, *, after: int | None = None, sandbox: SandboxRef | None = None
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Events as they happen, from now or after the one with id `after`."""
        target = target_of("/v1/events", drop_none(follow="true", after=after, sandbox=_optional_id(sandbox)))
        async with self._follow("GET", target) as answer:
            yield Messages[Event](answer, lambda _, data: Event.read(data))

    async def log(self, *, after: int = 0, limit: int = 100) -> tuple[list[LogRecord], int | None]:
        """The latest `limit` lines of the daemon's log that it still holds, and where the next page starts."""
        answer = await self._call("GET", "/v1/log", query={"after": after, "limit": limit})
        return [LogRecord.read(raw) for raw in answer["records"]], answer.get("next_after")

    @asynccontextmanager
    async def follow_log(self, *, after: int | None = None) -> AsyncIterator[AsyncIterator[LogRecord]]:
        """Lines of the daemon's log as they are written, from now or after the one with id `after`."""
        target = target_of("/v1/log", drop_none(follow="true", after=after))
        async with self._follow("GET", target) as answer:
            yield Messages[LogRecord](answer, lambda _, data: LogRecord.read(data))

    # Images

    async def images(self) -> list[Image]:
        return [Image.read(raw) for raw in (await self._call("GET", "/v1/images"))["images"]]

    async def delete_image(self, name: str) -> None:
        """By name or digest."""
        await self._call("DELETE", f"/v1/images/{quote(name, safe='')}")

    async def import_image(self, name: str, archive: Content, *, size: int | None = None) -> Image:
        """Make an image from a tar archive of a root file system."""
        target = target_of("/v1/images/import", {"name": name})
        headers = body_headers("application/x-tar", size)
        async with self._pool.exchange("POST", target, chunks_of(archive), headers) as answer:
            return Image.read(await json_of(answer))

    @asynccontextmanager
    async def build_image(self, recipe: str, *, rebuild: bool = False) -> AsyncIterator[AsyncIterator[str | Image]]:
        """Build an image from a recipe the daemon knows: lines of progress, then the image."""
        body = json.dumps({"recipe": recipe, "rebuild": rebuild}).encode()
        async with self._follow("POST", "/v1/images/build", body) as answer:
            yield Messages[str | Image](answer, _build_news)

    # Keys

    async def create_key(
        self,
        name: str,
        *,
        scopes: Sequence[str],
        own: bool = False,
        tier: str | None = None,
        max_sandboxes: int | None = None,
        requests_per_minute: int | None = None,
        max_memory_bytes: int | None = None,
        max_disk_bytes: int | None = None,
    ) -> ApiKey:
        """Make a key. This is the only answer that contains the key itself.

        `scopes`: read, write, admin. `own`: it sees only what it created. `tier`: beta, pro or unlimited; the bounds
        beside it are in place of the tier's.
        """
        quota = drop_none(
            tier=tier,
            max_sandboxes=max_sandboxes,
            requests_per_minute=requests_per_minute,
            max_memory_bytes=max_memory_bytes,
            max_disk_bytes=max_disk_bytes,
        )
        body = {"name": name, "scopes": [*scopes], "own": own, **quota}
        return ApiKey.read(await self._call("POST", "/v1/keys", body))

    async def keys(self) -> list[ApiKey]:
        return [ApiKey.read(raw) for raw in (await self._call("GET", "/v1/keys"))["keys"]]

    async def revoke_key(self, key: str) -> None:
        await self._call("DELETE", f"/v1/keys/{quote(key, safe='')}")


def _optional_id(sandbox: SandboxRef | None) -> str | None:
    return None if sandbox is None else sandbox_id(sandbox)


def _build_news(name: str, data: dict[str, Any]) -> str | Image | None:
    if name == "image":
        return Image.read(data)
    return str(data["message"]) if name == "progress" else None
