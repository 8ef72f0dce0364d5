"""The daemon's side of sandbox-init: one connection for each operation under way, over trio.

Nothing here waits on a clock: callers use cancel scopes. Cancelling any call closes its connection at once; what
that means to a command is said in `Attachment`. Errors:

    InitError    init understood and refused, or the operation failed; carries errno, kind, message
    InitGone     no init answers any more: the sandbox has ended
    WireError    what answers is not an init
    ValueError   the request cannot be said in the protocol: a NUL character, a relative path, too many bytes
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from sandboxd.isolation.init.connection import Connection, error_of
from sandboxd.isolation.init.connection import InitError as InitError
from sandboxd.isolation.init.connection import InitGone as InitGone
from sandboxd.isolation.init.files import FileOperations
from sandboxd.isolation.init.messages import (
    Exited,
    Gap,
    Listed,
    ResourceLimit,
    Started,
    StdinAck,
    StdinClosed,
    Welcome,
    encode_fields,
)
from sandboxd.isolation.init.ports import PortOperations
from sandboxd.isolation.init.watches import WatchOperations
from sandboxd.isolation.init.wire import (
    DEFAULT_LINGER_MS,
    DEFAULT_RING,
    MAX_COMMANDS,
    MAX_DATA,
    PROTOCOL_VERSION,
    STDIN_WINDOW,
    Flag,
    Frame,
    Op,
    Output,
    Scope,
    StdinMode,
    Tag,
    WireError,
    decode_output,
    encode_frame,
)
from sandboxd.model import TerminalSize


@dataclass(frozen=True, slots=True, kw_only=True)
class SpawnRequest:
    """A command to start. An empty `cwd` is the user's home, an empty `user` is root.

    PATH, HOME, USER, LOGNAME, SHELL and, for terminals, TERM are added where `env` lacks them. With `terminal`, stdin
    and all output go through it, and output comes as stdout. `label` (at most 256 bytes) is given back by
    `commands()`. `linger_ms` is how long output that a surviving process holds open must be silent before the exit is
    reported.
    """

    argv: Sequence[str | bytes]
    env: Mapping[str, str] | None = None
    cwd: str | bytes = ""
    user: str = ""
    stdin: StdinMode = StdinMode.NULL
    terminal: TerminalSize | None = None
    rlimits: Sequence[ResourceLimit] = ()
    ring_size: int = DEFAULT_RING
    linger_ms: int = DEFAULT_LINGER_MS
    label: bytes = b""
    program_lookup: bool = True

    def encode(self, *, attach: bool, lossless: bool, keep: bool = False) -> bytes:
        """The SPAWN frame. Raises ValueError for strings with NUL, or when it is larger than a frame may be."""
        flags = Flag(0)
        for flag, wanted in (
            (Flag.ATTACH, attach),
            (Flag.LOSSLESS, lossless),
            (Flag.PROGRAM_LOOKUP, self.program_lookup),
            (Flag.KEEP, keep),
        ):
            flags |= flag if wanted else 0
        return encode_fields(
            Op.SPAWN,
            {
                Tag.ARG: self.argv,
                Tag.ENV: [f"{name}={value}" for name, value in (self.env or {}).items()],
                Tag.CWD: self.cwd,
                Tag.USER: self.user,
                Tag.STDIN_MODE: self.stdin,
                Tag.COLS: self.terminal and self.terminal.cols,
                Tag.ROWS: self.terminal and self.terminal.rows,
                Tag.RLIMIT: self.rlimits,
                Tag.RING_SIZE: self.ring_size,
                Tag.LINGER_MS: self.linger_ms,
                Tag.LABEL: self.label,
                Tag.FLAGS: flags,
            },
        )


Event = Output | Gap | Exited | StdinAck | StdinClosed


class Attachment:
    """A connection that follows a command and feeds its stdin.

    One task receives; others may send. Losing the connection leaves the command running, its stdin open and its
    output collected: attach again. `send_stdin` waits for credit, which arrives through `receive`, so somebody has
    to be receiving while much is sent.
    """

    def __init__(self, connection: Connection, command: int, pid: int | None) -> None:
        self._connection = connection
        self.command = command
        self.pid = pid
        self._sent = 0
        self._taken = 0
        self._stdin_closed = False
        self._waiting_for_credit = trio.lowlevel.ParkingLot()
        self._sending = trio.Lock()

    async def receive(self) -> Event:
        """The next event. `Exited` is the last; all output comes before it. After it: InitGone."""
        if self._connection.kept:
            raise InitGone("cannot receive from sandbox-init: the command has ended")
        return self._note(_event_of(await self._connection.receive()))

    async def receive_all(self) -> list[Event]:
        """The events that have arrived, at least one."""
        return [self._note(_event_of(frame)) for frame in await self._connection.receive_all()]

    def _note(self, event: Event) -> Event:
        if isinstance(event, StdinAck):
            self._note_taken(event.bytes)
        elif isinstance(event, StdinClosed | Exited):
            self._stdin_closed = True
            self._waiting_for_credit.unpark_all()
        if isinstance(event, Exited):
            self._connection.kept = Flag.KEEP in event.flags
        return event

    async def send_stdin(self, data: bytes) -> None:
        """Send bytes to the command's stdin, as fast as it takes them. Dropped once that is closed."""
        async with self._sending:
            view = memoryview(data)
            while view and not self._stdin_closed:
                if self._has_credit():
                    await self._send_part(view[:MAX_DATA])
                    view = view[MAX_DATA:]
                else:
                    await self._waiting_for_credit.park()

    async def feed(self, data: bytes) -> bool:
        """Send and receive in turn until everything is taken, or False: stdin is closed. Drops all other events."""
        view = memoryview(data)
        while view or self._taken < self._sent:
            if view and self._has_credit():
                await self._send_part(view[:MAX_DATA])
                view = view[MAX_DATA:]
            elif isinstance(await self.receive(), StdinClosed):
                return False
        return True

    async def close_stdin(self) -> None:
        """After all that was sent. On a terminal this types its end-of-file character."""
        async with self._sending:
            await self._send(encode_frame(Op.STDIN_EOF))

    async def resize(self, size: TerminalSize) -> None:
        async with self._sending:
            await self._send(encode_fields(Op.RESIZE, {Tag.COLS: size.cols, Tag.ROWS: size.rows}))

    async def signal(self, signo: int, *, scope: Scope = Scope.LEADER) -> None:
        """Best effort, behind stdin that still waits; `InitClient.signal` overtakes and reports."""
        async with self._sending:
            await self._send(encode_fields(Op.SIGNAL, {Tag.SIGNO: signo, Tag.SCOPE: scope}))

    @property
    def taken(self) -> int:
        """Bytes that the command's stdin has taken."""
        return self._taken

    def _has_credit(self) -> bool:
        return self._sent - self._taken <= STDIN_WINDOW - MAX_DATA

    async def _send_part(self, part: memoryview) -> None:
        # Counted first: the acknowledgement may be received before the send returns.
        self._sent += len(part)
        await self._send(encode_frame(Op.STDIN, bytes(part)))

    async def _send(self, data: bytes) -> None:
        # init closes after EXITED: a sender that has not heard yet is no error, and receive() tells the truth.
        try:
            await self._connection.send(data)
        except InitGone:
            self._stdin_closed = True

    def _note_taken(self, total: int) -> None:
        if not self._taken <= total <= self._sent:
            raise WireError(f"cannot believe that {total} bytes of {self._sent} were taken")
        self._taken = total
        self._waiting_for_credit.unpark_all()


_EVENTS: Final[Mapping[Op, type[Gap | Exited | StdinAck | StdinClosed]]] = {
    kind.OP: kind for kind in (Gap, Exited, StdinAck, StdinClosed)
}


def _event_of(frame: Frame) -> Event:
    if frame.op is Op.OUTPUT:
        return decode_output(frame.payload)
    if frame.op is Op.ERROR:
        raise error_of(frame)
    kind = _EVENTS.get(frame.op)
    if kind is None:
        raise WireError(f"cannot go on: {frame.op.name} from a command")
    return kind.decode(frame.payload)


class InitClient(FileOperations, PortOperations, WatchOperations):
    """Operations of the sandbox whose init listens at a socket."""

    async def hello(self, *, keep: bool = False) -> Welcome:
        """Who answers. `keep`: a first command is to come soon, and it is an init of this version of sandboxd.

        Raises WireError when it speaks another version of the protocol.
        """
        opened = self._open_kept(encode_fields(Op.HELLO, {Tag.FLAGS: Flag.KEEP})) if keep else None
        async with opened or self._open(encode_frame(Op.HELLO)) as connection:
            welcome = await connection.expect(Welcome)
            connection.kept = Flag.KEEP in welcome.flags
        if welcome.version != PROTOCOL_VERSION:
            raise WireError(f"cannot speak version {welcome.version} of the protocol: only {PROTOCOL_VERSION}")
        return welcome

    async def shutdown(self, *, grace_ms: int) -> None:
        """SIGTERM to all, SIGKILL to what is left after the grace; returns when all are dead and init exits."""
        await self._call(encode_fields(Op.SHUTDOWN, {Tag.GRACE_MS: grace_ms}))

    # -- commands

    async def spawn(self, request: SpawnRequest) -> Started:
        """Start a command that nobody follows. Cancelled before the answer, it is killed or never starts."""
        async with self._open(request.encode(attach=False, lossless=False)) as connection:
            return await connection.expect(Started)

    @asynccontextmanager
    async def spawn_attached(
        self, request: SpawnRequest, *, lossless: bool = False, keep: bool = False
    ) -> AsyncIterator[Attachment]:
        """Start a command and follow it from its first byte. `lossless`: it waits for a slow receiver.

        `keep`: over a connection that is kept; for commands to which nothing is sent once they have started.
        """
        opener = self._open_kept if keep else self._open
        async with opener(request.encode(attach=True, lossless=lossless, keep=keep)) as connection:
            started = await connection.expect(Started)
            yield Attachment(connection, started.command, started.pid)

    @asynccontextmanager
    async def attach(
        self,
        command: int,
        *,
        stdout_from: int = 0,
        stderr_from: int = 0,
        lossless: bool = False,
        output: bool = True,
    ) -> AsyncIterator[Attachment]:
        """Follow a command from these offsets (OFFSET_NOW: from here on), or without output only until its exit.

        An unknown command raises InitError from the first `receive`.
        """
        flags = (Flag.LOSSLESS if lossless else Flag(0)) | (Flag(0) if output else Flag.NO_OUTPUT)
        fields = {
            Tag.COMMAND: command,
            Tag.STDOUT_FROM: stdout_from,
            Tag.STDERR_FROM: stderr_from,
            Tag.FLAGS: flags,
        }
        async with self._open(encode_fields(Op.ATTACH, fields)) as connection:
            yield Attachment(connection, command, None)

    async def signal(self, command: int, signo: int, *, scope: Scope = Scope.LEADER) -> int | None:
        """Send a signal. For a tree: returns the number of processes reached; SIGKILL returns when all are dead."""
        fields = {Tag.COMMAND: command, Tag.SIGNO: signo, Tag.SCOPE: scope}
        return (await self._call(encode_fields(Op.SIGNAL, fields))).count

    async def resize(self, command: int, size: TerminalSize) -> None:
        fields = {Tag.COMMAND: command, Tag.COLS: size.cols, Tag.ROWS: size.rows}
        await self._call(encode_fields(Op.RESIZE, fields))

    async def write_stdin(self, command: int, data: bytes) -> bool:
        """Returns when stdin has taken everything, or False when it is closed."""
        async with self.stdin(command) as attachment:
            return await attachment.feed(data)

    @asynccontextmanager
    async def stdin(self, command: int) -> AsyncIterator[Attachment]:
        """Write to a command's stdin without following it: it receives acknowledgements only, and no exit."""
        async with self._open(encode_fields(Op.WRITE_STDIN, {Tag.COMMAND: command})) as connection:
            yield Attachment(connection, command, None)

    async def close_stdin(self, command: int) -> None:
        await self._call(encode_fields(Op.STDIN_EOF, {Tag.COMMAND: command}))

    async def commands(self) -> list[Listed]:
        """The commands that init knows: running ones, and the last ended ones until released."""
        listed: list[Listed] = []
        async with self._open(encode_frame(Op.LIST)) as connection:
            while (frame := await connection.receive()).op is not Op.END:
                if frame.op is not Op.LISTED or len(listed) == MAX_COMMANDS:
                    raise WireError(f"cannot go on: {frame.op.name} after {len(listed)} listed commands")
                listed.append(Listed.decode(frame.payload))
        return listed

    async def release(self, command: int) -> None:
        """Forget an ended command. What survives of it may go on writing."""
        await self._call(encode_fields(Op.RELEASE, {Tag.COMMAND: command}))
