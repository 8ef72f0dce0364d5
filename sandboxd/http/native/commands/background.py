"""Commands in the background: started, listed, read, followed, fed, ended."""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Any, Self

import trio
from pydantic import Field, StringConstraints, model_validator

from sandboxd.errors import InvalidRequest
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.encoding import base64_field
from sandboxd.http.kit.streams import ServerSentEvent, sse_response
from sandboxd.http.native.commands.attached import (
    MAX_STDIN_IN_JSON,
    CommandBody,
    Encoding,
    TerminalModel,
    exit_facts,
)
from sandboxd.http.native.commands.output import LogEncoder, OutputView, facts_of, joined
from sandboxd.http.native.fields import Request, Response, rfc3339_time
from sandboxd.http.server.stack import TrioResponse
from sandboxd.model import CommandRecord, CommandStatus, StdinAccepted, StreamName
from sandboxd.service.commands.attached import SIGNAL_SCOPES
from sandboxd.service.commands.follower import Command
from sandboxd.service.sandboxes.entry import Entry

MIB = 1024 * 1024
MOST_LOG_BYTES = 64 * MIB
MOST_WAIT_MS = 600_000

Size = Annotated[int, Field(ge=0, le=2**63)]
# Where to go on in a log: a position or an offset, and for each stream the bytes of a character that is not complete.
_CURSOR = r"^[0-9]{1,19}(\.([0-9a-f]{2}){0,3}\.([0-9a-f]{2}){0,3})?$"
Cursor = Annotated[str, StringConstraints(pattern=_CURSOR)]


class StartCommand(CommandBody):
    stdin: bool = False
    """give it a stdin that …/stdin feeds; otherwise it reads /dev/null"""


class CommandView(Response):
    command_id: str
    pid: int
    """of its first process, as the sandbox sees it"""
    status: CommandStatus
    """lost: its machine ended under it, so that nobody saw how it ended"""
    cmd: str
    user: str
    cwd: str
    stdin: bool
    terminal: TerminalModel | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    exit_code: int | None
    """as a shell has it: 128 + n when signal n ended the command"""
    signal: str | None
    duration_ms: int | None
    timed_out: bool
    oom_killed: bool
    output_incomplete: bool
    """something the command started lives on and held its output open: what it writes later is not kept"""
    cpu_time_ms: int | None
    max_rss_bytes: int | None
    unlogged_bytes: int
    """output that never reached the log: more than 1 MiB while no daemon ran, or the disk was full"""

    @classmethod
    def of(cls, record: CommandRecord) -> Self:
        return cls.model_construct(
            command_id=record.id,
            pid=record.pid,
            status=record.status,
            cmd=record.command,
            user=record.user,
            cwd=record.cwd,
            stdin=record.stdin,
            terminal=None
            if record.terminal is None
            else TerminalModel(cols=record.terminal.cols, rows=record.terminal.rows),
            created_at=rfc3339_time(record.created_at),
            started_at=rfc3339_time(record.started_at),
            ended_at=rfc3339_time(record.ended_at),
            unlogged_bytes=record.unlogged,
            **end_facts(record),
        )


_NO_END = {
    "exit_code": None,
    "signal": None,
    "duration_ms": None,
    "timed_out": False,
    "oom_killed": False,
    "output_incomplete": False,
    "cpu_time_ms": None,
    "max_rss_bytes": None,
}


def end_facts(record: CommandRecord) -> dict[str, Any]:
    """How it ended, or that nobody knows (yet)."""
    return exit_facts(record.exited) if record.exited is not None else dict(_NO_END)


class CommandList(Response):
    commands: list[CommandView]


class WaitBody(Request):
    timeout_ms: Annotated[int, Field(ge=0, le=MOST_WAIT_MS)] = 60_000
    """how long to wait; a command that still runs then is answered as running"""


class StdinBody(Request):
    data: Annotated[str, StringConstraints(max_length=MAX_STDIN_IN_JSON)] | None = None
    data_b64: Annotated[str, StringConstraints(max_length=MAX_STDIN_IN_JSON)] | None = None
    close: bool = False
    """and then close it"""

    def to_bytes(self) -> bytes:
        """Raises: InvalidRequest."""
        if self.data_b64 is None:
            return (self.data or "").encode()
        if self.data is not None:
            raise InvalidRequest("cannot use both data and data_b64: give one")
        return base64_field(self.data_b64, "data_b64")


class StdinView(Response):
    taken_bytes: int
    """how much of it the command's stdin took; less than was sent if the command does not read on"""
    closed: bool
    """the command has closed its stdin"""

    @classmethod
    def of(cls, accepted: StdinAccepted) -> Self:
        return cls(taken_bytes=accepted.total, closed=accepted.closed)


class LogsWish(Request):
    """Which part of a log. Without any of offset, cursor and tail: from the oldest byte that is kept."""

    stream: StreamName | None = None
    """only this one; offsets are then those of the stream, otherwise positions in the log, which holds both"""
    offset: Size | None = None
    cursor: Cursor | None = None
    """from an earlier answer: go on where it ended"""
    tail: Size | None = None
    """the last so many bytes"""
    encoding: Encoding = "utf-8"

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.offset, self.cursor, self.tail)) > 1:
            raise ValueError("give one of offset, cursor and tail")
        return self


class LogsBody(LogsWish):
    limit_bytes: Annotated[int, Field(ge=1, le=MOST_LOG_BYTES)] = 16 * MIB
    interleaved: bool = False
    """give the output in the order in which it came, as `output`, in place of stdout and stderr"""


class LogsView(Response):
    command_id: str
    status: CommandStatus
    exit_code: int | None
    signal: str | None
    started_at: datetime | None
    ended_at: datetime | None
    stdout: str
    stderr: str
    output: list[OutputView]
    encoding: Encoding
    cursor: str
    """where this answer ends: ask with it for what follows"""
    lost_bytes: int
    """gaps in this answer, all told"""
    more: bool
    """the answer was cut at limit_bytes: there is more already"""


def is_cursor(text: str) -> bool:
    return re.fullmatch(_CURSOR, text) is not None


def parse_cursor(cursor: str) -> tuple[int, dict[StreamName, bytes]]:
    """A checked cursor's place, and the incomplete characters before it."""
    place, *carried = re.split(r"\.", cursor)
    halves = [bytes.fromhex(part) for part in carried] or [b"", b""]
    return int(place), dict(zip(StreamName, halves, strict=True))


async def start(call: Call) -> CommandView:
    entry = call.entry
    return CommandView.of(await call.service.background.start(entry, call.body.to_domain(stdin=call.body.stdin)))


async def list_all(call: Call) -> CommandList:
    records = call.service.background.list(call.entry)
    return CommandList(commands=[CommandView.of(record) for record in records])


async def get(call: Call, command: str) -> CommandView:
    return _view(call, *_find(call, command))


async def wait(call: Call, command: str) -> CommandView:
    entry, found = _find(call, command)
    with trio.move_on_after(call.body.timeout_ms / 1000):
        await call.service.background.wait(entry, found)
    return _view(call, entry, found)


async def signal(call: Call, command: str) -> CommandView:
    entry, found = _find(call, command)
    await call.service.background.signal(entry, found, call.body.number(), SIGNAL_SCOPES[call.body.scope])
    return _view(call, entry, found)


async def kill(call: Call, command: str) -> CommandView:
    return CommandView.of(await call.service.background.kill(*_find(call, command)))


async def write_stdin(call: Call, command: str) -> StdinView:
    entry, found = _find(call, command)
    data = call.body.to_bytes()
    accepted = await call.service.background.write_stdin(entry, found, data) if data else StdinAccepted(0)
    if call.body.close and accepted.total == len(data):
        await call.service.background.close_stdin(entry, found)
    return StdinView.of(accepted)


async def close_stdin(call: Call, command: str) -> CommandView:
    entry, found = _find(call, command)
    await call.service.background.close_stdin(entry, found)
    return _view(call, entry, found)


def _find(call: Call, command: str) -> tuple[Entry, Command]:
    entry = call.entry
    return entry, call.service.background.find(entry, command)


def _view(call: Call, entry: Entry, command: Command) -> CommandView:
    return CommandView.of(call.service.background.record(entry, command))


# -- output -------------------------------------------------------------------------------------------------------


async def logs(call: Call, command: str) -> LogsView:
    entry, found = _find(call, command)
    wish: LogsBody = call.body or call.query
    encoder = await _begin(call, found, wish)
    record = call.service.background.record(entry, found)  # before the read: of one that has ended, that reads all
    page = await call.service.background.logs.read(
        found.directory, encoder.place, limit=wish.limit_bytes, stream=wish.stream
    )
    more = page.size >= wish.limit_bytes
    items = list(encoder.encode(page))
    if record.ended and not more:
        items += encoder.end()
    return LogsView.model_construct(
        command_id=record.id,
        status=record.status,
        exit_code=end_facts(record)["exit_code"],
        signal=end_facts(record)["signal"],
        started_at=rfc3339_time(record.started_at),
        ended_at=rfc3339_time(record.ended_at),
        stdout="" if wish.interleaved else joined(items, StreamName.STDOUT, encoding=wish.encoding),
        stderr="" if wish.interleaved else joined(items, StreamName.STDERR, encoding=wish.encoding),
        output=items if wish.interleaved else [],
        encoding=wish.encoding,
        cursor=encoder.cursor,
        lost_bytes=page.lost,
        more=more,
    )


async def _begin(call: Call, command: Command, wish: LogsWish) -> LogEncoder:
    """What shows the log, from the place on that was asked for."""
    place, carried = wish.offset or 0, dict[StreamName, bytes]()
    if wish.cursor is not None:
        place, carried = parse_cursor(wish.cursor)
    elif wish.tail is not None:
        position, offsets = await call.service.background.logs.end(command.directory)
        place = max(0, (position if wish.stream is None else offsets[wish.stream]) - wish.tail)
    return LogEncoder(wish.encoding, place, stream=wish.stream, carried=carried)


async def follow_logs(call: Call, command: str) -> TrioResponse:
    entry, found = _find(call, command)
    wish: LogsWish = call.query
    last = call.headers.get("last-event-id", "")
    if is_cursor(last):  # a reconnecting EventSource says where it was
        wish = wish.model_copy(update={"cursor": last})
    return sse_response(call.conversation, _follow(call, entry, found, await _begin(call, found, wish), wish.stream))


@trio.as_safe_channel
async def _follow(
    call: Call, entry: Entry, command: Command, encoder: LogEncoder, stream: StreamName | None
) -> AsyncGenerator[ServerSentEvent, None]:
    background = call.service.background
    async with aclosing(background.follow(entry, command, encoder.place, stream=stream)) as pages:
        async for page in pages:
            for item in encoder.encode(page):
                kind = "gap" if item.lost_bytes else str(item.stream)
                yield ServerSentEvent.of(facts_of(item), event=kind, id=encoder.cursor)
    for item in encoder.end():
        yield ServerSentEvent.of(facts_of(item), event=str(item.stream))
    yield ServerSentEvent.of(_end(background.record(entry, command)), event="exit")


def _end(record: CommandRecord) -> dict[str, object]:
    return {"status": record.status, **end_facts(record), "unlogged_bytes": record.unlogged}
