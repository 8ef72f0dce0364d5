"""Events: a page of the past, or a stream from now (or from the last one a client saw) on."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Any, Self

import trio
from pydantic import Field, StringConstraints

from sandboxd.errors import NotFound
from sandboxd.http.kit.auth import require_all
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.routes import Route
from sandboxd.http.kit.streams import ServerSentEvent, sse_response
from sandboxd.http.native.fields import (
    Request,
    Response,
    rfc3339_time,
)
from sandboxd.http.server.stack import TrioResponse
from sandboxd.model import Event, Scope


class EventView(Response):
    id: int
    at: datetime
    kind: str
    sandbox: str
    details: dict[str, Any]

    @classmethod
    def of(cls, event: Event) -> Self:
        return cls.model_construct(
            id=event.id, at=rfc3339_time(event.at), kind=event.kind, sandbox=event.sandbox, details=dict(event.facts)
        )


class EventList(Response):
    events: list[EventView]
    next_after: int
    """give it as `after` to read on"""


class EventQuery(Request):
    after: Annotated[int, Field(ge=0, le=2**62)] | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    sandbox: Annotated[str, StringConstraints(max_length=64)] | None = None
    follow: bool = False
    """stream events as they happen (SSE); so does `Accept: text/event-stream`"""


async def events(call: Call) -> EventList | TrioResponse:
    sandbox = _whose(call)
    if call.query.follow or call.wants_events:
        after = resume_after(call)
        if after is None:
            after = await call.service.events.last_id()
        # From now on, not from when the stream begins: a client with the headers may do what it wants to hear of.
        return sse_response(call.conversation, _follow(call, sandbox, after))
    after = call.query.after or 0
    found = await call.service.events.list(after=after, limit=call.query.limit, sandbox=sandbox)
    return EventList(events=[EventView.of(event) for event in found], next_after=found[-1].id if found else after)


def _whose(call: Call) -> str | None:
    """The id of the sandbox that is asked about: of one that is gone to those who see all. None: of all of them."""
    wanted: str | None = call.query.sandbox
    if wanted is None:
        require_all(call.caller)
        return None
    try:
        return call.find_sandbox(wanted).sandbox.id
    except NotFound:
        if not call.sees_all:
            raise
        return wanted


def resume_after(call: Call) -> int | None:
    """Where the client was: a reconnecting EventSource says so in a header, others in the query."""
    last = call.headers.get("last-event-id", "")
    return int(last) if last.isdecimal() and len(last) < 19 else call.query.after


@trio.as_safe_channel
async def _follow(call: Call, sandbox: str | None, after: int) -> AsyncGenerator[ServerSentEvent, None]:
    async with aclosing(call.service.events.follow(after=after, sandbox=sandbox)) as stream:
        async for event in stream:
            data = EventView.of(event).model_dump_json()
            yield ServerSentEvent(data, event=event.kind, id=str(event.id))


READ = Scope.READ

# fmt: off
EVENT_ROUTES = (
    Route(method="GET", path="/v1/events", handler=events, scope=READ,
          query=EventQuery, response=EventList, streams="sse", summary="What happened, or what happens (SSE)"),
)
# fmt: on
