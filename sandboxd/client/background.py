"""The client's methods for background commands."""

from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from sandboxd.client.calls import Caller, Command, SandboxRef, command_fields, drop_none, sandbox_path, target_of
from sandboxd.client.execution import Output, OutputLost, read_event
from sandboxd.client.models import BackgroundCommand, CommandLogs
from sandboxd.client.streams import Messages

Stream = Literal["stdout", "stderr"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A background command has ended; the last event of its log."""

    status: str
    """exited, killed, or lost: its machine ended under it"""
    exit_code: int | None
    """128+n when signal n ended it; None when it is lost"""
    signal: str | None
    unlogged_bytes: int = 0


LogEvent = Output | OutputLost | Ended


class CommandMethods(Caller):
    """A command in the background runs until it ends, whoever leaves, the daemon included."""

    async def start_command(
        self,
        sandbox: SandboxRef,
        command: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        stdin: bool = False,
        timeout_ms: int | None = None,
    ) -> BackgroundCommand:
        """`stdin`: it gets one that `write_stdin` feeds; otherwise it reads /dev/null."""
        options = drop_none(cwd=cwd, env=env, user=user, timeout_ms=timeout_ms)
        body = {**command_fields(command), "stdin": stdin, **options}
        return BackgroundCommand.read(await self._call("POST", sandbox_path(sandbox, "commands"), body))

    async def commands(self, sandbox: SandboxRef) -> list[BackgroundCommand]:
        """Background commands and terminals, running and ended, oldest first."""
        answer = await self._call("GET", sandbox_path(sandbox, "commands"))
        return [BackgroundCommand.read(raw) for raw in answer["commands"]]

    async def command(self, sandbox: SandboxRef, command: str) -> BackgroundCommand:
        return BackgroundCommand.read(await self._call("GET", _path(sandbox, command)))

    async def wait_command(
        self, sandbox: SandboxRef, command: str, *, timeout_ms: int | None = None
    ) -> BackgroundCommand:
        """Until it has ended; with `timeout_ms` at most so long, and it may be running then."""
        while True:
            body = drop_none(timeout_ms=timeout_ms)
            found = BackgroundCommand.read(await self._call("POST", _path(sandbox, command, "wait"), body))
            if timeout_ms is not None or found.ended:
                return found

    async def command_logs(
        self,
        sandbox: SandboxRef,
        command: str,
        *,
        stream: Stream | None = None,
        offset: int | None = None,
        cursor: str | None = None,
        tail: int | None = None,
        limit_bytes: int | None = None,
    ) -> CommandLogs:
        """Its output as exact bytes, from the oldest that is kept, `offset`, an answer's `cursor`, or the `tail`."""
        part = drop_none(stream=stream, offset=offset, cursor=cursor, tail=tail, limit_bytes=limit_bytes)
        body = {**part, "encoding": "base64"}
        return CommandLogs.read(await self._call("POST", _path(sandbox, command, "logs"), body))

    @asynccontextmanager
    async def follow_logs(
        self,
        sandbox: SandboxRef,
        command: str,
        *,
        stream: Stream | None = None,
        offset: int | None = None,
        tail: int | None = None,
    ) -> AsyncIterator[AsyncIterator[LogEvent]]:
        """Its output, past and to come, until `Ended`."""
        query = drop_none(stream=stream, offset=offset, tail=tail, encoding="base64")
        target = target_of(_path(sandbox, command, "logs/stream"), query)
        async with self._follow("GET", target) as answer:
            yield Messages[LogEvent](answer, _log_event)

    async def write_stdin(self, sandbox: SandboxRef, command: str, data: bytes, *, close: bool = False) -> int:
        """Returns how much of it the command took: all, unless it closed its stdin or does not read on."""
        body = {"data_b64": b64encode(data).decode(), "close": close}
        return int((await self._call("POST", _path(sandbox, command, "stdin"), body))["taken_bytes"])

    async def close_stdin(self, sandbox: SandboxRef, command: str) -> None:
        await self._call("POST", _path(sandbox, command, "stdin/close"))

    async def signal_command(
        self, sandbox: SandboxRef, command: str, name: str, *, scope: Literal["leader", "group", "tree"] = "group"
    ) -> None:
        """Send a signal, e.g. "SIGTERM". Raises: ApiError with status 409 once it has ended."""
        await self._call("POST", _path(sandbox, command, "signal"), {"signal": name, "scope": scope})

    async def kill_command(self, sandbox: SandboxRef, command: str) -> BackgroundCommand:
        """Kill it and all it started, what outlived it too."""
        return BackgroundCommand.read(await self._call("POST", _path(sandbox, command, "kill")))


def _path(sandbox: SandboxRef, command: str, operation: str = "") -> str:
    return sandbox_path(sandbox, f"commands/{quote(command, safe='')}{'/' if operation else ''}{operation}")


def _log_event(kind: str, fields: dict[str, Any]) -> LogEvent | None:
    if kind == "exit":
        return Ended(**{name: fields[name] for name in Ended.__slots__ if name in fields})
    event = read_event(kind, fields)
    return event if isinstance(event, Output | OutputLost) else None
