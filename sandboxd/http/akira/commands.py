"""Commands in Akira's words: to their end, or as a stream of server-sent events.

event: stdout            {"data": "text"}                      and the same for stderr
event: exit              {"exit_code": 0, "timed_out": false, "duration": 0.01}       the last
event: error             {"code": "…", "message": "…"}         instead, when the sandbox ends under the command
"""

from collections.abc import AsyncGenerator, Iterator

import trio

from sandboxd.errors import SandboxdError, ungrouped
from sandboxd.http.akira.schemas import executed
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.encoding import text_decoders
from sandboxd.http.kit.large_json import JsonResponse, small_or_large
from sandboxd.http.kit.streams import ServerSentEvent, sse_response
from sandboxd.http.server.stack import TrioResponse
from sandboxd.model import CommandExited, OutputChunk, StreamName
from sandboxd.service.commands.attached import attached_command


async def execute(call: Call) -> JsonResponse:
    result = await call.service.run(call.entry, call.body.to_domain(), stdin=b"", max_output=None)
    return small_or_large(executed(result), result.size)


async def execute_async(call: Call) -> TrioResponse:
    await call.entry.ready()
    return sse_response(call.conversation, _stream(call))


@trio.as_safe_channel
async def _stream(call: Call) -> AsyncGenerator[ServerSentEvent, None]:
    text = _Text()
    try:
        with ungrouped():
            async with attached_command(call.entry, call.body.to_domain()) as command:
                while command.exited is None:
                    event = await command.receive()
                    if isinstance(event, OutputChunk):
                        for item in text.of(event.stream, event.data):
                            yield item
                    elif isinstance(event, CommandExited):
                        for item in [*text.rest(), _exit(event)]:
                            yield item
    except SandboxdError as error:
        yield ServerSentEvent.of({"code": error.kind, "message": error.message}, event="error")


def _exit(exited: CommandExited) -> ServerSentEvent:
    facts = {"exit_code": exited.status, "timed_out": exited.timed_out, "duration": round(exited.duration, 3)}
    return ServerSentEvent.of(facts, event="exit")


class _Text:
    """Output as text; a character that is split between two reads waits for its rest."""

    def __init__(self) -> None:
        self._decoders = text_decoders()

    def of(self, stream: StreamName, data: bytes, *, final: bool = False) -> Iterator[ServerSentEvent]:
        if text := self._decoders[stream].decode(data, final):
            yield ServerSentEvent.of({"data": text}, event=stream)

    def rest(self) -> Iterator[ServerSentEvent]:
        for stream in StreamName:
            yield from self.of(stream, b"", final=True)
