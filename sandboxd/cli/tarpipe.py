"""Directory trees between here and a sandbox, as tar archives: it needs no tar itself.

Packing and unpacking run in a thread, which reads and writes through this task; both directions have back-pressure.
"""

import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import IO, cast

import trio

from sandboxd.cli.output import Failure
from sandboxd.cli.progress import Advance, transfer_progress
from sandboxd.cli.runner import ungrouped
from sandboxd.cli.trees import Skipped, pack, unpack
from sandboxd.client import AsyncClient
from sandboxd.trees.tarstream import ArchiveError


async def send_tree(client: AsyncClient, sandbox: str, source: Path, path: str, *, user: str | None) -> Skipped:
    """Copy what is in a local directory into one in a sandbox, made if missing. Raises: Failure, ClientError."""
    send, receive = trio.open_memory_channel[bytes](0)
    with transfer_progress(f"{sandbox}:{path}", None) as advance, ungrouped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_upload, client, sandbox, path, user, receive)
            return await trio.to_thread.run_sync(_pack_to, ChunkWriter(send, advance), source)


async def _upload(
    client: AsyncClient, sandbox: str, path: str, user: str | None, chunks: trio.MemoryReceiveChannel[bytes]
) -> None:
    with chunks:
        await client.upload_archive(sandbox, path, chunks, user=user)


async def receive_tree(client: AsyncClient, sandbox: str, path: str, target: Path, *, user: str | None) -> Skipped:
    """Copy what is in a directory of a sandbox into an existing local one. Raises: Failure, ClientError."""
    with transfer_progress(f"{sandbox}:{path}", None) as advance, ungrouped():
        async with client.download_archive(sandbox, path, user=user) as answer:
            return await trio.to_thread.run_sync(partial(_unpack_from, ChunkReader(answer, advance), target))


class ChunkWriter:
    """A file for a thread: what is written goes through a channel, as fast as its other end takes it."""

    def __init__(self, chunks: trio.MemorySendChannel[bytes], advance: Advance) -> None:
        self._chunks = chunks
        self._advance = advance

    def write(self, data: bytes) -> int:
        trio.from_thread.run(self._chunks.send, bytes(data))
        self._advance(len(data))
        return len(data)

    def close(self) -> None:
        trio.from_thread.run_sync(self._chunks.close)


class ChunkReader:
    """A file for a thread: reads what an iterator gives."""

    def __init__(self, chunks: AsyncIterator[bytes], advance: Advance) -> None:
        self._chunks = chunks
        self._advance = advance
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        if not self._rest:
            self._rest = memoryview(trio.from_thread.run(self._next))
            self._advance(len(self._rest))
        piece, self._rest = self._rest[:size], self._rest[size:]
        return bytes(piece)

    async def _next(self) -> bytes:
        return await anext(self._chunks, b"")


def _pack_to(pipe: ChunkWriter, source: Path) -> Skipped:
    try:
        skipped = pack(source, cast("IO[bytes]", pipe))
        pipe.close()
    except trio.BrokenResourceError:
        return Skipped()  # the daemon has refused already; what it said is the news
    except OSError as error:
        raise Failure(f"cannot read {error.filename or source}: {error.strerror}") from error
    return skipped


def _unpack_from(pipe: ChunkReader, target: Path) -> Skipped:
    try:
        return unpack(pipe, target)
    except ArchiveError as error:
        raise Failure(str(error)) from error
    except OSError as error:
        raise Failure(f"cannot write {target / os.fsdecode(error.filename or b'')}: {error.strerror}") from error
