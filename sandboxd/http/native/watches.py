"""Watches: made, listed, polled, streamed, stopped."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Self

import trio
from pydantic import AfterValidator, Field, StringConstraints

from sandboxd.http.kit.call import Call
from sandboxd.http.kit.encoding import to_base64
from sandboxd.http.kit.routes import Route
from sandboxd.http.kit.streams import ServerSentEvent, sse_response
from sandboxd.http.native.events import resume_after
from sandboxd.http.native.fields import Request, Response, UserName, rfc3339_time, without_nul
from sandboxd.http.server.stack import TrioResponse
from sandboxd.model import OverflowReason, Scope, WatchEvent, WatchEventType, WatchSource, WatchSpec
from sandboxd.service.sandboxes.entry import Entry
from sandboxd.service.watches.queue import MAX_EVENTS
from sandboxd.service.watches.registry import MAX_PATTERN, MAX_PATTERNS, Watch

MAX_WAIT_MS = 60_000

Pattern = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PATTERN), AfterValidator(without_nul)]
Cursor = Annotated[int, Field(ge=0, lt=2**63)]


class CreateWatch(Request):
    path: Annotated[str, StringConstraints(min_length=1, max_length=2000), AfterValidator(without_nul)] = "."
    """a directory; a relative path starts at the sandbox's workdir"""
    recursive: bool = True
    """also watch the directories below, as they are made; symbolic links and other file systems are not entered"""
    ignore: Annotated[tuple[Pattern, ...], Field(max_length=MAX_PATTERNS)] = ()
    """patterns (* ? [a-z]) of what to pass over and not to enter: with a slash for paths relative to the directory,
    without for any name"""
    source: WatchSource = WatchSource.CHANGES
    """changes: create, modify and remove, folded within 4 ms. raw: create, write, chmod, rename and remove, each as
    the kernel tells it"""
    user: UserName = ""
    """who watches; by default the sandbox's user. Directories this user cannot read are passed over"""

    def spec(self) -> WatchSpec:
        return WatchSpec(
            path=self.path, recursive=self.recursive, ignore=self.ignore, source=self.source, user=self.user
        )


class WatchView(Response):
    watch_id: str
    path: str
    recursive: bool
    ignore: tuple[str, ...]
    source: WatchSource
    user: str
    created_at: datetime | None
    ended: bool
    """the directory or the sandbox is gone: nothing more will come"""
    cursor: int
    """id of the latest event"""

    @classmethod
    def of(cls, watch: Watch) -> Self:
        spec = watch.spec
        return cls(
            watch_id=watch.id,
            path=spec.path,
            recursive=spec.recursive,
            ignore=spec.ignore,
            source=spec.source,
            user=spec.user,
            created_at=rfc3339_time(watch.created_at),
            ended=watch.queue.ended,
            cursor=watch.queue.last_id,
        )


class WatchList(Response):
    watches: list[WatchView]


class WatchStopped(Response):
    watch_id: str
    stopped: bool = True


class PollWatch(Request):
    after: Cursor | None = None
    """id of the last event this reader has; by default what nobody has polled yet"""
    wait_ms: Annotated[int, Field(ge=0, le=MAX_WAIT_MS)] = 0
    """how long to wait for an event if there is none"""
    limit: Annotated[int, Field(ge=1, le=MAX_EVENTS)] = MAX_EVENTS


class WatchEventView(Response):
    id: int
    type: WatchEventType
    """overflow: something was lost below `path`, look there yourself; ended: the directory or the sandbox is gone"""
    path: str
    """relative to the watched directory, which itself is "."; bytes that are no UTF-8 are U+FFFD"""
    path_b64: str | None
    """the path's bytes, if they are no UTF-8"""
    is_directory: bool
    cookie: int | None
    """raw: the rename of the old name and the create of the new one have the same"""
    reason: OverflowReason | None
    """of an overflow. reader: this reader fell behind; kernel: too much at once; restart: begun again; limit: a
    directory that cannot be watched"""

    @classmethod
    def of(cls, event: WatchEvent) -> Self:
        path = event.path.encode("utf-8", "surrogateescape")
        shown = path.decode("utf-8", "replace")
        return cls(
            id=event.id,
            type=event.type,
            path=shown,
            path_b64=None if shown == event.path else to_base64(path),
            is_directory=event.is_directory,
            cookie=event.cookie or None,
            reason=event.reason,
        )


class WatchEvents(Response):
    events: list[WatchEventView]
    cursor: int
    """id of the last event of these; `after` of the next poll"""
    overflow: bool
    """whether one of them says that others were lost"""
    ended: bool

    @classmethod
    def of(cls, watch: Watch, events: list[WatchEvent], cursor: int) -> Self:
        return cls(
            events=[WatchEventView.of(event) for event in events],
            cursor=cursor,
            overflow=any(event.type is WatchEventType.OVERFLOW for event in events),
            ended=watch.queue.ended and cursor >= watch.queue.last_id,
        )


class FollowQuery(Request):
    after: Cursor | None = None
    """id of the last event this reader has, as the header Last-Event-ID; by default what nobody has polled yet"""


async def create(call: Call) -> WatchView:
    return WatchView.of(await call.service.watches.create(call.entry, call.body.spec()))


async def list_all(call: Call) -> WatchList:
    watches = call.service.watches.all(call.entry)
    return WatchList(watches=[WatchView.of(watch) for watch in watches])


async def get(call: Call, watch: str) -> WatchView:
    return WatchView.of(call.service.watches.get(call.entry, watch))


async def poll(call: Call, watch: str) -> WatchEvents:
    entry, wish = call.entry, call.body
    found = call.service.watches.get(entry, watch)
    events, cursor = await call.service.watches.poll(
        entry, found, after=wish.after, limit=wish.limit, patience=wish.wait_ms / 1000
    )
    return WatchEvents.of(found, events, cursor)


async def stream(call: Call, watch: str) -> TrioResponse:
    entry = call.entry
    found = call.service.watches.get(entry, watch)
    return sse_response(call.conversation, _follow(call, entry, found, resume_after(call)))


async def stop(call: Call, watch: str) -> WatchStopped:
    await call.service.watches.stop(call.entry, watch)
    return WatchStopped(watch_id=watch)


@trio.as_safe_channel
async def _follow(call: Call, entry: Entry, watch: Watch, after: int | None) -> AsyncGenerator[ServerSentEvent, None]:
    async with aclosing(call.service.watches.follow(entry, watch, after=after)) as events:
        async for event in events:
            data = WatchEventView.of(event).model_dump_json()
            yield ServerSentEvent(data, event=event.type, id=str(event.id))


READ, WRITE = Scope.READ, Scope.WRITE
WATCHES = "/v1/sandboxes/<sandbox>/fs/watch"
WATCH = f"{WATCHES}/<watch>"

# fmt: off
WATCH_ROUTES = (
    Route(method="POST", path=WATCHES, handler=create, scope=WRITE, optional_body=True,
          body=CreateWatch, response=WatchView, status=201, summary="Watch a directory"),
    Route(method="GET", path=WATCHES, handler=list_all, scope=READ,
          response=WatchList, summary="List watches, oldest first"),
    Route(method="GET", path=WATCH, handler=get, scope=READ,
          response=WatchView, summary="One watch"),
    Route(method="POST", path=f"{WATCH}/poll", handler=poll, scope=READ, optional_body=True,
          body=PollWatch, response=WatchEvents, summary="What happened since the last poll, or after a cursor"),
    Route(method="GET", path=f"{WATCH}/stream", handler=stream, scope=READ,
          query=FollowQuery, streams="sse", summary="What happens (SSE); takes nothing from those who poll"),
    Route(method="POST", path=f"{WATCH}/stop", handler=stop, scope=WRITE,
          response=WatchStopped, summary="Stop a watch"),
)
# fmt: on
