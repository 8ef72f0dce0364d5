"""Directory trees between here and a sandbox: a tar archive through the stdin or stdout of `tar` inside.

Packing and unpacking run in a thread, which reads and writes through this task; both directions have back-pressure.
"""

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, TypeVar, cast

import trio

from sandboxd.cli.output import Failure
from sandboxd.cli.progress import Advance, transfer_progress
from sandboxd.cli.runner import ungrouped
from sandboxd.cli.trees import Skipped, pack, unpack
from sandboxd.client import Client, Exec, Exited, Output
from sandboxd.kernel.tarstream import ArchiveError

# `.` so that it makes no difference whether the directory's path goes through a symbolic link.
PACK = ("tar", "-c", "-f", "-", "-C")
UNPACK = ("sh", "-c", 'mkdir -p -- "$1" && exec tar -x -f - --no-same-owner -C "$1"', "sh")
MAX_COMPLAINT = 2000

T = TypeVar("T")


async def send_tree(client: Client, sandbox: str, source: Path, path: str, *, user: str | None) -> Skipped:
    """Copy what is in a local directory into one in a sandbox, made if missing. Raises: Failure, ClientError."""
    with transfer_progress(f"{sandbox}:{path}", None) as advance:
        async with client.exec(sandbox, [*UNPACK, path], stdin=True, user=user, cwd="/") as command:
            work = partial(_pack_to, StdinWriter(command, advance), source)
            return await _in_thread_beside(work, partial(_until_exit, command, path))


async def receive_tree(client: Client, sandbox: str, path: str, target: Path, *, user: str | None) -> Skipped:
    """Copy what is in a directory of a sandbox into an existing local one. Raises: Failure, ClientError."""
    send, receive = trio.open_memory_channel[bytes](0)
    with transfer_progress(f"{sandbox}:{path}", None) as advance:
        async with client.exec(sandbox, [*PACK, path, "."], user=user, cwd="/") as command:
            work = partial(_unpack_from, OutputReader(receive, advance), target)
            return await _in_thread_beside(work, partial(_until_exit, command, path, send))


class StdinWriter:
    """A file for a thread: what is written goes to a command's stdin, as fast as that takes it."""

    def __init__(self, command: Exec, advance: Advance) -> None:
        self._command = command
        self._advance = advance

    def write(self, data: bytes) -> int:
        trio.from_thread.run(self._command.send_stdin, bytes(data))
        self._advance(len(data))
        return len(data)

    def close(self) -> None:
        trio.from_thread.run(self._command.close_stdin)


class OutputReader:
    """A file for a thread: reads what comes through a channel. `close` tells the sender that no more is wanted."""

    def __init__(self, chunks: trio.MemoryReceiveChannel[bytes], advance: Advance) -> None:
        self._chunks = chunks
        self._advance = advance
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        if not self._rest:
            try:
                self._rest = memoryview(trio.from_thread.run(self._chunks.receive))
            except trio.EndOfChannel:
                return b""
            self._advance(len(self._rest))
        piece, self._rest = self._rest[:size], self._rest[size:]
        return bytes(piece)

    def close(self) -> None:
        trio.from_thread.run_sync(self._chunks.close)


def _pack_to(pipe: StdinWriter, source: Path) -> Skipped:
    try:
        skipped = pack(source, cast("IO[bytes]", pipe))
        pipe.close()
    except trio.BrokenResourceError:
        return Skipped()  # tar inside has ended early; its exit status and what it said are the news
    except OSError as error:
        raise Failure(f"cannot read {error.filename or source}: {error.strerror}") from error
    return skipped


def _unpack_from(pipe: OutputReader, target: Path) -> Skipped:
    try:
        skipped = unpack(pipe, target)
    except ArchiveError as error:
        raise Failure(str(error)) from error
    except OSError as error:
        raise Failure(f"cannot write {target / os.fsdecode(error.filename or b'')}: {error.strerror}") from error
    pipe.close()
    return skipped


async def _in_thread_beside(work: Callable[[], T], conversation: Callable[[], Awaitable[None]]) -> T:
    """`work` in a thread while `conversation` runs; both have to succeed."""
    with ungrouped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conversation)
            result = await trio.to_thread.run_sync(work)
    return result


async def _until_exit(command: Exec, path: str, stdout: trio.MemorySendChannel[bytes] | None = None) -> None:
    """Pass stdout on until the command has ended well. Raises: Failure with what it said."""
    complaint = b""
    async for event in command:
        if isinstance(event, Output) and event.stream == "stderr":
            complaint = (complaint + event.data)[-MAX_COMPLAINT:]
        elif isinstance(event, Output) and stdout is not None:
            with suppress(trio.BrokenResourceError):  # the archive's end was seen; padding follows
                await stdout.send(event.data)
        elif isinstance(event, Exited) and event.exit_code:
            reason = complaint.decode(errors="replace").strip() or f"exit status {event.exit_code}"
            raise Failure(f"cannot copy {path}: tar in the sandbox: {reason}")
    if stdout is not None:
        stdout.close()
