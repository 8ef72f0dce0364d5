"""Reading and writing files and descriptors that others gave us, without blocking our other tasks.

They stay in blocking mode: the mode belongs to everyone who shares them, the shell that started us too.
"""

import os
import select
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from io import FileIO

import trio

from sandboxd.cli.output import Failure

STDIN, STDOUT, STDERR = 0, 1, 2
READ_BYTES = 64 * 1024


@contextmanager
def open_source(path: str) -> Iterator[tuple[FileIO, os.stat_result]]:
    """A file to read, of whatever kind, and its status. Raises: Failure."""
    try:
        file = FileIO(path)
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror}") from error
    with file:
        yield file, os.fstat(file.fileno())


class DescriptorReader(AsyncIterator[bytes]):
    """What comes, until the end; `note` is told the size of each piece."""

    def __init__(self, descriptor: int, note: Callable[[int], None] = lambda size: None) -> None:
        self._descriptor = descriptor
        self._note = note

    async def __anext__(self) -> bytes:
        data = await read_some(self._descriptor)
        if not data:
            raise StopAsyncIteration
        self._note(len(data))
        return data


async def read_some(descriptor: int) -> bytes:
    """Read what there is, at most `READ_BYTES`; `b""` at the end, and for a descriptor that is closed."""
    while True:
        try:
            await trio.lowlevel.wait_readable(descriptor)
        except PermissionError:
            await trio.lowlevel.checkpoint()  # epoll takes no regular files; those are always readable
        except OSError:
            return b""
        try:
            return os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            continue  # someone else made it non-blocking, and has read first
        except OSError:
            return b""  # a terminal that hung up


async def write_all(descriptor: int, data: bytes) -> None:
    """Write in a thread: a reader who pauses must not keep us from signals. Raises: BrokenPipeError."""
    await trio.to_thread.run_sync(_write_all_blocking, descriptor, data, abandon_on_cancel=True)


def _write_all_blocking(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
