"""Bytes between a sandbox's connection and the world's, both ways, with half-close and back-pressure as they are.

Small conversations are copied. What goes on for longer is spliced: the kernel moves it from socket to socket through
a pipe, and Python only waits.
"""

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Awaitable, Callable

import trio

from sandboxd.gateway.sandbox import Sandbox

CHUNK = 65536
COPIED = 256 << 10
"""bytes of one direction, after which it is spliced"""
PIPE = 256 << 10
"""of a pipe, and so of what is under way in one; without leave for so much the kernel's own size has to do"""

_F_SETPIPE_SZ = 1031
_SPLICE_FLAGS = 1 | 2  # SPLICE_F_MOVE, SPLICE_F_NONBLOCK
_RESET = struct.pack("ii", 1, 0)

Count = Callable[[int], Awaitable[None]]


def reset(sock: trio.socket.SocketType) -> None:
    """Close it so that its peer sees the connection break off."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


async def send_all(sock: trio.socket.SocketType, data: bytes) -> None:
    """Raises: OSError."""
    with memoryview(data) as view:
        sent = 0
        while sent < len(view):
            sent += await sock.send(view[sent:])


async def pump(
    source: trio.socket.SocketType, sink: trio.socket.SocketType, *, sandbox: Sandbox, count: Count
) -> None:
    """Everything that comes from the source goes to the sink; its end, too. Raises: OSError."""
    copied = 0
    while copied < COPIED:
        data = await source.recv(min(CHUNK, sandbox.most_at_once))
        if not data:
            break
        await send_all(sink, data)
        copied += len(data)
        await count(len(data))
    else:
        try:
            pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # no descriptor left: it goes on as it is
            await _copy_on(source, sink, sandbox=sandbox, count=count)
        else:
            await _splice_on(source, sink, pipe, sandbox=sandbox, count=count)
    sink.shutdown(socket.SHUT_WR)


async def _copy_on(
    source: trio.socket.SocketType, sink: trio.socket.SocketType, *, sandbox: Sandbox, count: Count
) -> None:
    while data := await source.recv(min(CHUNK, sandbox.most_at_once)):
        await send_all(sink, data)
        await count(len(data))


async def _splice_on(
    source: trio.socket.SocketType,
    sink: trio.socket.SocketType,
    pipe: tuple[int, int],
    *,
    sandbox: Sandbox,
    count: Count,
) -> None:
    read_end, write_end = pipe
    try:
        with contextlib.suppress(OSError):
            fcntl.fcntl(write_end, _F_SETPIPE_SZ, PIPE)
        while True:
            try:
                moved = os.splice(source.fileno(), write_end, min(PIPE, sandbox.most_at_once), flags=_SPLICE_FLAGS)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(source)
                continue
            if moved == 0:
                return
            left = moved
            while left:
                try:
                    left -= os.splice(read_end, sink.fileno(), left, flags=_SPLICE_FLAGS)
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(sink)
            await count(moved)
            await trio.lowlevel.checkpoint()
    finally:
        os.close(read_end)
        os.close(write_end)
