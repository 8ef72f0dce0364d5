"""Running commands: to their end, as a stream of events, and interactively over a websocket."""

import base64
import codecs
import json
from collections.abc import AsyncGenerator

import trio
from quart.wrappers import Response

from sandboxd.errors import InvalidRequest, SandboxdError, ungrouped
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.large_json import small_or_large
from sandboxd.http.kit.streams import ServerSentEvent, sse_response, to_json
from sandboxd.http.kit.validation import validate_message
from sandboxd.http.kit.websockets import WebsocketSession, websocket_session
from sandboxd.http.native.commands.attached_schemas import (
    Encoding,
    ExecPlain,
    ExecResize,
    ExecSignal,
    ExecStart,
    Shell,
    exit_facts,
    shell_facts,
)
from sandboxd.http.native.errors import ErrorBody
from sandboxd.http.native.websockets import first_message
from sandboxd.http.server.stack import TrioResponse
from sandboxd.model import CommandEvent, CommandExited, OutputChunk, OutputGap, StdinAccepted, StreamName
from sandboxd.service.commands.attached import SIGNAL_SCOPES, RunningCommand, attached_command, feed

# Sent ahead of the command's reading by a client: half a pipe of 128 KiB is enough to keep one busy, and what waits
# here is memory of ours.
STDIN_WINDOW = 1024 * 1024

_FRAME_PREFIX = {StreamName.STDOUT: b"\x01", StreamName.STDERR: b"\x02"}


async def shell(call: Call) -> Response | TrioResponse:
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
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {stream: decoder("replace") for stream in StreamName}

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
            facts = {"data_b64": base64.b64encode(data).decode(), "offset": offset}
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


class _ExecSession:
    """The three directions of an interactive command: its events out, messages in, stdin on to the command.

    stdin goes through a queue of its own, so that a resize or a signal never waits behind bytes that the command
    does not read; the queue is bounded by the window that the client was told.
    """

    def __init__(self, session: WebsocketSession, command: RunningCommand) -> None:
        self._session = session
        self._command = command
        self._queue, self._waiting = trio.open_memory_channel[bytes | None](float("inf"))
        self._received = 0
        self._accepted = 0

    async def announce(self) -> None:
        started = self._command.started
        await self._say({"type": "started", "pid": started.pid, "command_id": started.id})

    async def report(self) -> None:
        """Output, acknowledgements and the exit, to the client."""
        while self._command.exited is None:
            event = await self._command.receive()
            if isinstance(event, OutputChunk):
                await self._session.send(_FRAME_PREFIX[event.stream] + event.data)
            elif isinstance(event, StdinAccepted) and event.closed:
                await self._say({"type": "stdin_closed"})
            elif isinstance(event, StdinAccepted):
                self._accepted = event.total
                await self._say({"type": "stdin_ack", "total": event.total})
            elif isinstance(event, OutputGap):
                await self._say({"type": "gap", "stream": event.stream, "lost_bytes": event.lost})
            elif isinstance(event, CommandExited):
                await self._say({"type": "exit", **exit_facts(event)})

    async def obey(self, everything: trio.CancelScope) -> None:
        """The client's messages; its leaving ends the command."""
        async for message in self._session:
            if isinstance(message, bytes):
                self._take(message)
            else:
                await self._control(message)
        everything.cancel("the client left")

    def _take(self, data: bytes) -> None:
        self._received += len(data)
        if self._received - self._accepted > STDIN_WINDOW:
            raise InvalidRequest(
                f"cannot take more stdin: at most {STDIN_WINDOW} bytes may be sent ahead of stdin_ack"
            )
        self._queue.send_nowait(data)

    async def _control(self, message: str) -> None:
        kind = message_type(message)
        if kind == "resize":
            await self._command.resize(validate_message(ExecResize, message).to_domain())
        elif kind == "signal":
            request = validate_message(ExecSignal, message)
            await self._command.signal(request.number(), SIGNAL_SCOPES[request.scope])
        elif validate_message(ExecPlain, message).type == "kill":
            await self._command.kill()
        else:
            self._queue.send_nowait(None)

    async def feed(self) -> None:
        """stdin, in order, as fast as the command reads."""
        async for data in self._waiting:
            if data is None:
                await self._command.close_stdin()
                return
            await self._command.send_stdin(data)

    async def _say(self, message: dict[str, object]) -> None:
        await self._session.send(to_json(message))


def message_type(message: str) -> str | None:
    try:
        value = json.loads(message)
    except (ValueError, RecursionError):
        return None
    return value.get("type") if isinstance(value, dict) else None
