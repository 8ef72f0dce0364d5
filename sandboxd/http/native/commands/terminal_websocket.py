"""A terminal over a websocket: replay, what comes, input from the one client that writes. The manual (terminals)
has the messages.

Each client reads the log at its own pace, so a slow one holds back nobody; one so slow that what it should read next
has been pruned is told of the gap. However the conversation ends, the terminal goes on.
"""

from contextlib import aclosing

import trio

from sandboxd.errors import Conflict, SandboxLost
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.errors import Close
from sandboxd.http.kit.validation import validate_one_of
from sandboxd.http.kit.websockets import WebsocketSession, websocket_session
from sandboxd.http.native.commands.background import end_facts
from sandboxd.http.native.commands.interactive import Interactive
from sandboxd.http.native.commands.terminals import (
    DEFAULT_TAIL,
    PTY_MESSAGES,
    AttachPty,
    PtyPlain,
    PtyResize,
    PtySignal,
    find,
)
from sandboxd.http.native.errors import ErrorBody
from sandboxd.http.native.websockets import first_message
from sandboxd.model import CommandRecord, CommandStatus, OutputChunk, StreamName, TerminalSize
from sandboxd.service.commands.attached import SIGNAL_SCOPES
from sandboxd.service.commands.background import BackgroundCommands, CommandInput
from sandboxd.service.commands.follower import Command
from sandboxd.service.commands.terminals import Seat, Seats
from sandboxd.service.sandboxes.entry import Entry

TAKEN_OVER = Close(4409, "another client has taken over")


async def attach(call: Call, pty: str) -> None:
    async with websocket_session(call.conversation) as client:
        wish = await first_message(call, client, AttachPty)
        entry, command = find(call, pty)
        seats = call.service.terminals.seats(command)
        await _Client(client, call.service.background, entry, command, seats).converse(wish)


class _Client(Interactive):
    """One client at a terminal."""

    def __init__(
        self,
        session: WebsocketSession,
        background: BackgroundCommands,
        entry: Entry,
        command: Command,
        seats: Seats,
    ) -> None:
        super().__init__(session)
        self._background = background
        self._entry = entry
        self._command = command
        self._seats = seats
        self._seat = Seat()

    async def converse(self, wish: AttachPty) -> None:
        """Until the terminal has ended, the client has left, or another has taken its place."""
        offset, end = await self._place(wish)
        if wish.write == "take":
            self._seats.take(self._seat)
        elif wish.write == "if_free":
            self._seats.take_if_free(self._seat)
        try:
            await self._greet(offset, end)
            if wish.size is not None and self._writes and not self._record.ended:
                await self._background.resize(self._entry, self._command, wish.size.to_domain())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.obey, nursery.cancel_scope)
                nursery.start_soon(self._notice_take_over, wish.on_take_over == "close", nursery.cancel_scope)
                nursery.start_soon(self._feed)
                await self._report(offset, end)
                nursery.cancel_scope.cancel("the terminal ended")
        finally:
            self._seats.leave(self._seat)

    async def _place(self, wish: AttachPty) -> tuple[int, int]:
        """Where to begin, and where what is there already ends."""
        _, offsets = await self._background.logs.end(self._command.directory)
        end = offsets[StreamName.STDOUT]
        tail = DEFAULT_TAIL if wish.tail is None else wish.tail
        return (max(0, end - tail) if wish.offset is None else wish.offset), end

    @property
    def _writes(self) -> bool:
        return self._seats.writer is self._seat

    @property
    def _record(self) -> CommandRecord:
        return self._background.record(self._entry, self._command)

    # -- out ------------------------------------------------------------------------------------------------------

    async def _greet(self, offset: int, end: int) -> None:
        record = self._record
        size = record.terminal or TerminalSize()
        await self._say(
            "attached",
            pty_id=record.id,
            pid=record.pid,
            status=record.status,
            writer=self._writes,
            offset=offset,
            end=end,
            size={"cols": size.cols, "rows": size.rows},
        )

    async def _report(self, offset: int, past: int) -> None:
        """What comes from there on, the past first, until the terminal has ended."""
        self._note_sent(offset, past)
        follow = self._background.follow(self._entry, self._command, offset, stream=StreamName.STDOUT)
        async with aclosing(follow) as pages:
            async for page in pages:
                for item in page.items:
                    if isinstance(item, OutputChunk):
                        await self._session.send(b"\x01" + item.data)
                        offset += len(item.data)
                    else:
                        offset += item.lost
                        await self._say("gap", stream="stdout", lost_bytes=item.lost, offset=offset)
                    self._note_sent(offset, past)
        record = self._record
        if record.status is CommandStatus.LOST:
            raise SandboxLost(f"cannot follow terminal {record.id} any more: its machine has ended")
        await self._say("exit", status=record.status, **end_facts(record))

    def _note_sent(self, offset: int, past: int) -> None:
        """The program does not wait while the past is sent, of which there may be much."""
        if offset >= past:
            self._seats.note_sent(self._seat, offset)

    async def _notice_take_over(self, close: bool, everything: trio.CancelScope) -> None:
        while True:
            await self._seat.taken_over.wait()
            await self._say("writer", writer=False, reason="taken_over")
            if close:
                await self._session.close(TAKEN_OVER)
                everything.cancel("taken over")

    # -- in -------------------------------------------------------------------------------------------------------

    async def _hear(self, message: str | bytes) -> None:
        try:
            if isinstance(message, bytes):
                self._require_writer("type into")
            await super()._hear(message)
        except Conflict as refusal:
            await self._say("refused", **ErrorBody.of(refusal).model_dump(mode="json"))

    async def _control(self, message: str) -> None:
        match validate_one_of(PTY_MESSAGES, message):
            case PtyResize() as resize:
                self._require_writer("resize")
                await self._background.resize(self._entry, self._command, resize.to_domain())
            case PtySignal() as asked:
                self._require_writer("signal")
                scope = SIGNAL_SCOPES[asked.scope]
                await self._background.signal(self._entry, self._command, asked.number(), scope)
            case PtyPlain(type="kill"):
                self._require_writer("kill")
                await self._background.kill(self._entry, self._command)
            case PtyPlain(type="take_over"):
                self._seats.take(self._seat)
                await self._say("writer", writer=True)
            case PtyPlain():
                self._seats.leave(self._seat)
                await self._say("writer", writer=False, reason="released")

    def _require_writer(self, what: str) -> None:
        if not self._writes:
            raise Conflict(
                f"cannot {what} terminal {self._command.record.id}: another client writes; send take_over",
                kind="not_writer",
            )

    async def _feed(self) -> None:
        """What was typed, in order, as fast as the terminal takes it."""
        first = await self._typed.receive()
        try:
            async with (
                self._background.stdin(self._entry, self._command) as stdin,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(self._acknowledge_all, stdin)
                await stdin.send(first or b"")
                async for data in self._typed:
                    await stdin.send(data or b"")
        except Conflict:
            pass  # it has just ended, as the client will hear

    async def _acknowledge_all(self, stdin: CommandInput) -> None:
        while True:
            await self._acknowledge(await stdin.accepted())
