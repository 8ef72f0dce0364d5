"""What is recorded of sandboxes: the store's truth and the registry's change together, and are then announced."""

from collections.abc import Sequence
from dataclasses import replace

from sandboxd.model import TRANSITIONS, Sandbox, SandboxState
from sandboxd.service.entry import Entry
from sandboxd.service.events import EventLog
from sandboxd.store import NewEvent, Store


class Journal:
    """Raises (every method): Unavailable when the disk is full; then nothing has changed."""

    def __init__(self, store: Store, events: EventLog) -> None:
        self._store = store
        self._events = events

    async def move(
        self, entry: Entry, sandbox: Sandbox, state: SandboxState, events: Sequence[NewEvent] = ()
    ) -> None:
        """The only place where a sandbox changes state: checked against the table, stored, then visible."""
        if state not in TRANSITIONS[entry.sandbox.state]:
            raise AssertionError(f"sandbox {sandbox.id} cannot go from {entry.sandbox.state} to {state}")
        await self.save(entry, replace(sandbox, state=state), events)

    async def save(self, entry: Entry, sandbox: Sandbox, events: Sequence[NewEvent] = ()) -> None:
        """A new sandbox, or one of which something but its state has changed."""
        recorded = await self._store.save(sandbox, events)
        entry.sandbox = sandbox
        self._events.announce(recorded)

    async def forget(self, sandbox: str, events: Sequence[NewEvent]) -> None:
        self._events.announce(await self._store.forget(sandbox, events))

    async def sandboxes(self) -> list[Sandbox]:
        return await self._store.sandboxes()
