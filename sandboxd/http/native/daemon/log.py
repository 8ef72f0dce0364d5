"""The daemon's own log: its latest lines, or a stream from now (or from the last one a client saw) on."""

from collections.abc import AsyncGenerator

import trio

from sandboxd.http.kit.call import Call
from sandboxd.http.kit.streams import ServerSentEvent, sse_response
from sandboxd.http.native.daemon.log_schemas import LogList, LogView
from sandboxd.http.server.stack import TrioResponse
from sandboxd.recent_log import RECENT_LOG

# Lines come from any thread: to look now and then costs less than to be woken across threads for each.
LOOK_INTERVAL = 0.2
LINES_AT_ONCE = 1000


async def log(call: Call) -> LogList | TrioResponse:
    if call.query.follow or call.wants_events:
        return sse_response(
            call.conversation, _follow(RECENT_LOG.last_id if call.query.after is None else call.query.after)
        )
    after = call.query.after or 0
    found = RECENT_LOG.after(after, limit=call.query.limit)
    return LogList(records=[LogView.of(line) for line in found], next_after=found[-1].id if found else after)


@trio.as_safe_channel
async def _follow(after: int) -> AsyncGenerator[ServerSentEvent, None]:
    while True:
        for line in RECENT_LOG.after(after, limit=LINES_AT_ONCE):
            after = line.id
            yield ServerSentEvent(LogView.of(line).model_dump_json(), event="log", id=str(line.id))
        await trio.sleep(LOOK_INTERVAL)
