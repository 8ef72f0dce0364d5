"""Connections to sandbox-init, for one operation at a time; see `client.py` for the whole."""

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import trio

from sandboxd.isolation.init.messages import Done, Failed, Message
from sandboxd.isolation.init.wire import Frame, FrameDecoder, Op, WireError

_RECEIVE_SIZE: Final = 256 * 1024
_LONGEST_ADDRESS: Final = 107
_QUEUE_FULL_PAUSE: Final = 0.005
_M = TypeVar("_M", bound=Message)


class InitError(Exception):
    """init could not do what was asked. `kind` names what was at fault; `errno` is 0 when no system call failed.

    `offset` is where an upload goes on, when it was that.
    """

    def __init__(self, errno: int, kind: str, message: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno
        self.kind = kind
        self.message = message
        self.offset = offset


class InitGone(Exception):
    """There is no init behind the socket, or it ended in the middle of an operation."""


class Connection:
    """One operation, or one after another. Owns the socket; `close` cannot block."""

    def __init__(self, sock: socket.socket) -> None:
        self._plain = sock
        self._socket = trio.socket.from_stdlib_socket(sock)
        self._owns_socket = True
        self._decoder = FrameDecoder()
        self._frames: list[Frame] = []
        self._asked_once = False
        self.kept = False
        """init has said that it expects another operation here"""

    async def begin(self, request: bytes) -> None:
        """Send an operation's first frame."""
        self.kept = False
        await self._send(request[_send_nowait(self._plain, request) :])
        self._asked_once = True

    def is_usable(self) -> bool:
        """Whether another operation can begin here: init expects it, nothing of the last one is under way, either
        way, and init is still there."""
        if not (self.kept and self._asked_once and self._decoder.empty) or self._frames:
            return False
        try:
            self._plain.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    async def send(self, data: bytes) -> None:
        """Say more within an operation. init may see it when the operation is over."""
        self._asked_once = False
        await self._send(data)

    async def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[await self._socket.send(view) :]
            except OSError as error:
                raise InitGone("cannot send to sandbox-init: the connection is closed") from error

    async def receive(self, *, no_more: bool = False) -> Frame:
        """The next frame. `no_more`: leave the bytes behind it in the socket."""
        while not self._frames:
            missing = self._decoder.missing()
            if missing > 0:
                await self._receive_more(missing if no_more else _RECEIVE_SIZE)
            else:  # more came at once than one turn of the event loop may take
                await trio.lowlevel.checkpoint()
            self._frames = self._decoder.take()
            self._frames.reverse()
        return self._frames.pop()

    async def _receive_more(self, size: int) -> None:
        try:
            data = await self._receive_some(size)
        except OSError as error:
            raise InitGone("cannot receive from sandbox-init: the connection is closed") from error
        if not data:
            raise InitGone("cannot receive from sandbox-init: it closed the connection")
        self._decoder.feed(data)

    async def _receive_some(self, size: int) -> bytes:
        """Wait first: what is asked is never answered at once, and trying before costs as much as the wait."""
        while True:
            await trio.lowlevel.wait_readable(self._plain)
            with suppress(BlockingIOError):
                return self._plain.recv(size)

    async def receive_all(self) -> list[Frame]:
        """The frames that have arrived, at least one and at most FRAMES_AT_ONCE."""
        first = await self.receive()
        rest, self._frames = self._frames, []
        return [first, *reversed(rest)]

    async def expect(self, kind: type[_M], *, no_more: bool = False) -> _M:
        """The next frame, which must be this message. An ERROR is raised as InitError."""
        frame = await self.receive(no_more=no_more)
        if frame.op is Op.ERROR:
            raise error_of(frame)
        if frame.op is not kind.OP:
            raise WireError(f"cannot go on: {frame.op.name} instead of {kind.OP.name}")
        return kind.decode(frame.payload)

    def detach(self) -> trio.SocketStream:
        """Give the bare stream away, once the operation has turned the connection into one."""
        self._owns_socket = False
        return trio.SocketStream(self._socket)

    def close(self) -> None:
        if self._owns_socket:
            self._socket.close()


def error_of(frame: Frame) -> InitError:
    failed = Failed.decode(frame.payload)
    return InitError(failed.errno, failed.kind, failed.message, failed.offset)


@contextmanager
def unix_address(path: Path) -> Iterator[str]:
    """A name of the socket that fits sockaddr_un, which a deep state directory does not."""
    if len(os.fsencode(path)) <= _LONGEST_ADDRESS:
        yield os.fspath(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def connect_nowait(path: Path) -> socket.socket:
    """Connect to a Unix socket, which never takes time; BlockingIOError when its queue is full for now.

    Not `trio.open_unix_socket`: it takes the EAGAIN of a full queue for "in progress" and returns a stream that is
    not connected.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        with unix_address(path) as address:
            sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


async def connect(path: Path) -> socket.socket:
    """Connect when there is room. Raises InitGone when nothing listens there."""
    while True:
        try:
            return connect_nowait(path)
        except BlockingIOError:
            # Nothing announces room in the queue: poll() says that the socket is writable.
            await trio.sleep(_QUEUE_FULL_PAUSE)
        except OSError as error:
            raise InitGone(f"cannot reach sandbox-init at {path}: {error.strerror}") from error


def _send_nowait(sock: socket.socket, data: bytes) -> int:
    """What fits into the socket at once, which is nearly always all of a request.

    Both connecting and sending wake init, and the kernel likes to run it on our CPU, once we sleep: so no turn of the
    event loop may lie in between (0.1 ms of 1).
    """
    try:
        return sock.send(data)
    except BlockingIOError:
        return 0
    except OSError as error:
        raise InitGone("cannot send to sandbox-init: the connection is closed") from error


class Connector:
    """Opens a connection for each operation.

    Owns: at most one in between, which init leaves open for the next operation that asks to keep it, until close().
    """

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path
        self._kept: Connection | None = None
        self._closed = False

    def close(self) -> None:
        """For good; operations under way go on to their end."""
        self._closed = True
        self._drop_kept()

    @asynccontextmanager
    async def _open(self, request: bytes) -> AsyncIterator[Connection]:
        connection = Connection(await connect(self._socket_path))
        try:
            await connection.begin(request)
            yield connection
        finally:
            connection.close()

    @asynccontextmanager
    async def _open_kept(self, request: bytes) -> AsyncIterator[Connection]:
        """As _open(), on the connection that was kept if there is one: connecting is a tenth of a short command."""
        connection, self._kept = self._kept, None
        if connection is None or not connection.is_usable():
            if connection is not None:
                connection.close()
            connection = Connection(await connect(self._socket_path))
        try:
            await connection.begin(request)
            yield connection
        finally:
            self._keep(connection)

    def _keep(self, connection: Connection) -> None:
        if connection.kept and not self._closed:
            self._drop_kept()
            self._kept = connection
        else:
            connection.close()

    def _drop_kept(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    async def _connect(self, request: bytes) -> trio.SocketStream:
        async with self._open(request) as connection:
            await connection.expect(Done, no_more=True)
            return connection.detach()

    async def _call(self, request: bytes) -> Done:
        async with self._open(request) as connection:
            return await connection.expect(Done)
