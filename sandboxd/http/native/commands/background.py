"""Commands in the background: started, listed, read, followed, fed, ended."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import trio

from sandboxd.http.kit.call import Call
from sandboxd.http.kit.streams import ServerSentEvent, sse_response
from sandboxd.http.native.commands.background_schemas import (
    CommandList,
    CommandView,
    LogsBody,
    LogsView,
    LogsWish,
    StdinView,
    end_facts,
    is_cursor,
    parse_cursor,
)
from sandboxd.http.native.commands.output import LogEncoder, facts_of, joined
from sandboxd.http.native.fields import rfc3339_time
from sandboxd.http.server.stack import TrioResponse
from sandboxd.model import CommandRecord, StdinAccepted, StreamName
from sandboxd.service.commands.attached import SIGNAL_SCOPES
from sandboxd.service.commands.follower import Command
from sandboxd.service.sandboxes.entry import Entry


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
