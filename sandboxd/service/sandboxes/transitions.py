"""A sandbox put to sleep and woken: paused and resumed in memory, stopped and started over its files.

Every function here is one operation, to be run inside `entry.operation(…)`. Each records what it is about to do, does
it, and records that it is done (model.TRANSITIONS), so that a start-up knows how to finish what a dead daemon began.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import trio

from sandboxd.crashpoints import crash_point
from sandboxd.errors import SandboxdError, SandboxLost, Unprocessable
from sandboxd.isolation.backend import RunningMachine
from sandboxd.isolation.init.client import InitError, InitGone
from sandboxd.isolation.init.wire import WireError
from sandboxd.kernel import procstat
from sandboxd.model import EventKind, ExpiryAction, Image, Sandbox, SandboxState
from sandboxd.service.events import new_event
from sandboxd.service.sandboxes.entry import Entry
from sandboxd.service.sandboxes.expiry import Expiry, ExpiryReason, now, renewed
from sandboxd.service.sandboxes.journal import Journal
from sandboxd.service.sandboxes.machines import Machines
from sandboxd.store import NewEvent

log = logging.getLogger(__name__)

# Beyond the grace that the processes are given: for sandbox-init to reap them.
SHUTDOWN_MARGIN = 2.0
RECLAIM_STEP = 16 * 1024 * 1024
# What processes have after SIGTERM when nobody is there to say.
EXPIRY_GRACE = 5.0


class Transitions:
    """Raises (every method): Conflict when the state forbids it, Unavailable when the disk is full."""

    def __init__(self, *, journal: Journal, machines: Machines, find_image: Callable[[str], Image]) -> None:
        self._journal = journal
        self._machines = machines
        self._find_image = find_image

    async def pause(self, entry: Entry, *, expiry: Expiry | None = None) -> None:
        """Freeze every process; `expiry`: because its time is over.

        Raises also: Unavailable when one of them cannot be frozen; then it runs on.
        """
        entry.require_change("pause", SandboxState.PAUSING)
        running = _live(entry)
        jobs = tuple(running.stopped_jobs())
        await self._begin(entry, SandboxState.PAUSING, expiry, stopped_jobs=jobs)
        crash_point("pause:recorded")
        await self.finish_pause(entry, running)

    async def finish_pause(self, entry: Entry, running: RunningMachine) -> None:
        try:
            await running.freeze()
        except SandboxdError:
            await self._journal.confirm(entry, SandboxState.RUNNING)
            raise
        crash_point("pause:frozen")
        event = new_event(EventKind.PAUSED, entry.sandbox.id)
        await self._journal.confirm(entry, SandboxState.PAUSED, [event], paused_at=event.at)
        crash_point("pause:confirmed")
        if entry.residents is not None:
            entry.start_resident(_give_memory_back, entry)

    async def resume(self, entry: Entry) -> None:
        """Let every process go on from where it stood."""
        entry.require_change("resume", SandboxState.RESUMING)
        running = _live(entry)
        await self._begin(entry, SandboxState.RESUMING)
        crash_point("resume:recorded")
        await self.finish_resume(entry, running)

    async def finish_resume(self, entry: Entry, running: RunningMachine) -> None:
        await running.thaw(but=frozenset(entry.sandbox.stopped_jobs))
        crash_point("resume:thawed")
        event = new_event(EventKind.RESUMED, entry.sandbox.id)
        changes = {"paused_at": None, "stopped_jobs": (), "deadline": renewed(entry.sandbox, now())}
        entry.touch()
        await self._journal.confirm(entry, SandboxState.RUNNING, [event], **changes)
        crash_point("resume:confirmed")

    async def stop(self, entry: Entry, *, grace: float, expiry: Expiry | None = None) -> None:
        """SIGTERM to every process, SIGKILL to what is left after `grace` seconds. The files stay."""
        entry.require_change("stop", SandboxState.STOPPING)
        running = _live(entry)
        was_paused = entry.sandbox.state is SandboxState.PAUSED
        await self._begin(entry, SandboxState.STOPPING, expiry)
        crash_point("stop:recorded")
        if grace > 0:
            await _ask_to_end(running, grace, was_paused=was_paused)
        crash_point("stop:asked")
        await self.finish_stop(entry)

    async def finish_stop(self, entry: Entry) -> None:
        """Whatever there is of its machine ends; then it is stopped."""
        await self._machines.end(entry)
        crash_point("stop:killed")
        await self._machines.sync(entry.sandbox.id)
        await self._without_machine(entry, SandboxState.STOPPED, new_event(EventKind.STOPPED, entry.sandbox.id))

    async def start(self, entry: Entry) -> None:
        """A new machine over the same files: same id, names and machine-id, new boot. Raises also: LaunchFailed,
        Unprocessable when its files are lost.
        """
        entry.require_change("start", SandboxState.STARTING)
        if not self._machines.has_files(entry.sandbox):
            raise files_missing("start", entry.sandbox)
        image = self._find_image(entry.sandbox.spec.image)
        await self.release(entry)  # what was left when its last machine ended
        try:
            slot = self._machines.slot(entry.sandbox)
            await self._begin(entry, SandboxState.STARTING, range_start=slot.ids.start)
            crash_point("start:recorded")
            await self._machines.take(slot)
            entry.oom_noticed = False
            entry.running = await self._machines.launch(slot, entry.sandbox, image)
            crash_point("start:launched")
            entry.wake()
            await entry.attended.wait()
            await self._confirm_start(entry, entry.running)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._give_up(entry)
            raise

    async def _confirm_start(self, entry: Entry, running: RunningMachine) -> None:
        event = new_event(EventKind.STARTED, entry.sandbox.id)
        changes = {"started_at": event.at, "ended_at": None, "end_reason": None, "machine": running.machine}
        deadline = renewed(entry.sandbox, now())
        entry.touch()
        await self._journal.move(entry, SandboxState.RUNNING, [event], deadline=deadline, **changes)
        crash_point("start:confirmed")

    async def _give_up(self, entry: Entry) -> None:
        """Undo a start that failed. What cannot be undone now, the next start-up finds and does."""
        try:
            await self._machines.end(entry)
            starting = entry.sandbox.state is SandboxState.STARTING
            if not starting or await self._journal.confirm(entry, SandboxState.STOPPED, range_start=0):
                await self.release(entry)
        except (SandboxdError, OSError) as failure:
            log.error("the start of sandbox %s cannot be undone: %s", entry.sandbox.id, failure)

    async def abandon_start(self, entry: Entry) -> None:
        """A start that a daemon did not live to confirm, and nobody was told of."""
        await self._machines.end_unrecorded(entry.sandbox.id)
        await self._journal.move(entry, SandboxState.STOPPED, range_start=0)
        await self.release(entry)

    async def revive(self, entry: Entry) -> None:
        """Have it run, if it does not already."""
        if entry.sandbox.state is SandboxState.PAUSED:
            await self.resume(entry)
        elif entry.sandbox.state is not SandboxState.RUNNING:
            await self.start(entry)

    async def expire(self, entry: Entry, expiry: Expiry) -> None:
        """Pause or stop it because its time is over, as far as it is not so already."""
        state = entry.sandbox.state
        if expiry.action is ExpiryAction.PAUSE and state is SandboxState.RUNNING:
            await self.pause(entry, expiry=expiry)
        elif expiry.action is ExpiryAction.STOP and state in {SandboxState.RUNNING, SandboxState.PAUSED}:
            await self.stop(entry, grace=EXPIRY_GRACE, expiry=expiry)
        elif expiry.reason is ExpiryReason.LIFETIME:
            await self._journal.record(entry, [expiry_event(entry, expiry)], deadline=None)

    async def note_exit(self, entry: Entry) -> None:
        """Its pid 1 is gone though nobody asked. Whatever was left of its processes goes too; its files stay."""
        reason = "oom" if entry.oom_noticed else self._why_gone(entry.sandbox)
        try:
            await self._machines.end(entry)
        except SandboxdError as failure:
            # Not worth the daemon: the next start-up tries again.
            log.error("sandbox %s has ended, but not all of it: %s", entry.sandbox.id, failure)
        event = new_event(EventKind.EXITED, entry.sandbox.id, reason=reason)
        await self._without_machine(entry, SandboxState.EXITED, event)

    def _why_gone(self, sandbox: Sandbox) -> str:
        if not self._machines.has_files(sandbox):
            return "files lost"
        machine = sandbox.machine
        return "host restarted" if machine and machine.host_boot_id != procstat.boot_id() else "init ended"

    async def release(self, entry: Entry) -> None:
        """Give back what its machine, which has ended, took of the host, as far as that was not done yet."""
        await self._machines.release(entry.sandbox.id)

    async def _begin(self, entry: Entry, state: SandboxState, expiry: Expiry | None = None, **changes: Any) -> None:
        """Record what is about to be done and, when it is because its time is over, that too."""
        if expiry is not None and expiry.reason is ExpiryReason.LIFETIME:
            changes["deadline"] = None
        events = [] if expiry is None else [expiry_event(entry, expiry)]
        await self._journal.move(entry, state, events, **changes)

    async def _without_machine(self, entry: Entry, state: SandboxState, event: NewEvent) -> None:
        """Its machine has ended: record that, and then give back what it held."""
        reason = event.facts.get("reason", "stopped")
        changes = {"machine": None, "range_start": 0, "paused_at": None, "stopped_jobs": ()}
        if await self._journal.confirm(entry, state, [event], ended_at=event.at, end_reason=reason, **changes):
            crash_point(f"{event.kind}:confirmed")
            try:
                await self.release(entry)
            except (SandboxdError, OSError) as failure:
                log.error("sandbox %s has ended, but still holds something: %s", entry.sandbox.id, failure)


def files_missing(verb: str, sandbox: Sandbox) -> Unprocessable:
    """What to answer who needs files that are not there, or not what their record says."""
    reason = "a restore of them was not finished" if sandbox.discarding else "they are lost"
    return Unprocessable(
        f"cannot {verb} sandbox {sandbox.id} with its files: {reason}; restore it to a snapshot, or delete it",
        kind="files_missing",
    )


def expiry_event(entry: Entry, expiry: Expiry) -> NewEvent:
    return new_event(EventKind.EXPIRED, entry.sandbox.id, reason=expiry.reason, action=expiry.action)


def _live(entry: Entry) -> RunningMachine:
    if entry.running is None or entry.running.ended():
        raise SandboxLost(f"cannot go on: sandbox {entry.sandbox.id} has just ended by itself")
    return entry.running


async def _give_memory_back(entry: Entry) -> None:
    """Of a sandbox that stands still, as far as it is not needed to go on; in steps, for it may be resumed."""
    running = entry.require_machine()
    while entry.sandbox.state is SandboxState.PAUSED:
        if not await running.reclaim(RECLAIM_STEP):
            return


async def _ask_to_end(running: RunningMachine, grace: float, *, was_paused: bool) -> None:
    if was_paused:
        await running.thaw()
    with (
        trio.move_on_after(grace + SHUTDOWN_MARGIN),
        contextlib.suppress(InitGone, InitError, WireError, OSError),
    ):
        await running.init.shutdown(grace_ms=round(grace * 1000))
