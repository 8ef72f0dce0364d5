"""The client's methods for terminals, and its place at one: `Client.attach_pty`."""

from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from sandboxd.client.calls import Caller, Command, SandboxRef, command_fields, drop_none, sandbox_path
from sandboxd.client.execution import Conversation, ExecEvent, Output, OutputLost, read_event
from sandboxd.client.models import BackgroundCommand, PtyOutput
from sandboxd.client.network import Network

if TYPE_CHECKING:
    from sandboxd.client.websocket import WebSocket


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """The first event: where the output begins that follows, and whether this client may write."""

    writer: bool
    offset: int
    end: int
    """of what is there already: what comes before is a replay"""
    status: str
    pid: int


@dataclass(frozen=True, slots=True)
class Writer:
    """This client has become the writer, or is no longer: "taken_over" by another, or it "released" the terminal."""

    writer: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """What was sent has not been done, because another client writes, or the terminal has just ended."""

    error: str


PtyEvent = ExecEvent | Attached | Writer | Refused


class PtyAttachment(Conversation[PtyEvent]):
    """A place at a terminal. Leaving it leaves the terminal as it is: attach again, from `offset`.

    `send_stdin`, `resize`, `signal` and `kill` are for the writer.
    """

    def __init__(self, websocket: "WebSocket", network: Network) -> None:
        super().__init__(websocket, network, _read_event)
        self.offset = 0
        """of the byte after the last one received"""

    async def receive(self) -> PtyEvent:
        """The next event; `Exited` is the last. Raises: ApiError, ConnectionLost; StreamEnded after the last."""
        event = await super().receive()
        if isinstance(event, Attached):
            self.offset = event.offset
        elif isinstance(event, Output):
            self.offset += len(event.data)
        elif isinstance(event, OutputLost):
            self.offset += event.size
        return event

    async def take_over(self) -> None:
        """Become the writer, whoever it was; a `Writer` event confirms it."""
        await self._send(type="take_over")

    async def release(self) -> None:
        """Let others write."""
        await self._send(type="release")


def _read_event(kind: str, fields: dict[str, Any]) -> PtyEvent | None:
    match kind:
        case "attached":
            return Attached(**{name: fields[name] for name in Attached.__slots__})
        case "writer":
            return Writer(fields["writer"], fields.get("reason"))
        case "refused":
            return Refused(fields["error"])
    return read_event(kind, fields)


class PtyMethods(Caller):
    """A terminal runs until its command ends, whoever leaves, the daemon included."""

    async def start_pty(
        self,
        sandbox: SandboxRef,
        command: Command | None = None,
        *,
        cols: int = 80,
        rows: int = 24,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        timeout_ms: int | None = None,
    ) -> BackgroundCommand:
        """By default with a login shell."""
        options = drop_none(cols=cols, rows=rows, cwd=cwd, env=env, user=user, timeout_ms=timeout_ms)
        body = {**({} if command is None else command_fields(command)), **options}
        return BackgroundCommand.read(await self._call("POST", sandbox_path(sandbox, "pty"), body))

    async def ptys(self, sandbox: SandboxRef) -> list[BackgroundCommand]:
        """Terminals, live and ended, oldest first."""
        answer = await self._call("GET", sandbox_path(sandbox, "pty"))
        return [BackgroundCommand.read(raw) for raw in answer["ptys"]]

    async def pty(self, sandbox: SandboxRef, pty: str) -> BackgroundCommand:
        return BackgroundCommand.read(await self._call("GET", _path(sandbox, pty)))

    async def write_pty(self, sandbox: SandboxRef, pty: str, data: bytes) -> int:
        """Type into it. Returns how much the terminal took."""
        body = {"data_b64": b64encode(data).decode()}
        return int((await self._call("POST", _path(sandbox, pty, "input"), body))["taken_bytes"])

    async def read_pty(self, sandbox: SandboxRef, pty: str, *, wait_ms: int = 0) -> PtyOutput:
        """What it has shown since anybody read it this way; `wait_ms`: if there is nothing, wait so long."""
        return PtyOutput.read(await self._call("POST", _path(sandbox, pty, "output"), {"wait_ms": wait_ms}))

    async def resize_pty(self, sandbox: SandboxRef, pty: str, *, cols: int, rows: int) -> None:
        await self._call("POST", _path(sandbox, pty, "resize"), {"cols": cols, "rows": rows})

    async def kill_pty(self, sandbox: SandboxRef, pty: str) -> BackgroundCommand:
        return BackgroundCommand.read(await self._call("POST", _path(sandbox, pty, "kill")))

    @asynccontextmanager
    async def attach_pty(
        self,
        sandbox: SandboxRef,
        pty: str,
        *,
        write: Literal["if_free", "take", "never"] = "if_free",
        offset: int | None = None,
        tail: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> AsyncIterator[PtyAttachment]:
        """Sit down at a terminal, beside others. `size`: give it these (cols, rows), as its writer."""
        request = drop_none(write=write, offset=offset, tail=tail)
        if size is not None:
            request["size"] = {"cols": size[0], "rows": size[1]}
        async with self._websocket(_path(sandbox, pty, "ws")) as websocket:
            attachment = PtyAttachment(websocket, self._network)
            await attachment.begin(type="attach", **request)
            yield attachment


def _path(sandbox: SandboxRef, pty: str, operation: str = "") -> str:
    return sandbox_path(sandbox, f"pty/{quote(pty, safe='')}{'/' if operation else ''}{operation}")
