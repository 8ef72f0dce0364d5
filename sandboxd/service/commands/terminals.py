"""Terminals: background commands with a terminal, shared by many clients, of whom one at a time writes.

What a terminal shows is read from its log, by each client at its own pace; who writes is decided here. The pollers of
a terminal share one cursor, which is kept beside its log.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import trio

from sandboxd.errors import NotFound
from sandboxd.model import CommandRecord, CommandSpec, OutputChunk, StreamName
from sandboxd.service.commands.background import BackgroundCommands
from sandboxd.service.commands.follower import Command
from sandboxd.service.commands.pace import Pace
from sandboxd.service.sandboxes.entry import Entry
from sandboxd.threads import run_in_thread

# `$0` is the shell that runs this: the best one the image has.
LOGIN_SHELL = 'exec "$0" -l'
_CURSOR_FILE = "drained"


class Seat:
    """A client's place at a terminal."""

    def __init__(self) -> None:
        self.sent: int | None = None
        """offset in the output before which it has been sent everything; None while it is still shown the past"""
        self.taken_over = trio.Event()
        """set, and replaced, when another client has become the writer in its place"""


class Seats:
    """Who sits at one terminal, and which of them writes, whose pace the terminal keeps."""

    def __init__(self, pace: Pace) -> None:
        self.writer: Seat | None = None
        self._pace = pace

    def take(self, seat: Seat) -> None:
        """Become the writer, whoever it was."""
        former, self.writer = self.writer, seat
        self._pace.lead(seat.sent)
        if former is not None and former is not seat:
            former.taken_over.set()
            former.taken_over = trio.Event()

    def take_if_free(self, seat: Seat) -> None:
        if self.writer is None:
            self.take(seat)

    def leave(self, seat: Seat) -> None:
        if self.writer is seat:
            self.writer = None
            self._pace.lead(None)

    def note_sent(self, seat: Seat, sent: int) -> None:
        """Everything before that offset in the output has been sent to the client."""
        seat.sent = sent
        if self.writer is seat:
            self._pace.lead(sent)


@dataclass(frozen=True, slots=True)
class Drained:
    """What a terminal has shown since the last one asked."""

    data: bytes
    lost: int
    """bytes before it that are not kept"""
    record: CommandRecord
    more: bool
    """there is more already, or will be"""


class Terminals:
    """Made by open_service() only."""

    def __init__(self, background: BackgroundCommands) -> None:
        self._background = background
        self._seats: WeakKeyDictionary[Command, Seats] = WeakKeyDictionary()
        self._draining: WeakKeyDictionary[Command, trio.Lock] = WeakKeyDictionary()

    async def start(self, entry: Entry, spec: CommandSpec) -> CommandRecord:
        """As BackgroundCommands.start, of a spec with a terminal."""
        assert spec.terminal is not None
        return await self._background.start(entry, spec)

    def list(self, entry: Entry) -> list[CommandRecord]:
        return [record for record in self._background.list(entry) if record.terminal is not None]

    def find(self, entry: Entry, terminal: str) -> Command:
        """Raises: NotFound."""
        command = self._background.find(entry, terminal)
        if command.record.terminal is None:
            raise NotFound(f"cannot find terminal {terminal!r}: that command has none", command=terminal)
        return command

    def seats(self, command: Command) -> Seats:
        return self._seats.setdefault(command, Seats(command.pace))

    async def drain(self, entry: Entry, command: Command, *, limit: int, patience: float) -> Drained:
        """What nobody has drained yet, at most `limit` bytes; if there is nothing, wait for it so many seconds.

        It counts as drained once it is read: a client that is cut off before the answer does not get it again.
        """
        with trio.move_on_after(patience):
            with entry.in_use():
                await self._wait_for_output(entry, command)
        async with self._draining.setdefault(command, trio.Lock()):
            record = self._background.record(entry, command)  # before the read: of one that has ended, that reads all
            start = await run_in_thread(_load_cursor, command.directory)
            page = await self._background.logs.read(command.directory, start, limit=limit, stream=StreamName.STDOUT)
            if page.items:
                await run_in_thread(_save_cursor, command.directory, page.next)
        data = b"".join(item.data for item in page.items if isinstance(item, OutputChunk))
        return Drained(data, page.lost, record, more=not record.ended or len(data) >= limit)

    async def _wait_for_output(self, entry: Entry, command: Command) -> None:
        start = await run_in_thread(_load_cursor, command.directory)
        while True:
            changed, ended = command.changed, self._background.record(entry, command).ended
            _, offsets = await self._background.logs.end(command.directory)
            if ended or offsets[StreamName.STDOUT] > start:
                return
            await changed.wait()


def _load_cursor(directory: Path) -> int:
    try:
        return int((directory / _CURSOR_FILE).read_bytes() or b"0")
    except (FileNotFoundError, ValueError):
        return 0


def _save_cursor(directory: Path, cursor: int) -> None:
    """In one write of one size, so that whoever is killed leaves the old or the new."""
    descriptor = os.open(directory / _CURSOR_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(descriptor, b"%020d" % cursor, 0)
    finally:
        os.close(descriptor)
