"""Watching directories by sandbox-init: a process of the sandbox itself holds inotify and tells what happens."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from sandboxd.isolation.init.connection import Connection, Connector, error_of
from sandboxd.isolation.init.messages import Done, check_path, encode_fields
from sandboxd.isolation.init.wire import Change, Flag, Op, Tag, WireError, decode_changes, encode_frame


class Synced:
    """All that happened before a sync() has come."""


class ChangeStream:
    """What happens, as an async iterator of batches in order. Ends when the watched directory itself is gone.

    Cancelled: nothing is lost, iterate on. A reader that pauses holds back the watching process, whose queue in the
    kernel overflows in the end, which it says with an OVERFLOW.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __aiter__(self) -> "ChangeStream":
        return self

    async def sync(self) -> None:
        """Ask for a Synced behind all that has happened by now. One task at a time. Raises: InitGone."""
        await self._connection.send(encode_frame(Op.SYNC))

    async def __anext__(self) -> list[Change] | Synced:
        frame = await self._connection.receive()
        if frame.op is Op.CHANGES:
            return decode_changes(frame.payload)
        if frame.op is Op.SYNCED:
            return Synced()
        if frame.op is Op.END:
            raise StopAsyncIteration
        if frame.op is Op.ERROR:
            raise error_of(frame)
        raise WireError(f"cannot go on: {frame.op.name} from a watch")


class WatchOperations(Connector):
    @asynccontextmanager
    async def watch(
        self, path: str | bytes, *, user: str = "", recursive: bool = False, ignore: Sequence[str] = ()
    ) -> AsyncIterator[ChangeStream]:
        """Watch a directory as a user sees it; entered when all of it is watched.

        `ignore` are patterns as of fnmatch(3), those with a slash for paths relative to the directory, the others for
        any name; what is ignored is not entered either. Symbolic links below are not followed, other file systems
        not entered. Raises InitError: kind "not_directory"; ENOSPC for too many directories; EMFILE.
        """
        fields = {
            Tag.PATH: check_path(path),
            Tag.USER: user,
            Tag.FLAGS: Flag.RECURSIVE if recursive else Flag(0),
            Tag.ARG: ignore,
        }
        async with self._open(encode_fields(Op.WATCH, fields)) as connection:
            await connection.expect(Done)
            yield ChangeStream(connection)
