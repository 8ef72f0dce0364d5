"""Sandboxes from creation to deletion: one supervising task for each.

The record in the store is written when the sandbox first runs and removed when its deletion begins
(model.TRANSITIONS); what a crash leaves before and after carries an id without a record, and is swept. Between, one
operation at a time changes a sandbox (transitions.py); its supervisor sees to its end, its expiry and its deletion.
Clients who want it gone ask the entry and wait until it has settled (lifecycle.py).
"""

import contextlib
import logging
import secrets
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

import trio

from sandboxd.crashpoints import crash_point
from sandboxd.errors import SandboxdError, Unavailable
from sandboxd.isolation.backend import RunningMachine
from sandboxd.isolation.plan import Slot
from sandboxd.model import EventKind, ExpiryAction, Image, Sandbox, SandboxSpec, SandboxState
from sandboxd.service.events import new_event
from sandboxd.service.sandboxes.entry import Entry
from sandboxd.service.sandboxes.expiry import Expiry, anchored, deadline_after, next_expiry, now
from sandboxd.service.sandboxes.host import Host
from sandboxd.service.sandboxes.journal import Journal
from sandboxd.service.sandboxes.lifecycle import Lifecycle
from sandboxd.service.sandboxes.machines import Machines
from sandboxd.service.sandboxes.oom import OomWatch
from sandboxd.service.sandboxes.outcome import Outcome, as_domain_error, work_on
from sandboxd.service.sandboxes.recovery import attach, finish_interrupted, require_backends
from sandboxd.service.sandboxes.registry import Registry
from sandboxd.service.sandboxes.slots import Slots
from sandboxd.service.sandboxes.transitions import Transitions, expiry_event
from sandboxd.service.storage.layers import Layers
from sandboxd.store import NewEvent
from sandboxd.threads import run_in_thread

log = logging.getLogger(__name__)

# The clock we sleep by stands still while the host is suspended, so look at the deadlines at least this often.
CLOCK_CHECK = 30.0
# How long residents outlive their machine.
LAST_WORDS = 0.5
# After a pause or a stop that was due could not be done.
EXPIRY_RETRY = 60.0
DELETE_RETRY = 5.0


Resident = Callable[[Entry], Awaitable[None]]


class Supervisor:
    """Owns: every sandbox's supervising task (in the nursery given), its machine, and the slots made ahead.

    Cancelled: a creation is rolled back; everything else goes on without its caller.
    """

    def __init__(
        self,
        *,
        nursery: trio.Nursery,
        registry: Registry,
        host: Host,
        journal: Journal,
        machines: Machines,
        transitions: Transitions,
        lifecycle: Lifecycle,
        layers: Layers,
        oom: OomWatch,
        admit: Callable[[SandboxSpec], None],
        beside_machines: Sequence[Resident],
        beside_found: Sequence[Resident],
    ) -> None:
        """`admit` raises when there is no room for a new sandbox. `beside_machines`: what to begin beside every
        machine; `beside_found`: beside the first machine, too, of each sandbox that an earlier daemon made.
        """
        self._nursery = nursery
        self._registry = registry
        self._host = host
        self._journal = journal
        self._machines = machines
        self._transitions = transitions
        self._lifecycle = lifecycle
        self._layers = layers
        self._oom = oom
        self._admit = admit
        self._beside_machines = beside_machines
        self._beside_found = beside_found
        self.slots = Slots(host)

    # -- creating -------------------------------------------------------------------------------------------------

    async def create(
        self, spec: SandboxSpec, image: Image, *, layer: str | None = None, snapshot: str | None = None
    ) -> Sandbox:
        """Make and start a sandbox, over the layer if one is given. `snapshot`: what people know that layer by.

        Raises: Conflict, Unavailable, Unprocessable, LaunchFailed.
        """
        self._admit(spec)
        self._registry.check_free(spec.name)
        slot, taken = self.slots.take(spec.backend)
        record = replace(_new_record(slot, spec), layer=layer, snapshot=snapshot)
        entry = Entry(sandbox=record, revive=self._lifecycle.revive)
        self._registry.add(entry)
        outcome: SandboxdError | None = await self._nursery.start(
            self._create_and_supervise, entry, slot, image, taken
        )
        if outcome is not None:
            raise outcome
        return entry.sandbox

    async def _create_and_supervise(
        self,
        entry: Entry,
        slot: Slot,
        image: Image,
        taken: bool,
        task_status: trio.TaskStatus[SandboxdError | None],
    ) -> None:
        """The supervisor's whole life. Failures of a creation go to its caller, never up into the nursery."""
        try:
            if not taken:
                await self._host.resources.take(slot, "slot")
            await self._launch(entry, slot, image)
            # Of a caller that is cancelled started() takes nothing over, nor says so: what comes after it would just
            # be cancelled too, and the sandbox stay with nobody beside it, not even to delete it.
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException as failure:
            await self._roll_back(entry)
            if not isinstance(failure, Exception):
                raise
            task_status.started(as_domain_error(failure, entry, "create"))
            return
        task_status.started(None)
        await self._supervise(entry)

    async def _roll_back(self, entry: Entry) -> None:
        """Undo a creation. What cannot be undone now is tried again, by a task that has the time."""
        try:
            with trio.CancelScope(shield=True):
                # Nobody has heard of it, unless it was recorded already.
                await self._discard(entry, [new_event(EventKind.DELETED, entry.sandbox.id)])
        except (SandboxdError, OSError) as failure:
            log.error("creating sandbox %s cannot be undone yet: %s", entry.sandbox.id, failure)
            entry.ask_to_delete()
            self._nursery.start_soon(self._delete, entry)

    async def _launch(self, entry: Entry, slot: Slot, image: Image) -> None:
        """Make the slot a running sandbox. It is recorded once all of it is there, beside the wait for its answer."""
        sandbox = entry.sandbox
        layer_tree = None if sandbox.layer is None else self._layers.files.tree(sandbox.layer)
        self._host.disk.stand_on(sandbox.id, limit=sandbox.spec.limits.disk, layer=layer_tree)
        crash_point("create:taken")
        entry.running = await self._machines.launch(slot, sandbox, image, partial(self._confirm, entry))
        crash_point("create:launched")

    async def _confirm(self, entry: Entry, running: RunningMachine) -> None:
        spec, sandbox = entry.sandbox.spec, entry.sandbox.id
        created = new_event(EventKind.CREATED, sandbox, image=spec.image_name, name=spec.name)
        started = new_event(EventKind.STARTED, sandbox)
        await self._journal.move(
            entry, SandboxState.RUNNING, [created, started], started_at=started.at, machine=running.machine
        )
        crash_point("create:confirmed")

    # -- supervising ----------------------------------------------------------------------------------------------

    async def _supervise(self, entry: Entry, *, found: bool = False) -> None:
        """From the first machine, or the last one found, until the sandbox is gone."""
        while not entry.doomed:
            running = entry.running
            if running is None:
                await self._watch_time(entry, until=lambda: entry.running is not None)
            else:
                await self._beside_machine(entry, running, found=found)
                found = False
        await entry.wait_free()
        await self._delete(entry)

    async def _beside_machine(self, entry: Entry, running: RunningMachine, *, found: bool) -> None:
        """Until the machine has ended, by itself or by an operation, or is to be deleted."""
        cgroup = self._host.cgroups.of(entry.sandbox.id)
        try:
            async with trio.open_nursery() as nursery:
                entry.residents = nursery
                entry.attended.set()
                await self._oom.add(cgroup, entry.sandbox.id, entry.note_oom)
                nursery.start_soon(_wake_at_end, entry, running)
                for resident in (*self._beside_machines, *(self._beside_found if found else ())):
                    entry.start_resident(resident, entry)
                await self._watch_time(entry, until=lambda: entry.running is not running or running.ended())
                # The next machine is attended by a nursery of its own, not by what is left of this one.
                _unattended(entry)
                if entry.doomed:
                    nursery.cancel_scope.cancel("the sandbox is deleted")
                # Those beside a machine that has ended have its last words to write down yet.
                nursery.cancel_scope.deadline = trio.current_time() + LAST_WORDS
        finally:
            _unattended(entry)
            self._oom.discard(cgroup)
        if not entry.doomed:
            # It may be an operation that ends it, and goes on to start another.
            while entry.under_way is not None and entry.running is running:
                await entry.changed.wait()
            if entry.running is running:
                await self._transitions.note_exit(entry)

    async def _watch_time(self, entry: Entry, *, until: Callable[[], bool]) -> None:
        """Until that, or until it is to be deleted: because somebody asked, or because its time is over."""
        while not entry.doomed and not until():
            expiry = next_expiry(entry.sandbox, idle_since=entry.unused_since, instant=now())
            patience = CLOCK_CHECK if expiry is None else min(CLOCK_CHECK, expiry.remaining)
            if expiry is not None and patience <= 0:
                if expiry.action is ExpiryAction.KILL or entry.under_way is None:
                    await self._expire(entry, expiry)
                    continue
                # Not to be waited for in there: an operation may wait for us, to attend the machine that it has made.
                patience = CLOCK_CHECK
            with trio.move_on_after(patience):
                await entry.changed.wait()

    async def _expire(self, entry: Entry, expiry: Expiry) -> None:
        """Its time is over. What cannot be done now is tried again."""
        if expiry.action is ExpiryAction.KILL:
            entry.expiry = expiry
            entry.ask_to_delete()
            return
        try:
            async with entry.operation("expire"):
                await self._transitions.expire(entry, expiry)
        except (SandboxdError, OSError) as failure:
            if not entry.doomed:
                log.error(
                    "sandbox %s: cannot %s it, its time being over: %s", entry.sandbox.id, expiry.action, failure
                )
                entry.put_off(expiry, EXPIRY_RETRY)

    # -- deleting -------------------------------------------------------------------------------------------------

    async def _delete(self, entry: Entry) -> None:
        """Until it is gone. What cannot be deleted now (a full disk, an unkillable process) is tried again."""
        while True:
            try:
                with trio.CancelScope(shield=True):
                    await self._delete_once(entry)
            except (SandboxdError, OSError) as failure:
                log.error("sandbox %s could not be deleted, trying again: %s", entry.sandbox.id, failure)
                if entry in self._registry:  # or nobody waits any more: what it held is still there
                    entry.settle(
                        failure
                        if isinstance(failure, SandboxdError)
                        else Unavailable(f"cannot delete sandbox {entry.sandbox.id} yet: {failure}")
                    )
                await trio.sleep(DELETE_RETRY)
            else:
                return

    async def _delete_once(self, entry: Entry) -> None:
        sandbox = entry.sandbox
        entry.sandbox = replace(sandbox, state=SandboxState.DELETING)
        events = [] if entry.expiry is None else [expiry_event(entry, entry.expiry)]
        await self._discard(entry, [*events, new_event(EventKind.DELETED, sandbox.id)])

    async def _discard(self, entry: Entry, events: list[NewEvent]) -> None:
        """Undo everything a sandbox is, in whatever state of being made it is.

        The record goes first: a daemon killed in the middle leaves the sandbox as it was, or what a later start
        sweeps. Who waits is told as soon as its processes are gone too.
        """
        sandbox = entry.sandbox
        crash_point("delete:asked")
        await self._forget(entry, events)
        crash_point("delete:forgotten")
        await self._machines.end(entry)
        crash_point("delete:killed")
        self._registry.remove(entry)
        self._layers.note_change()
        entry.settle()
        await self._host.resources.release(sandbox.id, "delete")

    async def _forget(self, entry: Entry, events: list[NewEvent]) -> None:
        sandbox = entry.sandbox.id
        try:
            async with entry.recording:  # what is being recorded of it goes first, and so does not bring it back
                await self._journal.forget(sandbox, events)
        except Unavailable:
            # The disk may be full of this very sandbox; without its files there may be room for the change.
            await self._machines.end(entry)
            await self._host.disk.release(sandbox)
            with contextlib.suppress(Unavailable, OSError, subprocess.CalledProcessError):
                await run_in_thread(self._host.disk.purge)
            await self._journal.forget(sandbox, events)

    # -- start-up and housekeeping --------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Find the sandboxes of an earlier daemon again, finish what it began, sweep what nobody knows."""
        records = await self._layers.load(await self._journal.sandboxes())
        require_backends(self._host, records)
        await self._host.resources.claim(records)
        await self._host.resources.sweep({record.id for record in records})
        instant = now()
        for record in records:
            known = replace(record, deadline=anchored(record.deadline, instant))
            self._registry.add(
                Entry(sandbox=known, running=attach(self._host, record), revive=self._lifecycle.revive)
            )
        for entry in self._registry.entries():
            self._nursery.start_soon(self._take_up, entry)

    async def _take_up(self, entry: Entry) -> None:
        """Finish what was being done to it, and supervise it from there on."""
        outcome = Outcome()
        await work_on(entry, "recover", partial(finish_interrupted, self._transitions), outcome, wait=True)
        if outcome.failure is not None:
            log.error("sandbox %s is not as it should be: %s", entry.sandbox.id, outcome.failure)
        await self._supervise(entry, found=True)

    def release(self) -> None:
        """Let go of all machines without touching them: they outlive the daemon."""
        for entry in self._registry.entries():
            if entry.running is not None:
                entry.running.close()


def _new_record(slot: Slot, spec: SandboxSpec) -> Sandbox:
    instant = now()
    return Sandbox(
        id=slot.sandbox,
        state=SandboxState.CREATING,
        spec=spec,
        created_at=instant.wall,
        deadline=None if spec.timeout is None else deadline_after(spec.timeout, instant),
        range_start=slot.ids.start,
        machine_id=secrets.token_hex(16),
    )


def _unattended(entry: Entry) -> None:
    """Nobody begins anything beside its machine until the next one is attended, for which a start waits."""
    if entry.residents is not None:
        entry.residents = None
        entry.attended = trio.Event()


async def _wake_at_end(entry: Entry, running: RunningMachine) -> None:
    with contextlib.suppress(trio.ClosedResourceError):  # an operation has seen it end before us
        await running.wait_ended()
    entry.wake()
