"""Sandboxes from creation to deletion: the registry, and one supervising task for each.

The record in the store is written before the first effect on the host and removed after the last one is undone
(model.TRANSITIONS). In between, the sandbox's supervisor is the only one who changes it: clients who want it gone
ask the entry to stop and wait until it has settled, so a client that leaves never leaves anything half done.
"""

import contextlib
import errno
import logging
import secrets
import subprocess
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import trio

from sandboxd.crashpoints import crash_point
from sandboxd.errors import Conflict, LaunchFailed, NotFound, SandboxdError, Unavailable, Unprocessable
from sandboxd.isolation.backend import RunningMachine
from sandboxd.isolation.plan import IdRange, LaunchPlan
from sandboxd.kernel.cgroups import Cgroup
from sandboxd.model import TRANSITIONS, Event, EventKind, Image, Sandbox, SandboxSpec, SandboxState
from sandboxd.service.entry import Entry, Host
from sandboxd.service.events import EventLog, new_event
from sandboxd.service.oom import OomWatch
from sandboxd.service.recovery import attach, end_cgroup, sweep
from sandboxd.store import NewEvent, Store

log = logging.getLogger(__name__)

# A wall clock may be set while we wait for an expiry, so look at it at least this often.
CLOCK_CHECK = 30.0
# User namespaces kept ready for the next creates: about what a burst takes before the warmer catches up.
WARM_RANGES = 4
DELETE_RETRY = 5.0
# Discarded files go together: removing them one sandbox at a time would cost a process for each.
PURGE_DELAY = 0.5


class Sandboxes:
    """Owns: every sandbox's supervising task (in the nursery given) and its machine.

    Cancelled: a creation is rolled back; a deletion goes on without its caller.
    """

    def __init__(
        self, *, nursery: trio.Nursery, store: Store, events: EventLog, host: Host, limit: int, oom: OomWatch
    ) -> None:
        self._nursery = nursery
        self._store = store
        self._events = events
        self._host = host
        self._limit = limit
        self._oom = oom
        self._entries: dict[str, Entry] = {}
        self._discarded = trio.Event()
        self._range_taken = trio.Event()
        self.on_found: list[Callable[[Entry], Awaitable[None]]] = []
        """residents to begin beside each machine of an earlier daemon that was found running"""

    # -- asking ---------------------------------------------------------------------------------------------------

    def entry(self, sandbox: str) -> Entry:
        """By id or by name. Raises: NotFound."""
        found = self._entries.get(sandbox) or self._named(sandbox)
        if found is None:
            raise NotFound(f"cannot find sandbox {sandbox!r}: it does not exist, or was deleted", sandbox=sandbox)
        return found

    def all(self) -> list[Sandbox]:
        """All of them, oldest first."""
        return [entry.sandbox for entry in self._entries.values()]

    def _named(self, name: str) -> Entry | None:
        return next((entry for entry in self._entries.values() if entry.sandbox.spec.name == name), None)

    def entries(self) -> Iterator[Entry]:
        yield from list(self._entries.values())

    # -- creating -------------------------------------------------------------------------------------------------

    async def create(self, spec: SandboxSpec, image: Image) -> Sandbox:
        """Make and start a sandbox. Raises: Conflict, Unavailable, Unprocessable, LaunchFailed."""
        if len(self._entries) >= self._limit:
            raise Unavailable(f"cannot create the sandbox: this daemon holds its maximum of {self._limit}")
        if spec.name is not None and self._named(spec.name) is not None:
            raise Conflict(f"cannot create sandbox {spec.name!r}: a sandbox of that name exists", name=spec.name)
        entry = Entry(sandbox=self._new_record(spec))
        self._entries[entry.sandbox.id] = entry
        outcome: SandboxdError | None = await self._nursery.start(self._create_and_supervise, entry, image)
        self._range_taken.set()
        if outcome is not None:
            raise outcome
        return entry.sandbox

    def _new_record(self, spec: SandboxSpec) -> Sandbox:
        now = time.time()
        return Sandbox(
            # A letter first and nothing but letters and digits: good in host names, paths and cgroup names.
            id="s" + secrets.token_hex(10),
            state=SandboxState.CREATING,
            spec=spec,
            created_at=now,
            expires_at=None if spec.timeout is None else now + spec.timeout,
            range_start=self._host.ranges.take(),
        )

    async def _create_and_supervise(
        self, entry: Entry, image: Image, task_status: trio.TaskStatus[SandboxdError | None]
    ) -> None:
        """The supervisor's whole life. Failures of a creation go to its caller, never up into the nursery."""
        try:
            await self._launch(entry, image)
        except BaseException as failure:
            await self._roll_back(entry)
            if not isinstance(failure, Exception):
                raise
            task_status.started(_as_domain_error(failure, entry))
            return
        task_status.started(None)
        await self._supervise(entry)

    async def _roll_back(self, entry: Entry) -> None:
        """Undo a creation. What cannot be undone now is tried again, by a task that has the time."""
        try:
            with trio.CancelScope(shield=True):
                await self._discard(entry, events=[])
        except (SandboxdError, OSError) as failure:
            log.error("creating sandbox %s cannot be undone yet: %s", entry.sandbox.id, failure)
            entry.ask_to_stop()
            self._nursery.start_soon(self._delete, entry)

    async def _launch(self, entry: Entry, image: Image) -> None:
        sandbox, host = entry.sandbox, self._host
        await self._store.save(sandbox)
        crash_point("create:recorded")
        paths = host.disk.make(sandbox.id)
        crash_point("create:directories")
        cgroup = self._make_cgroup(sandbox)
        crash_point("create:cgroup")
        plan = LaunchPlan(
            sandbox=sandbox.id,
            ids=IdRange(start=sandbox.range_start, idmapped=host.idmapped),
            layers=(image.rootfs,),
            writable=paths.writable,
            runtime=paths.runtime,
            hostname=sandbox.spec.hostname,
            boot_id=str(uuid.uuid4()),
            machine_id=secrets.token_hex(16),
            init=host.init,
            binds=image.binds,
            hidden=image.hidden,
        )
        entry.running = await host.backend.launch(plan, cgroup=cgroup)
        crash_point("create:launched")
        now = time.time()
        started = replace(sandbox, started_at=now, machine=entry.running.machine)
        created = new_event(EventKind.CREATED, sandbox.id, image=sandbox.spec.image_name, name=sandbox.spec.name)
        await self._move(entry, started, SandboxState.RUNNING, [created, new_event(EventKind.STARTED, sandbox.id)])
        crash_point("create:confirmed")

    def _make_cgroup(self, sandbox: Sandbox) -> Cgroup | None:
        if self._host.cgroups is None:
            return None
        limits = self._host.cgroup_limits(sandbox.spec.limits)
        try:
            return self._host.cgroups.create(sandbox.id, limits)
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ERANGE, errno.EOPNOTSUPP}:
                raise Unprocessable(f"cannot set the limits: {error}; change or drop the limit") from error
            raise

    # -- supervising ----------------------------------------------------------------------------------------------

    async def _supervise(self, entry: Entry, *, found: bool = False) -> None:
        """From RUNNING (or EXITED) until the sandbox is gone. Its own bookkeeping failing ends the daemon."""
        if entry.sandbox.state is SandboxState.RUNNING:
            await self._while_running(entry, found=found)
        if entry.stop_reason is None:
            await self._note_exit(entry)
            await self._until_stop(entry)
        await self._delete(entry)

    async def _while_running(self, entry: Entry, *, found: bool) -> None:
        """Until the machine ends by itself, its lifetime is over, or somebody wants it gone."""
        assert entry.running is not None
        cgroup = entry.running.cgroup
        try:
            async with trio.open_nursery() as nursery:
                entry.residents = nursery
                await self._oom.add(cgroup, entry.sandbox.id, entry.note_oom)
                nursery.start_soon(_wake_at_end, entry, entry.running)
                for resident in self.on_found if found else ():
                    entry.start_resident(resident, entry)
                await self._until_stop(entry, running=entry.running)
                nursery.cancel_scope.cancel("it is known how this ends")
        finally:
            entry.residents = None
            self._oom.discard(cgroup)

    async def _until_stop(self, entry: Entry, *, running: RunningMachine | None = None) -> None:
        """Until somebody wants the sandbox gone or its time is over; or, if it is running, until it ended."""
        while entry.stop_reason is None and not (running and running.ended()):
            expires = entry.sandbox.expires_at
            remaining = CLOCK_CHECK if expires is None else min(CLOCK_CHECK, expires - time.time())
            if remaining <= 0:
                entry.ask_to_stop(EventKind.EXPIRED)
                return
            with trio.move_on_after(remaining):
                await entry.changed.wait()

    async def _note_exit(self, entry: Entry) -> None:
        """Its pid 1 is gone though nobody asked. Whatever was left of its processes goes too; its files stay."""
        if entry.sandbox.state is not SandboxState.RUNNING:
            return
        reason = "oom" if entry.oom_noticed else "init ended"
        ended = replace(entry.sandbox, ended_at=time.time(), end_reason=reason, machine=None)
        try:
            await self._end_machine(entry)
            await self._move(
                entry, ended, SandboxState.EXITED, [new_event(EventKind.EXITED, ended.id, reason=reason)]
            )
        except SandboxdError as failure:
            # Not worth the daemon: the next start-up finds the same end and records it then.
            log.error("the end of sandbox %s could not be recorded: %s", ended.id, failure)
            entry.sandbox = replace(ended, state=SandboxState.EXITED)

    async def _delete(self, entry: Entry) -> None:
        """Until it is gone. What cannot be deleted now (a full disk, an unkillable process) is tried again."""
        while entry.sandbox.id in self._entries:
            try:
                with trio.CancelScope(shield=True):
                    await self._delete_once(entry)
            except (SandboxdError, OSError) as failure:
                log.error("sandbox %s could not be deleted, trying again: %s", entry.sandbox.id, failure)
                entry.settle(
                    failure
                    if isinstance(failure, SandboxdError)
                    else Unavailable(f"cannot delete sandbox {entry.sandbox.id} yet: {failure}")
                )
                await trio.sleep(DELETE_RETRY)

    async def _delete_once(self, entry: Entry) -> None:
        sandbox = entry.sandbox
        if sandbox.state is not SandboxState.DELETING:
            await self._note_deletion(entry)
        crash_point("delete:recorded")
        expired = entry.stop_reason is EventKind.EXPIRED
        events = [new_event(EventKind.EXPIRED, sandbox.id)] if expired else []
        await self._discard(entry, [*events, new_event(EventKind.DELETED, sandbox.id)])

    async def _note_deletion(self, entry: Entry) -> None:
        try:
            await self._move(entry, entry.sandbox, SandboxState.DELETING, [])
        except Unavailable as failure:
            # The disk may be full of this very sandbox. Killed before it has told anybody, the daemon will find a
            # sandbox that has exited.
            log.warning("deleting sandbox %s without a note of it: %s", entry.sandbox.id, failure)

    async def _discard(self, entry: Entry, events: list[NewEvent]) -> None:
        """Undo everything a sandbox is, in whatever state of being made it is, the record last."""
        sandbox = entry.sandbox
        await self._end_machine(entry)
        crash_point("delete:killed")
        self._host.disk.discard(sandbox.id)
        self._discarded.set()
        crash_point("delete:discarded")
        self._events.announce(await self._forget(sandbox.id, events))
        crash_point("delete:forgotten")
        self._host.ranges.give_back(sandbox.range_start)
        self._entries.pop(sandbox.id, None)
        entry.settle()

    async def _forget(self, sandbox: str, events: list[NewEvent]) -> list[Event]:
        try:
            return await self._store.forget(sandbox, events)
        except Unavailable:
            # Its files are out of the way, but still there; without them there may be room for the record.
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                await trio.to_thread.run_sync(self._host.disk.purge)
            return await self._store.forget(sandbox, events)

    async def _end_machine(self, entry: Entry) -> None:
        """No process of the sandbox is left after this. Its empty cgroup goes with the discarded files."""
        if entry.running is not None:
            await entry.running.destroy()
            entry.running = None
        elif self._host.cgroups is not None:
            await end_cgroup(self._host.cgroups.sandbox(entry.sandbox.id))

    async def _move(self, entry: Entry, sandbox: Sandbox, state: SandboxState, events: list[NewEvent]) -> None:
        """The only place where a sandbox changes state: checked against the table, stored, then visible."""
        if state not in TRANSITIONS[entry.sandbox.state]:
            raise AssertionError(f"sandbox {sandbox.id} cannot go from {entry.sandbox.state} to {state}")
        moved = replace(sandbox, state=state)
        recorded = await self._store.save(moved, events)
        entry.sandbox = moved
        self._events.announce(recorded)

    # -- changing -------------------------------------------------------------------------------------------------

    async def delete(self, sandbox: str) -> None:
        """Returns when nothing of it is left but files on their way out. Raises: NotFound, SandboxLost."""
        entry = self.entry(sandbox)
        entry.ask_to_stop()
        await entry.settled.wait()
        if entry.failure is not None:
            raise entry.failure

    async def set_lifetime(self, sandbox: str, seconds: float | None) -> Sandbox:
        """Let it end `seconds` from now (None: never). Raises: NotFound, Conflict."""
        entry = self.entry(sandbox)
        entry.require_running()
        expires = None if seconds is None else time.time() + seconds
        entry.sandbox = replace(entry.sandbox, expires_at=expires)
        await self._store.save(entry.sandbox)
        entry.wake()
        return entry.sandbox

    # -- start-up and housekeeping --------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Find the sandboxes of an earlier daemon again, finish what it began, sweep what nobody knows."""
        records = await self._store.sandboxes()
        self._host.ranges.claim(record.range_start for record in records)
        await sweep(self._host, {record.id for record in records})
        self._discarded.set()
        for record in records:
            entry = Entry(sandbox=record)
            self._entries[record.id] = entry
            if record.state is SandboxState.RUNNING:
                entry.running = attach(self._host, record)
        for entry in self.entries():
            self._nursery.start_soon(self._resume, entry)

    async def _resume(self, entry: Entry) -> None:
        if entry.sandbox.state in {SandboxState.CREATING, SandboxState.DELETING}:
            await self._finish_interrupted(entry)
        elif entry.sandbox.state is SandboxState.RUNNING and entry.running is None:
            await self._note_exit(entry)
            await self._supervise(entry)
        else:
            await self._supervise(entry, found=True)

    async def _finish_interrupted(self, entry: Entry) -> None:
        """A creation nobody was told of, or a deletion somebody asked for: either way it ends gone."""
        entry.ask_to_stop()
        await self._host.backend.sweep({entry.sandbox.id})
        await self._delete(entry)

    async def purge_discarded(self) -> None:
        """A task of the service: remove what is left of deleted sandboxes, off the path of those who deleted them."""
        while True:
            await self._discarded.wait()
            await trio.sleep(PURGE_DELAY)
            self._discarded = trio.Event()
            try:
                await trio.to_thread.run_sync(self._purge)
            except (OSError, subprocess.CalledProcessError) as error:
                log.error("cannot remove what is left of deleted sandboxes: %s", error)

    def _purge(self) -> None:
        """In a thread. A cgroup without an entry is nobody's: entries are made before their cgroups."""
        self._host.disk.purge()
        cgroups = self._host.cgroups
        for name in cgroups.names() if cgroups else ():
            if cgroups and name not in self._entries:
                try:
                    cgroups.sandbox(name).kill()
                    cgroups.sandbox(name).remove()
                except OSError as error:
                    log.warning("cgroup of sandbox %s not removed yet: %s", name, error)
                    trio.from_thread.run_sync(self._discarded.set)

    async def warm_ranges(self) -> None:
        """A task of the service: keep a few user namespaces ready."""
        while True:
            self._range_taken = trio.Event()
            for start in self._host.ranges.upcoming(WARM_RANGES):
                try:
                    await self._host.backend.prepare(start)
                except LaunchFailed as error:
                    log.error("cannot prepare an id range: %s", error)
            await self._range_taken.wait()

    def release(self) -> None:
        """Let go of all machines without touching them: they outlive the daemon."""
        for entry in self.entries():
            if entry.running is not None:
                entry.running.close()


def _as_domain_error(failure: Exception, entry: Entry) -> SandboxdError:
    if isinstance(failure, SandboxdError):
        return failure
    if isinstance(failure, OSError) and failure.errno in {errno.ENOSPC, errno.EDQUOT}:
        return Unavailable("cannot create the sandbox: no space left in the state directory", kind="no_space")
    log.exception("creating sandbox %s failed", entry.sandbox.id, exc_info=failure)
    return LaunchFailed(f"cannot create sandbox {entry.sandbox.id}: {failure}")


async def _wake_at_end(entry: Entry, running: RunningMachine) -> None:
    await running.wait_ended()
    entry.wake()
