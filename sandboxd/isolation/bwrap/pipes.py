"""Pipes, memory files and sockets that a launch hands to the processes it starts."""

import contextlib
import fcntl
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import trio

LISTEN_BACKLOG = 128
# The smallest pipe there is: what fills it is read in one go.
_PAGE = os.sysconf("SC_PAGESIZE")


class Pipe:
    """A pipe whose write end goes to a child. Owns both ends until close()."""

    def __init__(self) -> None:
        read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        self._stream = trio.lowlevel.FdStream(read_end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.close_write_end()
        self._stream.close()

    def close_write_end(self) -> None:
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    async def read_all(self) -> bytes:
        """Everything until the last writer closed its end."""
        chunks = []
        while chunk := await self._stream.receive_some(4096):
            chunks.append(chunk)
        return b"".join(chunks)


class Gate:
    """A pipe at which a child waits: it reads to the end, and there is no end while `write_end` is open anywhere.

    Our own death opens it too. The pipe is full from the start, so that there is room in it once the child has begun
    to read: it has come to the gate. Owns both ends until close().
    """

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, _PAGE)
        os.write(self.write_end, bytes(_PAGE))

    async def wait_reached(self) -> None:
        """Raises: BrokenPipeError if the child ends before it has come here."""
        await trio.lowlevel.wait_writable(self.write_end)
        poll = select.poll()
        poll.register(self.write_end, select.POLLOUT)
        if any(events & select.POLLERR for _, events in poll.poll(0)):
            raise BrokenPipeError("bwrap ended before it had made the sandbox")

    def close_read_end(self) -> None:
        if self.read_end >= 0:
            os.close(self.read_end)
            self.read_end = -1

    def open(self) -> None:
        """Let the child go on, as far as this process is concerned."""
        if self.write_end >= 0:
            trio.lowlevel.notify_closing(self.write_end)
            os.close(self.write_end)
            self.write_end = -1

    def close(self) -> None:
        self.close_read_end()
        self.open()


@contextlib.contextmanager
def closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def memory_file(text: str) -> int:
    descriptor = os.memfd_create("sandboxd", os.MFD_CLOEXEC)
    os.write(descriptor, text.encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def listening_socket(path: Path) -> socket.socket:
    """A Unix socket bound by its short name, since an address may have 107 bytes only."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        listener.listen(LISTEN_BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(directory)
    return listener
