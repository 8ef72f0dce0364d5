"""The task beside each background command: starts it, writes its output to its log, records how it ended.

It is attached lossless, so as long as the daemon runs no output is lost, and what slows the command down is at most
our disk, or, in a terminal, the client that types (pace.py). While no daemon runs, sandbox-init keeps the newest
output in a ring; the next follower goes on from where the log ends. A command's end is recorded before sandbox-init
is told to forget it.
"""

import contextlib
import logging
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from sandboxd import clock
from sandboxd.crashpoints import crash_point
from sandboxd.errors import SandboxdError, SandboxLost, Unavailable
from sandboxd.isolation.backend import RunningMachine
from sandboxd.isolation.init.client import Attachment, InitError
from sandboxd.isolation.init.messages import Exited, Listed
from sandboxd.isolation.init.wire import DEFAULT_RING, Flag, Output, Scope
from sandboxd.model import (
    COMMAND_TRANSITIONS,
    CommandRecord,
    CommandSpec,
    CommandStatus,
    OutputChunk,
    StreamName,
)
from sandboxd.service.commands.attached import (
    STREAMS,
    beside,
    command_exited,
    init_errors,
    oom_kills,
    spawn,
    spawn_request,
)
from sandboxd.service.commands.log import LogWriter
from sandboxd.service.commands.pace import Pace
from sandboxd.service.sandboxes.entry import Entry
from sandboxd.store import Store
from sandboxd.threads import run_in_thread

log = logging.getLogger(__name__)

# A wall clock may be set while we wait for a deadline, so look at it at least this often.
CLOCK_CHECK = 30.0
KILL_RETRY = 1.0


class Command:
    """One background command, as its clients share it. Its follower changes it; everyone else reads."""

    def __init__(self, record: CommandRecord, directory: Path, *, inherited: bool = False) -> None:
        self.record = record
        self.inherited = inherited
        """an earlier daemon has started it"""
        self.directory = directory
        """of its log"""
        self.followed = False
        self.decided = trio.Event()
        """it has started, or it is known that it will not: `failure`"""
        self.failure: SandboxdError | None = None
        self._changing = trio.Lock()
        self.changed = trio.Event()
        """set, and replaced, when there is output, or an end"""
        self.pace = Pace()
        """which a terminal's output keeps"""

    async def change(self, store: Store, change: Callable[[CommandRecord], CommandRecord]) -> None:
        """Change its record: stored, then visible; one change after the other. Raises: Unavailable, but visible then.

        The store alone would keep their order, but not keep one from being made of what another has just replaced.
        """
        async with self._changing:
            changed = change(self.record)
            try:
                await store.save_command(changed)
            finally:
                self.record = changed
                self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


def moved(record: CommandRecord, status: CommandStatus, **changes: Any) -> CommandRecord:
    """The record in another state. Raises: AssertionError for a step that is not in the table."""
    if status not in COMMAND_TRANSITIONS[record.status]:
        raise AssertionError(f"command {record.id} cannot go from {record.status} to {status}")
    return replace(record, status=status, **changes)


def machine(entry: Entry) -> RunningMachine:
    """Whatever is done to the sandbox meanwhile: what follows its commands goes on. Raises: SandboxLost."""
    if entry.running is None:
        raise SandboxLost(f"cannot go on: the machine of sandbox {entry.sandbox.id} has ended")
    return entry.running


def machine_id(running: RunningMachine) -> str:
    return running.machine.name


class CommandFollower:
    """Its two tasks, start() and resume(), are residents of an entry.

    Cancelled: the command runs on, and whoever follows it next begins where the log ends.
    """

    def __init__(self, store: Store, *, log_limit: int, threads: trio.CapacityLimiter) -> None:
        self._store = store
        self._log_limit = log_limit
        self._threads = threads

    async def start(self, entry: Entry, command: Command, spec: CommandSpec) -> None:
        """Start a command that is recorded as STARTING, and stay with it. The caller awaits `decided`."""
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(_leave, command)
            try:
                attachment = await self._spawn(stack, entry, command, spec)
            except SandboxdError as failure:
                command.failure = failure
                return
            command.decided.set()
            await command.change(self._store, lambda record: record)
            crash_point("command:confirmed")
            await self._follow(entry, command, attachment, self._writer(command))

    async def _spawn(
        self, stack: contextlib.AsyncExitStack, entry: Entry, command: Command, spec: CommandSpec
    ) -> Attachment:
        running = machine(entry)
        request = spawn_request(entry, spec, label=command.record.id.encode(), ring_size=DEFAULT_RING)
        began = math.floor(clock.wall() * 1000) / 1000  # whole milliseconds, as sandbox-init tells the end
        with init_errors(entry):
            attachment = await spawn(stack, running.init, request, shell=spec.shell)
        crash_point("command:spawned")
        self._note_started(command, running, attachment.command, attachment.pid or 0, began)
        return attachment

    async def resume(self, entry: Entry, command: Command, listed: Listed) -> None:
        """Follow a command again that an earlier daemon started: it runs, or ended while nobody looked."""
        running = machine(entry)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(_leave, command)
            writer = await run_in_thread(self._writer, command, limiter=self._threads)
            self._note_started(command, running, listed.command, listed.pid, listed.started_at_ms / 1000)
            await command.change(self._store, lambda record: record)
            with init_errors(entry):
                attachment = await stack.enter_async_context(
                    running.init.attach(
                        listed.command,
                        stdout_from=writer.offsets[StreamName.STDOUT],
                        stderr_from=writer.offsets[StreamName.STDERR],
                        lossless=True,
                    )
                )
            await self._follow(entry, command, attachment, writer)

    def _note_started(
        self, command: Command, running: RunningMachine, number: int, pid: int, started_at: float
    ) -> None:
        known = command.record if command.record.status is CommandStatus.RUNNING else None
        record = known or moved(command.record, CommandStatus.RUNNING, started_at=started_at)
        command.record = replace(record, number=number, pid=pid, machine=machine_id(running))
        command.followed = True
        command.wake()

    async def _follow(self, entry: Entry, command: Command, attachment: Attachment, writer: LogWriter) -> None:
        try:
            with writer:
                async with contextlib.AsyncExitStack() as stack:
                    if command.record.deadline is not None:
                        await stack.enter_async_context(beside(self._kill_at_deadline, entry, command))
                    message = await self._copy_output(entry, command, attachment, writer)
        except SandboxLost:
            await self._record_end(command, CommandStatus.LOST, ended_at=clock.wall())
        else:
            await self._conclude(entry, command, message, unlogged=_unlogged(message, writer))

    async def _copy_output(self, entry: Entry, command: Command, attachment: Attachment, writer: LogWriter) -> Exited:
        """All output to the log, until the end."""
        complained = False
        while True:
            with init_errors(entry):
                events = await attachment.receive_all()
            chunks = [OutputChunk(STREAMS[e.stream], e.offset, e.data) for e in events if isinstance(e, Output)]
            if chunks:
                complained = await self._append(writer, chunks, complained=complained)
                crash_point("command:logged")
                command.wake()
            if isinstance(last := events[-1], Exited):
                return last
            if chunks and command.record.terminal is not None:
                await command.pace.keep(chunks[-1].offset + len(chunks[-1].data))

    async def _append(self, writer: LogWriter, chunks: list[OutputChunk], *, complained: bool) -> bool:
        """What the disk does not take is a gap in the log: no reason to hold the command up. Whether it was said."""
        try:
            await run_in_thread(writer.append, chunks, limiter=self._threads)
        except OSError as error:
            if not complained:
                log.error("output of a command is not kept: %s", error)
            return True
        return complained

    async def _conclude(self, entry: Entry, command: Command, message: Exited, *, unlogged: int) -> None:
        record, ended_at = command.record, message.ended_at_ms / 1000
        exited = command_exited(
            message,
            timed_out=message.exit_signal == signal.SIGKILL and ended_at >= (record.deadline or float("inf")),
            oom_killed=oom_kills(entry) > record.oom_kills,
        )
        status = CommandStatus.EXITED if message.exit_signal is None else CommandStatus.KILLED
        survivors = Flag.SURVIVORS in message.flags
        recorded = await self._record_end(
            command, status, ended_at=ended_at, exited=exited, unlogged=unlogged, survivors=survivors
        )
        crash_point("command:ended")
        if recorded and not survivors:
            with contextlib.suppress(SandboxLost):  # it ends in this moment, and forgets all
                await release(entry, command.record.number)
            crash_point("command:released")

    async def _record_end(self, command: Command, status: CommandStatus, **facts: Any) -> bool:
        """Whether it could be recorded; if not, the next daemon finds the same end and records it then."""
        try:
            await command.change(self._store, lambda record: moved(record, status, **facts))
        except Unavailable as failure:
            log.error("the end of command %s could not be recorded: %s", command.record.id, failure)
            return False
        return True

    async def _kill_at_deadline(self, entry: Entry, command: Command) -> None:
        await self._wait_for_deadline(entry, command)
        while True:
            try:
                await kill_tree(entry, command.record.number)
            except SandboxdError as failure:
                log.warning("command %s of %s: %s", command.record.id, entry.sandbox.id, failure)
            await trio.sleep(KILL_RETRY)

    async def _wait_for_deadline(self, entry: Entry, command: Command) -> None:
        """Until then by the wall clock; a pause of the sandbox puts it off by as long as it took."""
        while (deadline := command.record.deadline) is not None:
            if (paused_at := entry.sandbox.paused_at) is not None:
                await entry.wait_awake()
                await self.put_off(command, clock.wall() - paused_at)
            elif (remaining := deadline - clock.wall()) <= 0:
                return
            else:
                with trio.move_on_after(min(remaining, CLOCK_CHECK)):
                    await entry.changed.wait()

    async def put_off(self, command: Command, seconds: float) -> None:
        """Move its deadline, if it has one; a clock that was set back does not bring it nearer."""

        def later(record: CommandRecord) -> CommandRecord:
            deadline = record.deadline
            return record if deadline is None else replace(record, deadline=deadline + max(0.0, seconds))

        try:
            await command.change(self._store, later)
        except Unavailable as failure:  # it holds for as long as this daemon runs
            log.error("the new deadline of command %s could not be recorded: %s", command.record.id, failure)

    def _writer(self, command: Command) -> LogWriter:
        return LogWriter(command.directory, limit=self._log_limit)


def _leave(command: Command) -> None:
    command.followed = False
    command.decided.set()
    command.wake()


def _unlogged(message: Exited, writer: LogWriter) -> int:
    return max(0, message.stdout_total + message.stderr_total - writer.position)


async def kill_tree(entry: Entry, number: int) -> None:
    """SIGKILL a command and everything it started; returns when all are dead. Fine if it has ended."""
    with init_errors(entry):
        try:
            await machine(entry).init.signal(number, signal.SIGKILL, scope=Scope.TREE)
        except InitError as error:
            if error.kind not in {"unknown", "ended"}:
                raise


async def release(entry: Entry, number: int) -> None:
    """Let sandbox-init forget an ended command."""
    with init_errors(entry):
        try:
            await machine(entry).init.release(number)
        except InitError as error:
            if error.kind != "unknown":
                raise
