"""Sandboxes-to-be: a few are kept with everything made that does not depend on what they will run.

A slot has its sandbox's id from the start, and with it the id range, the cgroup, the directories, and a backend's
process that waits (backend.prepare). Creating a sandbox is then little more than giving that process a root. No
record knows of a slot: a daemon that was killed leaves them to the next one's sweep, like all that carries an id
without a record; and their processes do not outlive their daemon.
"""

import logging
import secrets
import uuid
from collections import deque

import trio

from sandboxd.crashpoints import crash_point
from sandboxd.errors import LaunchFailed, SandboxdError
from sandboxd.isolation.plan import IdRange, Slot
from sandboxd.service.sandboxes.entry import Host
from sandboxd.service.sandboxes.machines import end_cgroup
from sandboxd.service.storage.disk import no_space

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
        self._names: set[str] = set()
        self._taken = trio.Event()

    def __contains__(self, sandbox: str) -> bool:
        return sandbox in self._names

    def take(self) -> Slot:
        """One that waits, if there is one; otherwise one whose process the launch has to make first.

        Raises: Unavailable when there is no free id range or no space, LaunchFailed.
        """
        self._taken.set()
        while self._ready:
            slot = self._ready.popleft()
            if self._host.backend.is_prepared(slot.sandbox):
                self._names.discard(slot.sandbox)
                return slot
            self._spoiled.append(slot)  # somebody killed it
        slot = self._furnished()
        self._names.discard(slot.sandbox)
        return slot

    async def run(self) -> None:
        """A task of the service: keep READY of them. They end with it."""
        try:
            while True:
                self._taken = trio.Event()
                while self._spoiled:
                    await self._drop(self._spoiled.pop())
                await self._refill()
                await self._taken.wait()
                await trio.sleep(REFILL_PAUSE)
        finally:
            with trio.move_on_after(DROP_LIMIT, shield=True):
                for slot in (*self._spoiled, *self._ready):
                    await self._drop(slot)

    async def _refill(self) -> None:
        while len(self._ready) < READY:
            try:
                await self._make_one()
            except (SandboxdError, OSError) as failure:
                log.warning("cannot make a sandbox ahead of time: %s", failure)
                await trio.sleep(RETRY)

    async def _make_one(self) -> None:
        slot = self._furnished()
        cgroups = self._host.cgroups
        try:
            await self._host.backend.prepare(slot, cgroup=cgroups.sandbox(slot.sandbox) if cgroups else None)
        except BaseException:
            with trio.move_on_after(DROP_LIMIT, shield=True):
                await self._drop(slot)
            raise
        crash_point("slot:waiting")
        self._ready.append(slot)

    def _furnished(self) -> Slot:
        """A new slot with its directories and cgroup. What is made is known by name before it is there."""
        # A letter first and nothing but letters and digits: good in host names, paths and cgroup names.
        sandbox = "s" + secrets.token_hex(10)
        host = self._host
        slot = Slot(
            sandbox=sandbox,
            ids=IdRange(start=host.ranges.take(), idmapped=host.idmapped),
            runtime=host.disk.paths(sandbox).runtime,
            boot_id=str(uuid.uuid4()),
            init=host.init,
        )
        self._names.add(sandbox)
        try:
            host.disk.make(sandbox)
            crash_point("slot:directories")
            if host.cgroups is not None:
                host.cgroups.create(sandbox)
            crash_point("slot:cgroup")
        except OSError as error:
            self._clear(slot)
            raise no_space("create", error.errno) or LaunchFailed(f"cannot create the sandbox: {error}") from error
        return slot

    async def _drop(self, slot: Slot) -> None:
        await self._host.backend.drop(slot.sandbox)
        if self._host.cgroups is not None:
            await end_cgroup(self._host.cgroups.sandbox(slot.sandbox))
        self._clear(slot)

    def _clear(self, slot: Slot) -> None:
        """Take away what _furnished made, but for the cgroup, which the next purge takes if it is there."""
        self._host.disk.unmake(slot.sandbox)
        self._host.ranges.give_back(slot.ids.start)
        self._names.discard(slot.sandbox)
