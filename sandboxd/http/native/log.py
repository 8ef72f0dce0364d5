"""The daemon's own log: its latest lines, or a stream from now (or from the last one a client saw) on."""

from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Annotated, Any, Self

import trio
from pydantic import Field

from sandboxd.http.kit.call import Call
from sandboxd.http.kit.routes import Route
from sandboxd.http.kit.streams import ServerSentEvent, sse_response
from sandboxd.http.native.fields import Request, Response, rfc3339_time
from sandboxd.http.server.stack import TrioResponse
from sandboxd.model import Scope
from sandboxd.recent_log import RECENT_LOG, LogLine


class LogView(Response):
    id: int
    at: datetime
    level: str
    logger: str
    message: str
    details: dict[str, Any]

    @classmethod
    def of(cls, line: LogLine) -> Self:
        return cls.model_construct(
            id=line.id,
            at=rfc3339_time(line.at),
            level=line.level,
            logger=line.logger,
            message=line.message,
            details=dict(line.details),
        )


class LogList(Response):
    records: list[LogView]
    next_after: int
    """give it as `after` to read on"""


class LogQuery(Request):
    after: Annotated[int, Field(ge=0, le=2**62)] | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    follow: bool = False
    """stream lines as they are written (SSE); so does `Accept: text/event-stream`"""


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


ADMIN = Scope.ADMIN

# fmt: off
LOG_ROUTES = (
    Route(method="GET", path="/v1/log", handler=log, scope=ADMIN,
          query=LogQuery, response=LogList, streams="sse", summary="The daemon's latest log lines, or new (SSE)"),
)
# fmt: on
