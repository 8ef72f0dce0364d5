"""Sandboxes-to-be: a few are kept with everything made that does not depend on what they will run.

A slot has its sandbox's id from the start, and with it the id range, the cgroup, the directories, and a backend's
process that waits (backend.prepare). Creating a sandbox is then little more than giving that process a root. No
record knows of a slot: a daemon that was killed leaves them to the next one's sweep, like all that carries an id
without a record; and their processes do not outlive their daemon.
"""

import logging
from collections import deque

import trio

from sandboxd.errors import SandboxdError
from sandboxd.isolation.plan import Slot
from sandboxd.service.sandboxes.host import Host, new_id

log = logging.getLogger(__name__)

# About what a burst takes before new ones are made; each costs two small processes while it waits.
READY = 4
# The creation that took a slot, and most likely its first command, go before the making of another one.
REFILL_PAUSE = 0.02
RETRY = 5.0
DROP_LIMIT = 10.0


class Slots:
    """Owns: the slots that nobody has taken yet. One that is taken belongs to its taker, failure or not."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._ready: deque[Slot] = deque()
        self._spoiled: list[Slot] = []
        self._taken = trio.Event()

    def take(self, backend: str) -> tuple[Slot, bool]:
        """One that waits and True; when there is none, one for which all resources are yet to be taken, and False.

        Those that wait are of the default backend. Raises: Unavailable when there is no free id range.
        """
        self._taken.set()
        while self._ready and backend == self._host.backends.default:
            slot = self._ready.popleft()
            if self._host.resources.intact(slot):
                return slot, True
            self._spoiled.append(slot)  # somebody killed it
        return self._host.slot(new_id(), backend), False

    async def run(self) -> None:
        """A task of the service: keep READY of them. They end with it."""
        try:
            while True:
                self._taken = trio.Event()
                await self._release_spoiled()
                await self._refill()
                await self._taken.wait()
                await trio.sleep(REFILL_PAUSE)
        finally:
            with trio.move_on_after(DROP_LIMIT, shield=True):
                self._spoiled += self._ready
                self._ready.clear()
                await self._release_spoiled()

    async def _refill(self) -> None:
        while len(self._ready) < READY:
            try:
                await self._make_one()
            except (SandboxdError, OSError) as failure:
                log.warning("cannot make a sandbox ahead of time: %s", failure)
                await trio.sleep(RETRY)

    async def _make_one(self) -> None:
        slot = self._host.slot(new_id(), self._host.backends.default)
        try:
            await self._host.resources.take(slot, "slot")
        except BaseException:
            self._spoiled.append(slot)
            with trio.move_on_after(DROP_LIMIT, shield=True):
                await self._release_spoiled()
            raise
        self._ready.append(slot)

    async def _release_spoiled(self) -> None:
        """What cannot be released now is tried again with the next one."""
        for slot in tuple(self._spoiled):
            try:
                await self._host.resources.release(slot.sandbox, "delete")
            except (SandboxdError, OSError) as failure:
                log.error("a sandbox made ahead of time cannot be ended yet: %s", failure)
            else:
                self._spoiled.remove(slot)
