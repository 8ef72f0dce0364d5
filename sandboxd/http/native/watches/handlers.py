"""Watches: made, listed, polled, streamed, stopped."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import trio

from sandboxd.http.kit.call import Call
from sandboxd.http.kit.streams import ServerSentEvent, sse_response
from sandboxd.http.native.sandboxes.events import resume_after
from sandboxd.http.native.watches.schemas import (
    WatchEvents,
    WatchEventView,
    WatchList,
    WatchStopped,
    WatchView,
)
from sandboxd.http.server.stack import TrioResponse
from sandboxd.service.sandboxes.entry import Entry
from sandboxd.service.watches.registry import Watch


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
