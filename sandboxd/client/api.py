"""The client: one method per operation of the daemon's native API."""

import json
from base64 import b64encode
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Unpack
from urllib.parse import quote

from sandboxd.client.background import CommandMethods
from sandboxd.client.calls import Caller, Command, body_headers, command_wish, given, json_of, sandbox_path, target_of
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
from sandboxd.client.ports import PortMethods
from sandboxd.client.ptys import PtyMethods
from sandboxd.client.snapshots import SnapshotMethods
from sandboxd.client.streams import Messages, Pages
from sandboxd.client.watches import WatchMethods


class Client(
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
    """A daemon's native API. Owns: its idle connections, closed when its context ends.

    Safe to use from several tasks at once. Every method raises ApiError, DaemonUnreachable or ConnectionLost.
    """

    # The daemon

    async def health(self) -> Health:
        return Health.read(await self._call("GET", "/v1/health"))

    async def capabilities(self) -> Capabilities:
        return Capabilities.read(await self._call("GET", "/v1/capabilities"))

    # Sandboxes

    async def create(self, **options: Unpack[SandboxOptions]) -> Sandbox:
        """Make a sandbox; see SandboxOptions. None is the daemon's default, as if the option were not given."""
        return Sandbox.read(await self._call("POST", "/v1/sandboxes", given(**options)))

    async def get(self, sandbox: str) -> Sandbox:
        """By id or name, as everywhere below."""
        return Sandbox.read(await self._call("GET", sandbox_path(sandbox)))

    def sandboxes(
        self, *, status: str | None = None, metadata: Mapping[str, str] | None = None, page: int = 100
    ) -> AsyncIterator[Sandbox]:
        """All sandboxes that match, oldest first, asked for in pages."""
        labels = {f"metadata.{key}": value for key, value in (metadata or {}).items()}

        async def fetch(cursor: str | None) -> tuple[list[Sandbox], str | None]:
            query = given(limit=page, status=status, cursor=cursor, **labels)
            answer = await self._call("GET", "/v1/sandboxes", query=query)
            return [Sandbox.read(raw) for raw in answer["sandboxes"]], answer.get("next_cursor")

        return Pages(fetch)

    async def delete(self, sandbox: str) -> None:
        """Returns once nothing of it is left."""
        await self._call("DELETE", sandbox_path(sandbox))

    async def metrics(self, sandbox: str) -> Metrics:
        return Metrics.read(await self._call("GET", sandbox_path(sandbox, "metrics")))

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
        wish = given(
            cwd=cwd,
            env=env,
            user=user,
            stdin_b64=None if stdin is None else b64encode(stdin).decode(),
            timeout_ms=timeout_ms,
            max_output_bytes=max_output_bytes,
            encoding="base64",
        )
        return CommandResult.read(
            await self._call("POST", sandbox_path(sandbox, "shell"), {**command_wish(command), **wish})
        )

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
        wish = given(cwd=cwd, env=env, user=user, stdin_b64=stdin_b64, timeout_ms=timeout_ms, encoding="base64")
        body = json.dumps({**command_wish(command), **wish}).encode()
        async with self._follow("POST", sandbox_path(sandbox, "shell/stream"), body) as answer:
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
        options = given(cwd=cwd, env=env, user=user, timeout_ms=timeout_ms)
        if terminal is not None:
            options["terminal"] = {"cols": terminal[0], "rows": terminal[1]}
        async with self._websocket(sandbox_path(sandbox, "exec")) as websocket:
            running = Exec(websocket)
            await running.begin(type="start", **command_wish(command), stdin=stdin, **options)
            yield running

    # Events and the log

    async def events(
        self, *, after: int = 0, limit: int = 100, sandbox: str | None = None
    ) -> tuple[list[Event], int | None]:
        """Up to `limit` past events after the one with id `after`, and where the next page starts."""
        answer = await self._call("GET", "/v1/events", query=given(after=after, limit=limit, sandbox=sandbox))
        return [Event.read(raw) for raw in answer["events"]], answer.get("next_after")

    @asynccontextmanager
    async def follow_events(
        self, *, after: int | None = None, sandbox: str | None = None
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Events as they happen, from now or after the one with id `after`."""
        target = target_of("/v1/events", given(follow="true", after=after, sandbox=sandbox))
        async with self._follow("GET", target) as answer:
            yield Messages[Event](answer, lambda _, data: Event.read(data))

    async def log(self, *, after: int = 0, limit: int = 100) -> tuple[list[LogRecord], int | None]:
        """The latest `limit` lines of the daemon's log that it still holds, and where the next page starts."""
        answer = await self._call("GET", "/v1/log", query={"after": after, "limit": limit})
        return [LogRecord.read(raw) for raw in answer["records"]], answer.get("next_after")

    @asynccontextmanager
    async def follow_log(self, *, after: int | None = None) -> AsyncIterator[AsyncIterator[LogRecord]]:
        """Lines of the daemon's log as they are written, from now or after the one with id `after`."""
        target = target_of("/v1/log", given(follow="true", after=after))
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
        target = target_of("/v1/images/import", {"name": name})
        async with self._pool.exchange("POST", target, archive, body_headers("application/x-tar", size)) as answer:
            return Image.read(await json_of(answer))

    @asynccontextmanager
    async def build_image(self, recipe: str, *, rebuild: bool = False) -> AsyncIterator[AsyncIterator[str | Image]]:
        """Build an image from a recipe the daemon knows: lines of progress, then the image."""
        body = json.dumps({"recipe": recipe, "rebuild": rebuild}).encode()
        async with self._follow("POST", "/v1/images/build", body) as answer:
            yield Messages[str | Image](answer, _build_news)

    # Keys

    async def create_key(self, name: str, *, scopes: Sequence[str], own: bool = False, **quota: Any) -> ApiKey:
        """The only answer that contains the key itself.

        `own`: it sees what it created alone. `quota`: tier, max_sandboxes, requests_per_minute, max_memory_bytes,
        max_disk_bytes.
        """
        wish = {"name": name, "scopes": [*scopes], "own": own, **given(**quota)}
        return ApiKey.read(await self._call("POST", "/v1/keys", wish))

    async def keys(self) -> list[ApiKey]:
        return [ApiKey.read(raw) for raw in (await self._call("GET", "/v1/keys"))["keys"]]

    async def revoke_key(self, key: str) -> None:
        await self._call("DELETE", f"/v1/keys/{quote(key, safe='')}")


def _build_news(name: str, data: dict[str, Any]) -> str | Image | None:
    if name == "image":
        return Image.read(data)
    return str(data["message"]) if name == "progress" else None
