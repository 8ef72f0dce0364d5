"""File operations of sandbox-init: they run inside the sandbox, as one of its users.

Every path is absolute and means what it means there: symbolic links are followed by the sandbox's own rules. An empty
`user` is root. All raise InitError (errno and kind say why; "not_regular" for FIFOs, sockets and devices where a file
was expected), InitGone, and ValueError for paths that cannot be.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from sandboxd.isolation.init_connection import Connection, Connector, InitGone, error_of
from sandboxd.isolation.init_messages import NO_FLAGS, Done, End, Entry, FileHeader, check_path, encode_fields
from sandboxd.isolation.wire import MAX_DATA, Flag, Op, Tag, WireError, encode_frame

DEFAULT_MAX_ENTRIES: Final = 100_000


class FileReader:
    """The content of a file as an async iterator of bytes, fetched as fast as it is consumed."""

    def __init__(self, connection: Connection, header: FileHeader) -> None:
        self._connection = connection
        self.size = header.size
        self.mode = header.mode

    def __aiter__(self) -> "FileReader":
        return self

    async def __anext__(self) -> bytes:
        frame = await self._connection.receive()
        if frame.op is Op.DATA:
            return frame.payload
        if frame.op is Op.END:
            raise StopAsyncIteration
        if frame.op is Op.ERROR:
            raise error_of(frame)
        raise WireError(f"cannot go on: {frame.op.name} in the content of a file")


def _flags(**wanted: bool) -> Flag:
    flags = NO_FLAGS
    for name, is_wanted in wanted.items():
        flags |= Flag[name.upper()] if is_wanted else NO_FLAGS
    return flags


class FileOperations(Connector):
    async def stat(self, path: str | bytes, *, user: str = "", follow: bool = True) -> Entry:
        fields = {Tag.PATH: check_path(path), Tag.USER: user, Tag.FLAGS: _flags(follow=follow)}
        async with self._open(encode_fields(Op.STAT, fields)) as connection:
            return await connection.expect(Entry)

    @asynccontextmanager
    async def list_dir(
        self, path: str | bytes, *, user: str = "", depth: int = 1, limit: int = DEFAULT_MAX_ENTRIES
    ) -> AsyncIterator["DirectoryReader"]:
        """The entries below a directory, unsorted, a directory before what is in it; links are not followed."""
        fields = {Tag.PATH: check_path(path), Tag.USER: user, Tag.DEPTH: depth, Tag.LIMIT: limit}
        async with self._open(encode_fields(Op.LIST_DIR, fields)) as connection:
            yield DirectoryReader(connection)

    @asynccontextmanager
    async def read_file(
        self, path: str | bytes, *, user: str = "", offset: int = 0, length: int | None = None
    ) -> AsyncIterator[FileReader]:
        fields = {Tag.PATH: check_path(path), Tag.USER: user, Tag.OFFSET: offset, Tag.LENGTH: length}
        async with self._open(encode_fields(Op.READ_FILE, fields)) as connection:
            yield FileReader(connection, await connection.expect(FileHeader))

    async def write_file(
        self,
        path: str | bytes,
        content: AsyncIterator[bytes],
        *,
        user: str = "",
        mode: int | None = None,
        owner: str | None = None,
        group: str | None = None,
        offset: int | None = None,
        atomic: bool = False,
        append: bool = False,
        exclusive: bool = False,
        parents: bool = False,
    ) -> int:
        """Write a file and return the number of bytes.

        By default it is truncated and written in place; with `offset` or `append` the rest is kept; `atomic` writes
        a temporary file beside it and renames it when complete, so that a failure or a cancellation changes nothing.
        `exclusive` fails when the file exists; `parents` makes missing directories. An existing file keeps its mode
        and owner where none are given, a new one gets 0644. `content` is not read to its end when init refuses early;
        closing it is the caller's.
        """
        flags = _flags(atomic=atomic, append=append, exclusive=exclusive, parents=parents)
        fields = {
            Tag.PATH: check_path(path),
            Tag.USER: user,
            Tag.MODE: mode,
            Tag.OWNER: owner,
            Tag.GROUP: group,
            Tag.OFFSET: offset,
            Tag.FLAGS: flags,
        }
        async with self._open(encode_fields(Op.WRITE_FILE, fields)) as connection:
            await _send_content(connection, content)
            done = await connection.expect(Done)
        if done.bytes is None:
            raise WireError("cannot go on: no count of bytes written")
        return done.bytes

    async def truncate(self, path: str | bytes, size: int, *, user: str = "") -> None:
        await self._call(encode_fields(Op.TRUNCATE, {Tag.PATH: check_path(path), Tag.SIZE: size, Tag.USER: user}))

    async def mkdir(
        self,
        path: str | bytes,
        *,
        user: str = "",
        mode: int = 0o755,
        owner: str | None = None,
        group: str | None = None,
        parents: bool = False,
    ) -> int:
        """Make a directory and return how many were made; with `parents` an existing one is no error."""
        fields = {
            Tag.PATH: check_path(path),
            Tag.USER: user,
            Tag.MODE: mode,
            Tag.OWNER: owner,
            Tag.GROUP: group,
            Tag.FLAGS: _flags(parents=parents),
        }
        return (await self._call(encode_fields(Op.MKDIR, fields))).count or 0

    async def remove(self, path: str | bytes, *, user: str = "", recursive: bool = False) -> int:
        """Remove a file, a link, or a directory (an empty one unless `recursive`); returns how many went."""
        fields = {Tag.PATH: check_path(path), Tag.USER: user, Tag.FLAGS: _flags(recursive=recursive)}
        return (await self._call(encode_fields(Op.REMOVE, fields))).count or 0

    async def rename(self, path: str | bytes, target: str | bytes, *, user: str = "", replace: bool = True) -> None:
        fields = {
            Tag.PATH: check_path(path),
            Tag.TARGET: check_path(target),
            Tag.USER: user,
            Tag.FLAGS: _flags(no_replace=not replace),
        }
        await self._call(encode_fields(Op.RENAME, fields))

    async def symlink(self, path: str | bytes, target: str | bytes, *, user: str = "") -> None:
        """Make a link at `path` that says `target`, which may be anything."""
        fields = {Tag.PATH: check_path(path), Tag.TARGET: target, Tag.USER: user}
        await self._call(encode_fields(Op.SYMLINK, fields))

    async def chmod(self, path: str | bytes, mode: int, *, user: str = "") -> None:
        await self._call(encode_fields(Op.CHMOD, {Tag.PATH: check_path(path), Tag.MODE: mode, Tag.USER: user}))

    async def chown(
        self,
        path: str | bytes,
        *,
        owner: str | None = None,
        group: str | None = None,
        user: str = "",
        follow: bool = True,
    ) -> None:
        """Owner and group are names in the sandbox or digits."""
        fields = {
            Tag.PATH: check_path(path),
            Tag.OWNER: owner,
            Tag.GROUP: group,
            Tag.USER: user,
            Tag.FLAGS: _flags(follow=follow),
        }
        await self._call(encode_fields(Op.CHOWN, fields))

    async def connect_port(self, port: int) -> trio.SocketStream:
        """A byte stream to a TCP port on the sandbox's loopback. The caller closes it."""
        return await self._connect(encode_fields(Op.CONNECT, {Tag.PORT: port}))

    async def connect_socket(self, path: str | bytes) -> trio.SocketStream:
        """A byte stream to a Unix socket of the sandbox, reached as root. The caller closes it."""
        return await self._connect(encode_fields(Op.CONNECT, {Tag.PATH: check_path(path)}))


class DirectoryReader:
    """Entries as an async iterator; `truncated` is known when it has ended."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.truncated = False

    def __aiter__(self) -> "DirectoryReader":
        return self

    async def __anext__(self) -> Entry:
        frame = await self._connection.receive()
        if frame.op is Op.ENTRY:
            return Entry.decode(frame.payload)
        if frame.op is Op.END:
            self.truncated = bool(End.decode(frame.payload).flags & Flag.TRUNCATED)
            raise StopAsyncIteration
        if frame.op is Op.ERROR:
            raise error_of(frame)
        raise WireError(f"cannot go on: {frame.op.name} in a list of files")


async def _send_content(connection: Connection, content: AsyncIterator[bytes]) -> None:
    """DATA and END. init may answer early, with an error, and stop reading: the answer is what counts then."""
    try:
        async for part in content:
            for start in range(0, len(part), MAX_DATA):
                await connection.send(encode_frame(Op.DATA, part[start : start + MAX_DATA]))
        await connection.send(encode_frame(Op.END))
    except InitGone:
        return
