"""What happened to sandboxes, in order, for those who ask later and those who listen now.

The store is the queue: a listener keeps the id of the last event it saw and reads on from there, so a slow one
holds nothing in memory and loses nothing (until the store prunes), and one that comes back resumes where it was.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import trio

from sandboxd import clock
from sandboxd.model import Event, EventKind
from sandboxd.store import NewEvent, Store

BATCH = 100


def new_event(kind: EventKind, sandbox: str, **facts: Any) -> NewEvent:
    return NewEvent(at=clock.wall(), kind=kind, sandbox=sandbox, facts=facts)


class EventLog:
    """Owns: nothing that needs closing. Whoever writes events in a transaction of its own calls announce() after."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._news = trio.Event()

    def announce(self, events: Sequence[Event]) -> None:
        """Wake the listeners: these events are in the store now."""
        if events:
            self._news.set()
            self._news = trio.Event()

    async def record(self, kind: EventKind, sandbox: str, facts: Mapping[str, Any]) -> None:
        self.announce(await self._store.record([new_event(kind, sandbox, **facts)]))

    async def list(self, *, after: int, limit: int, sandbox: str | None = None) -> list[Event]:
        """Recorded events with an id greater than `after`, oldest first."""
        return await self._store.events(after=after, limit=limit, sandbox=sandbox)

    async def last_id(self) -> int:
        """Of the newest event: where `from now on` begins."""
        return await self._store.last_event()

    async def follow(
        self, *, after: int, sandbox: str | None = None, wanted: Callable[[Event], bool] = lambda _: True
    ) -> AsyncGenerator[Event, None]:
        """Events after that id, and then each new one. Never ends; close it when done."""
        cursor = after
        while True:
            news = self._news  # taken before the read, so that nothing falls between reading and waiting
            batch = await self.list(after=cursor, limit=BATCH, sandbox=sandbox)
            for event in batch:
                cursor = event.id
                if wanted(event):
                    yield event
            if len(batch) < BATCH:
                await news.wait()
