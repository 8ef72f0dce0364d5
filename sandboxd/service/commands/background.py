"""Commands in the background, and terminals: started, found, fed, read, ended; they outlive clients and daemons.

A command is recorded before it is started, and its id is its label in sandbox-init: so a daemon that dies at any
moment leaves nothing that the next one does not find. Its output is in a log on disk (log.py), written by its
follower (command_follower.py), which everybody reads at a pace of their own.
"""

import logging
import re
import secrets
import shlex
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Final
from weakref import WeakKeyDictionary

import trio

from sandboxd import clock
from sandboxd.config import SandboxConfig
from sandboxd.crashpoints import crash_point
from sandboxd.errors import Conflict, NotFound, SandboxdError, SandboxLost, Unprocessable
from sandboxd.isolation.init.client import Attachment, InitClient
from sandboxd.isolation.init.messages import Listed, StdinAck, StdinClosed
from sandboxd.isolation.init.wire import CommandState, Scope
from sandboxd.model import (
    CommandRecord,
    CommandSpec,
    CommandStatus,
    StdinAccepted,
    StreamName,
    TerminalSize,
)
from sandboxd.service.commands.attached import init_errors, oom_kills
from sandboxd.service.commands.follower import (
    Command,
    CommandFollower,
    kill_tree,
    machine,
    machine_id,
    moved,
    release,
)
from sandboxd.service.commands.log import LogPage
from sandboxd.service.commands.log_access import LogFiles
from sandboxd.service.sandboxes.entry import Entry
from sandboxd.service.storage.disk import Disk
from sandboxd.store import Store

log = logging.getLogger(__name__)

# Our commands' ids, among the labels that other parts of the service give.
_OURS: Final = re.compile(r"[cp][0-9a-f]{16}")
# Of a command, for those who list them.
MOST_SHOWN: Final = 4096
# How long a write waits for a command that does not read.
STDIN_PATIENCE: Final = 30.0
# For the end to be recorded, once the kill has been done.
KILL_PATIENCE: Final = 10.0
# Nobody announces the end of what nobody follows: of a machine that ends, or is deleted, under its readers.
UNFOLLOWED_CHECK: Final = 0.5


class CommandInput:
    """A connection to a command's stdin. Made by BackgroundCommands.stdin() only."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment

    async def send(self, data: bytes) -> None:
        """Returns when sandbox-init has room for it, not when the command has read it."""
        await self._attachment.send_stdin(data)

    async def accepted(self) -> StdinAccepted:
        """What the command has read since this connection was opened, each time it has read more."""
        while True:
            match await self._attachment.receive():
                case StdinAck(bytes=total):
                    return StdinAccepted(total)
                case StdinClosed():
                    return StdinAccepted(0, closed=True)


class BackgroundCommands:
    """Made by open_service() only. Every method that takes a command's id raises NotFound for an unknown one."""

    def __init__(self, store: Store, disk: Disk, config: SandboxConfig) -> None:
        self._store = store
        self._disk = disk
        self._kept = config.commands_kept
        self.logs = LogFiles()
        self._follower = CommandFollower(store, log_limit=config.command_log_bytes, threads=self.logs.threads)
        self._of: WeakKeyDictionary[Entry, dict[str, Command]] = WeakKeyDictionary()
        self._loaded: dict[str, dict[str, Command]] = {}

    # -- start-up -------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read what earlier daemons recorded; before any sandbox is found again."""
        for record in await self._store.commands():
            command = self._command(record, inherited=True)
            self._loaded.setdefault(record.sandbox, {})[record.id] = command

    async def resume(self, entry: Entry) -> None:
        """A resident of a sandbox's first machine under this daemon: follow again what runs, settle what does not.

        Of one that is paused, once it goes on. Only of what was started before: clients are starting more already.
        """
        paused_at = entry.sandbox.paused_at
        await entry.wait_awake()
        with init_errors(entry):
            listed = {_label(item): item for item in await machine(entry).init.commands() if item.label}
        book = self._book(entry)
        for command in [command for command in book.values() if command.inherited and not command.record.ended]:
            if paused_at is not None:
                await self._follower.put_off(command, clock.wall() - paused_at)
            if (found := listed.get(command.record.id)) is not None:
                entry.start_resident(self._follower.resume, entry, command, found)
            else:
                await self._settle_missing(book, command)
        for label, item in listed.items():
            if item.state is CommandState.ENDED and _OURS.fullmatch(label) and _is_done_with(book.get(label)):
                await release(entry, item.command)
        await self.logs.remove_others(self._disk.paths(entry.sandbox.id).commands, book)

    async def _settle_missing(self, book: dict[str, Command], command: Command) -> None:
        """sandbox-init knows nothing of it: it never started, or its machine is gone."""
        if command.record.status is CommandStatus.STARTING:
            await self._store.forget_commands([command.record.id])
            del book[command.record.id]
        else:
            await command.change(self._store, lambda record: moved(record, CommandStatus.LOST, ended_at=clock.wall()))
        command.wake()

    # -- starting -------------------------------------------------------------------------------------------------

    async def start(self, entry: Entry, spec: CommandSpec) -> CommandRecord:
        """Start a command; it runs until it ends, whoever leaves. Raises: Conflict, Unprocessable, SandboxLost.

        Cancelled: it may have been started, and is then in the list.
        """
        await entry.ready()
        book = self._book(entry)
        await self._make_room(entry, book)
        command = self._command(self._new_record(entry, spec))
        await self._store.save_command(command.record)
        crash_point("command:recorded")
        book[command.record.id] = command
        try:
            entry.start_resident(self._follower.start, entry, command, spec)
        except Conflict:
            await self._remove(entry, book, [command])
            raise
        await command.decided.wait()
        if command.record.status is CommandStatus.STARTING:
            await self._remove(entry, book, [command])
            raise command.failure or SandboxLost(f"cannot start the command: sandbox {entry.sandbox.id} has ended")
        return command.record

    def _new_record(self, entry: Entry, spec: CommandSpec) -> CommandRecord:
        now = clock.wall()
        return CommandRecord(
            id=("p" if spec.terminal else "c") + secrets.token_hex(8),
            sandbox=entry.sandbox.id,
            status=CommandStatus.STARTING,
            command=(spec.argv[0] if spec.shell else shlex.join(spec.argv))[:MOST_SHOWN],
            created_at=now,
            user=spec.user or entry.sandbox.spec.user,
            cwd=spec.cwd or entry.sandbox.spec.workdir,
            stdin=spec.stdin or spec.terminal is not None,
            terminal=spec.terminal,
            deadline=None if spec.timeout is None else now + spec.timeout,
            oom_kills=oom_kills(entry),
        )

    async def _make_room(self, entry: Entry, book: dict[str, Command]) -> None:
        """Forget the oldest ended commands beyond those that are kept."""
        ended = [command for command in book.values() if command.record.ended]
        if len(ended) >= self._kept:
            await self._remove(entry, book, ended[: len(ended) - self._kept + 1])

    async def _remove(self, entry: Entry, book: dict[str, Command], commands: list[Command]) -> None:
        for command in commands:
            book.pop(command.record.id, None)
        await self._store.forget_commands([command.record.id for command in commands])
        for command in commands:
            if command.record.survivors and self._is_on(entry, command):
                await release(entry, command.record.number)
            await self.logs.remove(command.directory)

    # -- asking ---------------------------------------------------------------------------------------------------

    def list(self, entry: Entry) -> list[CommandRecord]:
        """All that are remembered, oldest first."""
        return [self.record(entry, command) for command in self._book(entry).values()]

    def find(self, entry: Entry, command: str) -> Command:
        found = self._book(entry).get(command)
        if found is None:
            raise NotFound(
                f"cannot find command {command!r} in sandbox {entry.sandbox.id}: it does not exist, or ended so long "
                "ago that it was forgotten",
                command=command,
            )
        return found

    def record(self, entry: Entry, command: Command) -> CommandRecord:
        """As it is now: one whose machine is gone is lost, whether or not somebody could note it."""
        record = command.record
        if record.ended or command.followed or self._is_on(entry, command):
            return record
        return replace(record, status=CommandStatus.LOST, ended_at=entry.sandbox.ended_at)

    def _is_on(self, entry: Entry, command: Command) -> bool:
        """Its machine runs, and nobody wants it gone."""
        running = entry.running
        if running is None or entry.doomed or running.ended():
            return False
        return command.record.machine in {"", machine_id(running)}

    async def wait(self, entry: Entry, command: Command) -> CommandRecord:
        """Until it has ended."""
        with entry.in_use():
            while True:
                changed = command.changed
                if (record := self.record(entry, command)).ended:
                    return record
                await self._wait_for(command, changed)

    async def _wait_for(self, command: Command, changed: trio.Event) -> None:
        with trio.move_on_after(float("inf") if command.followed else UNFOLLOWED_CHECK):
            await changed.wait()

    # -- reading --------------------------------------------------------------------------------------------------

    async def follow(
        self, entry: Entry, command: Command, start: int, *, stream: StreamName | None = None
    ) -> AsyncGenerator[LogPage, None]:
        """What there is and what comes, until the command has ended and all is read. Close it when done."""
        with entry.in_use():
            while True:
                changed, ended = command.changed, self.record(entry, command).ended  # first: so it misses nothing
                page = await self.logs.read(command.directory, start, stream=stream)
                start = page.next
                if page.items:
                    yield page
                elif ended:
                    return
                else:
                    await self._wait_for(command, changed)

    # -- acting ---------------------------------------------------------------------------------------------------

    async def signal(self, entry: Entry, command: Command, number: int, scope: Scope) -> None:
        """Raises: Conflict once it has ended, or while its machine cannot be used."""
        init = await self._init(entry, command)
        with _command_errors(command), init_errors(entry):
            await init.signal(command.record.number, number, scope=scope)

    async def kill(self, entry: Entry, command: Command) -> CommandRecord:
        """SIGKILL it and all it started, what outlived it too. Fine to repeat. The record, with its end if it can."""
        record = self.record(entry, command)
        if record.ended and not (record.survivors and self._is_on(entry, command)):
            return record
        await entry.ready()
        await kill_tree(entry, record.number)
        if record.ended:
            await self._note_survivors_gone(entry, command)
        else:
            with trio.move_on_after(KILL_PATIENCE):
                await self.wait(entry, command)
        return self.record(entry, command)

    async def _note_survivors_gone(self, entry: Entry, command: Command) -> None:
        await command.change(self._store, lambda record: replace(record, survivors=False))
        await release(entry, command.record.number)

    async def resize(self, entry: Entry, command: Command, size: TerminalSize) -> None:
        """Raises: Unprocessable for a command without a terminal, Conflict."""
        init = await self._init(entry, command)
        with _command_errors(command), init_errors(entry):
            await init.resize(command.record.number, size)
        await command.change(self._store, lambda record: replace(record, terminal=size))

    async def write_stdin(self, entry: Entry, command: Command, data: bytes) -> StdinAccepted:
        """Returns when the command has taken it all, closed its stdin, or not read on for STDIN_PATIENCE s."""
        async with self._stdin(entry, command) as attachment:
            closed = False
            with trio.move_on_after(STDIN_PATIENCE):
                closed = not await attachment.feed(data)
            return StdinAccepted(attachment.taken, closed=closed)

    @asynccontextmanager
    async def stdin(self, entry: Entry, command: Command) -> AsyncIterator["CommandInput"]:
        """A connection to a command's stdin. Raises: Conflict, Unprocessable."""
        async with self._stdin(entry, command) as attachment:
            yield CommandInput(attachment)

    @asynccontextmanager
    async def _stdin(self, entry: Entry, command: Command) -> AsyncIterator[Attachment]:
        if not command.record.stdin:
            raise Unprocessable(
                f"cannot write to command {command.record.id}: it was started without stdin", kind="no_stdin"
            )
        init = await self._init(entry, command)
        with entry.in_use(), _command_errors(command), init_errors(entry):
            async with init.stdin(command.record.number) as attachment:
                yield attachment

    async def close_stdin(self, entry: Entry, command: Command) -> None:
        """The command reads to the end of what it was sent; to a terminal, its end-of-file character is typed."""
        init = await self._init(entry, command)
        with _command_errors(command), init_errors(entry):
            await init.close_stdin(command.record.number)

    async def _init(self, entry: Entry, command: Command) -> InitClient:
        """Raises: Conflict naming what is in the way."""
        running = await entry.ready()
        if (record := self.record(entry, command)).ended:
            raise _has_ended(record)
        return running.init

    # -- the books ------------------------------------------------------------------------------------------------

    def _book(self, entry: Entry) -> dict[str, Command]:
        """Of one sandbox; by id, oldest first."""
        book = self._of.get(entry)
        if book is None:
            book = self._of[entry] = self._loaded.pop(entry.sandbox.id, {})
        return book

    def _command(self, record: CommandRecord, *, inherited: bool = False) -> Command:
        return Command(record, self._disk.paths(record.sandbox).commands / record.id, inherited=inherited)


def _label(item: Listed) -> str:
    return item.label.decode("ascii", "replace")


def _is_done_with(command: Command | None) -> bool:
    """Nobody will ask sandbox-init for it any more."""
    return command is None or (command.record.ended and not command.record.survivors)


def _has_ended(record: CommandRecord) -> Conflict:
    return Conflict(f"cannot do that to command {record.id}: it has ended", kind="ended", status=record.status)


@contextmanager
def _command_errors(command: Command) -> Iterator[None]:
    try:
        yield
    except SandboxdError as error:
        if error.kind in {"unknown", "ended"}:
            raise _has_ended(command.record) from error
        raise
