"""What is recorded of sandboxes: the store's truth and the registry's change together, and are then announced."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sandboxd.errors import Unavailable
from sandboxd.model import TRANSITIONS, Sandbox, SandboxState
from sandboxd.service.events import EventLog
from sandboxd.service.sandboxes.entry import Entry
from sandboxd.store import NewEvent, Store

log = logging.getLogger(__name__)


class Journal:
    """Raises (but for confirm()): Unavailable when the disk is full; then nothing has changed."""

    def __init__(self, store: Store, events: EventLog) -> None:
        self._store = store
        self._events = events

    async def move(self, entry: Entry, state: SandboxState, events: Sequence[NewEvent] = (), **changes: Any) -> None:
        """The only place where a sandbox changes state: checked against the table, stored, then visible."""
        if state not in TRANSITIONS[entry.sandbox.state]:
            raise AssertionError(f"sandbox {entry.sandbox.id} cannot go from {entry.sandbox.state} to {state}")
        await self.record(entry, events, state=state, **changes)

    async def confirm(
        self, entry: Entry, state: SandboxState, events: Sequence[NewEvent] = (), **changes: Any
    ) -> bool:
        """As move(), for what is done and cannot be called off: with a full disk it is so unrecorded.

        False then; the store still has it as begun, and the next start-up comes to the same end.
        """
        try:
            await self.move(entry, state, events, **changes)
        except Unavailable as failure:
            log.error("sandbox %s is %s, but that could not be recorded: %s", entry.sandbox.id, state, failure)
            entry.sandbox = replace(entry.sandbox, state=state, **changes)
            return False
        return True

    async def record(self, entry: Entry, events: Sequence[NewEvent] = (), **changes: Any) -> None:
        """A new sandbox, or changed fields of one. One at a time, so that none undoes another's change."""
        async with entry.recording:
            changed = replace(entry.sandbox, **changes)
            recorded = await self._store.save(changed, events)
            entry.sandbox = changed
        self._events.announce(recorded)

    async def forget(self, sandbox: str, events: Sequence[NewEvent]) -> None:
        self._events.announce(await self._store.forget(sandbox, events))

    async def sandboxes(self) -> list[Sandbox]:
        return await self._store.sandboxes()
