"""What clients do to a sandbox as a whole: put it to sleep, wake it, delete it, say how long it lives.

Each goes on without its caller, so a client that leaves never leaves anything half done.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import trio

from sandboxd.model import ExpiryAction, Sandbox
from sandboxd.service.sandboxes.entry import Entry
from sandboxd.service.sandboxes.expiry import deadline_after, is_later, now
from sandboxd.service.sandboxes.journal import Journal
from sandboxd.service.sandboxes.outcome import Outcome, work_on
from sandboxd.service.sandboxes.registry import Registry
from sandboxd.service.sandboxes.transitions import Transitions


class Lifecycle:
    """Owns: the tasks of what is being done (in the nursery given).

    Raises (every method): Conflict when the state, or another operation, forbids it; Unavailable when the disk is
    full; what the operation itself raises (see Transitions).
    """

    def __init__(
        self, *, nursery: trio.Nursery, registry: Registry, journal: Journal, transitions: Transitions
    ) -> None:
        self._nursery = nursery
        self._registry = registry
        self._journal = journal
        self._transitions = transitions

    async def delete(self, entry: Entry) -> None:
        """Returns when nothing of it is left but files on their way out. Raises: NotFound, SandboxLost."""
        self._registry.check_present(entry)
        entry.ask_to_delete()
        await entry.settled.wait()
        if entry.failure is not None:
            raise entry.failure

    async def set_lifetime(
        self,
        entry: Entry,
        seconds: float | None,
        *,
        on_timeout: ExpiryAction | None = None,
        only_extend: bool = False,
    ) -> Sandbox:
        """Let it end `seconds` from now (None: never), and then have that done. Raises: Conflict.

        `only_extend`: unless it would end later anyway.
        """
        instant = now()
        entry.require_recorded("set the lifetime of")
        spec, deadline = entry.sandbox.spec, None if seconds is None else deadline_after(seconds, instant)
        if only_extend and not is_later(deadline, entry.sandbox.deadline, instant):
            return entry.sandbox
        changed = replace(spec, timeout=seconds, on_timeout=on_timeout or spec.on_timeout)
        await self._journal.record(entry, deadline=deadline, spec=changed)
        entry.wake()
        return entry.sandbox

    async def set_idle_timeout(self, entry: Entry, seconds: float | None) -> Sandbox:
        """Let it be idle for so long at most, from now (None: for ever). Raises: Conflict."""
        entry.require_recorded("set the idle timeout of")
        await self._journal.record(entry, spec=replace(entry.sandbox.spec, idle_timeout=seconds))
        entry.touch()
        return entry.sandbox

    def touch(self, entry: Entry) -> Sandbox:
        """It counts as used now. Raises: Conflict when it does not run."""
        entry.require_running()
        entry.touch()
        return entry.sandbox

    async def pause(self, entry: Entry) -> Sandbox:
        """See Transitions.pause."""
        return await self.carry_out(entry, "pause", self._transitions.pause)

    async def resume(self, entry: Entry) -> Sandbox:
        """See Transitions.resume."""
        return await self.carry_out(entry, "resume", self._transitions.resume)

    async def stop(self, entry: Entry, *, grace: float) -> Sandbox:
        """See Transitions.stop."""
        return await self.carry_out(entry, "stop", partial(self._transitions.stop, grace=grace))

    async def start(self, entry: Entry) -> Sandbox:
        """See Transitions.start."""
        return await self.carry_out(entry, "start", self._transitions.start)

    async def revive(self, entry: Entry) -> None:
        """After whatever is under way, have it run."""
        await self.carry_out(entry, "resume on demand", self._transitions.revive, wait=True)

    async def carry_out(
        self, entry: Entry, name: str, work: Callable[[Entry], Awaitable[None]], *, wait: bool = False
    ) -> Sandbox:
        """Do it in a task that goes on when the caller leaves. Raises: Conflict, and what the work raises."""
        outcome = Outcome()
        self._nursery.start_soon(partial(work_on, entry, name, work, outcome, wait=wait))
        await outcome.known.wait()
        if outcome.failure is not None:
            raise outcome.failure
        return entry.sandbox
