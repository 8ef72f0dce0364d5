"""Running commands: to their end, as a stream of events, and interactively over a websocket."""

import signal
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal, Self

import trio
from pydantic import Field, StringConstraints, TypeAdapter, model_validator

from sandboxd.errors import InvalidRequest, SandboxdError, ungrouped
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.encoding import base64_field, text_decoders, to_base64
from sandboxd.http.kit.large_json import JsonResponse, small_or_large
from sandboxd.http.kit.streams import ServerSentEvent, sse_response
from sandboxd.http.kit.validation import validate_one_of
from sandboxd.http.kit.websockets import WebsocketSession, websocket_session
from sandboxd.http.native.commands.interactive import Interactive
from sandboxd.http.native.errors import ErrorBody
from sandboxd.http.native.fields import DAY_MS, Argument, Env, OptionalPath, Request, Response, UserName, seconds
from sandboxd.http.native.websockets import first_message
from sandboxd.http.server.stack import TrioResponse
from sandboxd.model import (
    CommandEvent,
    CommandExited,
    CommandSpec,
    OutputChunk,
    OutputGap,
    StdinAccepted,
    StreamName,
    TerminalSize,
)
from sandboxd.service.commands.attached import SIGNAL_SCOPES, CommandResult, RunningCommand, attached_command, feed
from sandboxd.service.output_memory import KeptOutput

MAX_STDIN_IN_JSON = 32 * 1024 * 1024


class TerminalModel(Request):
    cols: Annotated[int, Field(ge=1, le=65535)] = 80
    rows: Annotated[int, Field(ge=1, le=65535)] = 24

    def to_domain(self) -> TerminalSize:
        return TerminalSize(cols=self.cols, rows=self.rows)


class CommandBody(Request):
    cmd: Argument | None = None
    """a line for the sandbox's shell (bash, or sh where there is none)"""
    argv: Annotated[list[Argument], Field(min_length=1, max_length=10_000)] | None = None
    """a program and its arguments, without a shell"""
    cwd: OptionalPath | None = None
    env: Env | None = None
    user: UserName | None = None
    timeout_ms: Annotated[int, Field(ge=1, le=30 * DAY_MS)] | None = None
    """then the command and everything it started is killed"""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.cmd is None) == (self.argv is None):
            raise ValueError("give either cmd or argv")
        return self

    def to_domain(self, *, stdin: bool, terminal: TerminalSize | None = None) -> CommandSpec:
        return CommandSpec(
            argv=tuple(self.argv) if self.argv is not None else (self.cmd or "",),
            shell=self.argv is None,
            cwd=self.cwd or "",
            env=self.env or {},
            user=self.user or "",
            stdin=stdin,
            terminal=terminal,
            timeout=seconds(self.timeout_ms),
        )


Encoding = Literal["utf-8", "base64"]


class Shell(CommandBody):
    stdin: Annotated[str, StringConstraints(max_length=MAX_STDIN_IN_JSON)] | None = None
    stdin_b64: Annotated[str, StringConstraints(max_length=MAX_STDIN_IN_JSON)] | None = None
    max_output_bytes: Annotated[int, Field(ge=0, le=2**40)] | None = None
    """of each stream, 1 MiB by default; of more the beginning and the end are kept, and `omitted` says so"""
    encoding: Encoding = "utf-8"
    """how output is given: as text (what is not UTF-8 becomes U+FFFD), or as base64, byte for byte"""

    def stdin_bytes(self) -> bytes | None:
        """Raises: InvalidRequest."""
        if self.stdin_b64 is None:
            return None if self.stdin is None else self.stdin.encode()
        if self.stdin is not None:
            raise InvalidRequest("cannot use both stdin and stdin_b64: give one")
        return base64_field(self.stdin_b64, "stdin_b64")


class ExecStart(CommandBody):
    type: Literal["start"]
    stdin: bool = False
    terminal: TerminalModel | None = None


class ExecResize(TerminalModel):
    type: Literal["resize"]


class SignalCommand(Request):
    signal: str | int
    scope: Literal["leader", "group", "tree"] = "group"

    def number(self) -> int:
        """Raises: InvalidRequest for a signal that Linux does not have."""
        try:
            return int(signal.Signals(self.signal) if isinstance(self.signal, int) else signal.Signals[self.signal])
        except (KeyError, ValueError):
            raise InvalidRequest(f"cannot send signal {self.signal!r}: use a name like SIGTERM") from None


class ExecSignal(SignalCommand):
    type: Literal["signal"]


class ExecPlain(Request):
    type: Literal["stdin_close", "kill"]


EXEC_MESSAGES: TypeAdapter[ExecResize | ExecSignal | ExecPlain] = TypeAdapter(
    Annotated[ExecResize | ExecSignal | ExecPlain, Field(discriminator="type")]
)
"""what a client may say once its command runs"""


class ExitView(Response):
    exit_code: int
    """as a shell has it: 128 + n when signal n ended the command"""
    signal: str | None
    duration_ms: int
    timed_out: bool
    oom_killed: bool
    output_incomplete: bool
    """something the command started lives on and holds its output open: more may have come later"""
    cpu_time_ms: int
    max_rss_bytes: int

    @classmethod
    def of(cls, exited: CommandExited) -> Self:
        return cls.model_construct(**exit_facts(exited))


def exit_facts(exited: CommandExited) -> dict[str, Any]:
    return {
        "exit_code": exited.status,
        "signal": None if exited.signal is None else _signal_name(exited.signal),
        "duration_ms": round(exited.duration * 1000),
        "timed_out": exited.timed_out,
        "oom_killed": exited.oom_killed,
        "output_incomplete": exited.output_incomplete,
        "cpu_time_ms": round(exited.cpu_time * 1000),
        "max_rss_bytes": exited.max_rss,
    }


class Omitted(Response):
    """What was left out of the middle of a stream; as text a line of its own stands there."""

    stream: Literal["stdout", "stderr"]
    offset: int
    """bytes of the stream before it"""
    bytes: int
    reason: Literal["limit", "daemon_memory"]
    """more was written than is kept, or the daemon had no more memory for output"""


class ShellResult(ExitView):
    stdout: str
    stderr: str
    encoding: Encoding
    truncated: bool
    """less was kept than was written: `omitted` says how much, and where"""
    stdout_bytes: int
    """that were written"""
    stderr_bytes: int
    omitted: list[Omitted]


def shell_facts(result: CommandResult, encoding: Encoding) -> dict[str, Any]:
    """A ShellResult, in which the texts are still to be made, piece by piece."""
    streams = {"stdout": result.stdout, "stderr": result.stderr}
    return {
        **exit_facts(result.exited),
        **{name: kept.base64() if encoding == "base64" else kept.text() for name, kept in streams.items()},
        "encoding": encoding,
        "truncated": result.truncated,
        **{f"{name}_bytes": kept.total for name, kept in streams.items()},
        "omitted": [_omitted(name, kept) for name, kept in streams.items() if kept.omitted],
    }


def _omitted(name: str, kept: KeptOutput) -> dict[str, Any]:
    reason = "daemon_memory" if kept.starved else "limit"
    return {"stream": name, "offset": kept.head, "bytes": kept.omitted, "reason": reason}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIG{number}"


_FRAME_PREFIX = {StreamName.STDOUT: b"\x01", StreamName.STDERR: b"\x02"}


async def shell(call: Call) -> JsonResponse:
    body: Shell = call.body
    stdin = body.stdin_bytes()
    result = await call.service.run(
        call.entry, body.to_domain(stdin=stdin is not None), stdin=stdin or b"", max_output=body.max_output_bytes
    )
    return small_or_large(shell_facts(result, body.encoding), result.size)


# -- as a stream --------------------------------------------------------------------------------------------------


async def shell_stream(call: Call) -> TrioResponse:
    await call.entry.ready()
    call.body.stdin_bytes()
    return sse_response(call.conversation, _stream(call))


@trio.as_safe_channel
async def _stream(call: Call) -> AsyncGenerator[ServerSentEvent, None]:
    body: Shell = call.body
    stdin = body.stdin_bytes()
    try:
        spec = body.to_domain(stdin=stdin is not None)
        with ungrouped():
            async with attached_command(call.entry, spec) as command, trio.open_nursery() as nursery:
                if stdin is not None:
                    nursery.start_soon(feed, command, stdin)
                encoder = _OutputEncoder(body.encoding)
                facts = {"command_id": command.started.id, "pid": command.started.pid}
                yield ServerSentEvent.of(facts, event="started")
                while command.exited is None:
                    for event in encoder.encode(await command.receive()):
                        yield event
                nursery.cancel_scope.cancel("the command ended")
    except SandboxdError as error:
        yield ServerSentEvent(ErrorBody.of(error).model_dump_json(), event="error")


class _OutputEncoder:
    """Output as events. As text, a character that is split between two chunks waits for its rest."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._decoders = text_decoders()

    def encode(self, event: CommandEvent) -> list[ServerSentEvent]:
        if isinstance(event, OutputChunk):
            return self._output(event.stream, event.data, offset=event.offset)
        if isinstance(event, OutputGap):
            return [ServerSentEvent.of({"stream": event.stream, "lost_bytes": event.lost}, event="gap")]
        if isinstance(event, CommandExited):
            rest = [item for stream in StreamName for item in self._output(stream, b"", final=True)]
            return [*rest, ServerSentEvent.of(exit_facts(event), event="exit")]
        return []

    def _output(
        self, stream: StreamName, data: bytes, *, offset: int = 0, final: bool = False
    ) -> list[ServerSentEvent]:
        if self._encoding == "base64":
            facts = {"data_b64": to_base64(data), "offset": offset}
            return [ServerSentEvent.of(facts, event=stream)] if data else []
        text = self._decoders[stream].decode(data, final)
        return [ServerSentEvent.of({"text": text}, event=stream)] if text else []


# -- interactively ------------------------------------------------------------------------------------------------


async def exec_websocket(call: Call) -> None:
    async with websocket_session(call.conversation) as client:
        start = await first_message(call, client, ExecStart)
        terminal = start.terminal.to_domain() if start.terminal else None
        spec = start.to_domain(stdin=start.stdin, terminal=terminal)
        async with attached_command(call.entry, spec) as command, trio.open_nursery() as nursery:
            exec_session = _ExecSession(client, command)
            await exec_session.announce()
            nursery.start_soon(exec_session.obey, nursery.cancel_scope)
            nursery.start_soon(exec_session.feed)
            await exec_session.report()
            nursery.cancel_scope.cancel("the command ended")


class _ExecSession(Interactive):
    """The three directions of an interactive command: its events out, messages in, stdin on to the command."""

    def __init__(self, session: WebsocketSession, command: RunningCommand) -> None:
        super().__init__(session)
        self._command = command

    async def announce(self) -> None:
        """Say that the command runs."""
        started = self._command.started
        await self._say("started", pid=started.pid, command_id=started.id)

    async def report(self) -> None:
        """Output, acknowledgements and the exit, to the client."""
        while self._command.exited is None:
            match await self._command.receive():
                case OutputChunk() as chunk:
                    await self._session.send(_FRAME_PREFIX[chunk.stream] + chunk.data)
                case StdinAccepted() as accepted:
                    await self._acknowledge(accepted)
                case OutputGap() as gap:
                    await self._say("gap", stream=gap.stream, lost_bytes=gap.lost)
                case CommandExited() as exited:
                    await self._say("exit", **exit_facts(exited))

    async def _control(self, message: str) -> None:
        match validate_one_of(EXEC_MESSAGES, message):
            case ExecResize() as resize:
                await self._command.resize(resize.to_domain())
            case ExecSignal() as asked:
                await self._command.signal(asked.number(), SIGNAL_SCOPES[asked.scope])
            case ExecPlain(type="kill"):
                await self._command.kill()
            case ExecPlain():
                self._queue.send_nowait(None)

    async def feed(self) -> None:
        """stdin, in order, as fast as the command reads."""
        async for data in self._typed:
            if data is None:
                await self._command.close_stdin()
                return
            await self._command.send_stdin(data)
