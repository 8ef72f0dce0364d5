"""A sandbox put to sleep and woken: paused and resumed in memory, stopped and started over its files.

Every function here is one operation, to be run inside `entry.operation(…)`. Each records what it is about to do, does
it, and records that it is done (model.TRANSITIONS), so that a start-up knows how to finish what a dead daemon began.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace

import trio

from sandboxd.crashpoints import crash_point
from sandboxd.errors import SandboxdError, SandboxLost
from sandboxd.isolation.backend import RunningMachine
from sandboxd.isolation.freezer import freeze, stopped_jobs, thaw
from sandboxd.isolation.init_client import InitError, InitGone
from sandboxd.isolation.wire import WireError
from sandboxd.model import EventKind, Image, Sandbox, SandboxState
from sandboxd.service.entry import Entry
from sandboxd.service.events import new_event
from sandboxd.service.journal import Journal
from sandboxd.service.machines import Machines

log = logging.getLogger(__name__)

# Beyond the grace that the processes are given: for sandbox-init to reap them.
SHUTDOWN_MARGIN = 2.0


class Lifecycle:
    """Raises (every method): Conflict when the state forbids it, Unavailable when the disk is full."""

    def __init__(self, *, journal: Journal, machines: Machines, find_image: Callable[[str], Image]) -> None:
        self._journal = journal
        self._machines = machines
        self._find_image = find_image

    async def pause(self, entry: Entry) -> None:
        """Freeze every process. Raises also: Unavailable when one of them cannot be frozen; then it runs on."""
        entry.require_change("pause", SandboxState.PAUSING)
        running = _live(entry)
        jobs = tuple(stopped_jobs(running))
        await self._journal.move(entry, replace(entry.sandbox, stopped_jobs=jobs), SandboxState.PAUSING)
        crash_point("pause:recorded")
        await self.finish_pause(entry, running)

    async def finish_pause(self, entry: Entry, running: RunningMachine) -> None:
        try:
            await freeze(running)
        except SandboxdError:
            await self._journal.move(entry, entry.sandbox, SandboxState.RUNNING)
            raise
        crash_point("pause:frozen")
        paused = replace(entry.sandbox, paused_at=time.time())
        await self._journal.move(entry, paused, SandboxState.PAUSED, [new_event(EventKind.PAUSED, paused.id)])
        crash_point("pause:confirmed")

    async def resume(self, entry: Entry) -> None:
        """Let every process go on from where it stood."""
        entry.require_change("resume", SandboxState.RESUMING)
        running = _live(entry)
        await self._journal.move(entry, entry.sandbox, SandboxState.RESUMING)
        crash_point("resume:recorded")
        await self.finish_resume(entry, running)

    async def finish_resume(self, entry: Entry, running: RunningMachine) -> None:
        await thaw(running, but=frozenset(entry.sandbox.stopped_jobs))
        crash_point("resume:thawed")
        resumed = replace(entry.sandbox, paused_at=None, stopped_jobs=())
        await self._journal.move(entry, resumed, SandboxState.RUNNING, [new_event(EventKind.RESUMED, resumed.id)])
        crash_point("resume:confirmed")

    async def stop(self, entry: Entry, *, grace: float) -> None:
        """SIGTERM to every process, SIGKILL to what is left after `grace` seconds. The files stay."""
        entry.require_change("stop", SandboxState.STOPPING)
        running = _live(entry)
        was_paused = entry.sandbox.state is SandboxState.PAUSED
        await self._journal.move(entry, entry.sandbox, SandboxState.STOPPING)
        crash_point("stop:recorded")
        if grace > 0:
            await _ask_to_end(running, grace, was_paused=was_paused)
        crash_point("stop:asked")
        await self.finish_stop(entry)

    async def finish_stop(self, entry: Entry) -> None:
        """Whatever there is of its machine ends; then it is stopped."""
        before = entry.sandbox
        await self._machines.end(entry)
        crash_point("stop:killed")
        await self._machines.sync(before.id)
        ended = _without_machine(before, "stopped")
        await self._journal.move(entry, ended, SandboxState.STOPPED, [new_event(EventKind.STOPPED, ended.id)])
        crash_point("stop:confirmed")
        await self._machines.let_go(before)

    async def start(self, entry: Entry) -> None:
        """A new machine over the same files: same id, names and machine-id, new boot. Raises also: LaunchFailed."""
        entry.require_change("start", SandboxState.STARTING)
        before, image = entry.sandbox, self._find_image(entry.sandbox.spec.image)
        taken = replace(before, range_start=self._machines.take_range())
        try:
            await self._journal.move(entry, taken, SandboxState.STARTING)
            crash_point("start:recorded")
            await self._machines.let_go(before)
            self._machines.renew(taken.id)
            entry.oom_noticed = False
            entry.running = await self._machines.launch_again(taken, image)
            crash_point("start:launched")
            entry.wake()
            await entry.attended.wait()
            await self._confirm_start(entry, entry.running)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._give_up(entry, taken.range_start)
            raise

    async def _confirm_start(self, entry: Entry, running: RunningMachine) -> None:
        started = replace(
            entry.sandbox, started_at=time.time(), ended_at=None, end_reason=None, machine=running.machine
        )
        await self._journal.move(entry, started, SandboxState.RUNNING, [new_event(EventKind.STARTED, started.id)])
        crash_point("start:confirmed")

    async def _give_up(self, entry: Entry, range_start: int) -> None:
        """Undo a start that failed. What cannot be undone or recorded now, the next start-up finds and does."""
        try:
            await self._machines.end(entry)
            if entry.sandbox.state is SandboxState.STARTING:
                await self._journal.move(entry, replace(entry.sandbox, range_start=0), SandboxState.STOPPED)
            await self._machines.let_go(replace(entry.sandbox, range_start=range_start))
        except (SandboxdError, OSError) as failure:
            log.error("the start of sandbox %s cannot be undone: %s", entry.sandbox.id, failure)
            entry.sandbox = replace(entry.sandbox, state=SandboxState.STOPPED)

    async def abandon_start(self, entry: Entry) -> None:
        """A start that a daemon did not live to confirm, and nobody was told of."""
        before = entry.sandbox
        await self._machines.sweep(before.id)
        await self._journal.move(entry, replace(before, range_start=0), SandboxState.STOPPED)
        await self._machines.let_go(before)

    async def note_exit(self, entry: Entry) -> None:
        """Its pid 1 is gone though nobody asked. Whatever was left of its processes goes too; its files stay."""
        before, reason = entry.sandbox, "oom" if entry.oom_noticed else "init ended"
        event = new_event(EventKind.EXITED, before.id, reason=reason)
        try:
            await self._machines.end(entry)
            await self._journal.move(entry, _without_machine(before, reason), SandboxState.EXITED, [event])
            await self._machines.let_go(before)
        except SandboxdError as failure:
            # Not worth the daemon: the next start-up finds the same end and records it then.
            log.error("the end of sandbox %s could not be recorded: %s", before.id, failure)
            ended = replace(_without_machine(before, reason), range_start=before.range_start)
            entry.sandbox = replace(ended, state=SandboxState.EXITED)

    async def let_go(self, entry: Entry) -> None:
        """Of what a daemon that died did not come to give back when the machine had ended."""
        await self._machines.let_go(entry.sandbox)


def _without_machine(sandbox: Sandbox, reason: str) -> Sandbox:
    ended = replace(sandbox, machine=None, range_start=0, paused_at=None, stopped_jobs=())
    return replace(ended, ended_at=time.time(), end_reason=reason)


def _live(entry: Entry) -> RunningMachine:
    if entry.running is None or entry.running.ended():
        raise SandboxLost(f"cannot go on: sandbox {entry.sandbox.id} has just ended by itself")
    return entry.running


async def _ask_to_end(running: RunningMachine, grace: float, *, was_paused: bool) -> None:
    if was_paused:
        await thaw(running)
    with (
        trio.move_on_after(grace + SHUTDOWN_MARGIN),
        contextlib.suppress(InitGone, InitError, WireError, OSError),
    ):
        await running.init.shutdown(grace_ms=round(grace * 1000))
