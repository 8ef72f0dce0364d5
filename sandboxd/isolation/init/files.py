"""File operations of sandbox-init: they run inside the sandbox, as one of its users.

A path means what it means there: symbolic links are followed by the sandbox's own rules, and a relative one begins
at `cwd`, or at the user's home where that is empty. An empty `user` is root. All raise InitError (errno and kind say
why; "not_regular" for FIFOs, sockets and devices where a file was expected), InitGone, and ValueError for paths that
cannot be.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from sandboxd.isolation.init.archives import PackReader, UnpackWriter, data_frames
from sandboxd.isolation.init.connection import Connection, Connector, InitGone, error_of
from sandboxd.isolation.init.messages import NO_FLAGS, Done, End, Entry, FileHeader, check_path, encode_fields
from sandboxd.isolation.init.wire import Flag, Op, Tag, WireError, encode_frame

DEFAULT_MAX_ENTRIES: Final = 100_000

Path = str | bytes


class FileReader:
    """The content of a file as an async iterator of bytes, fetched as fast as it is consumed.

    There are at most `length` of them, if that was asked for: more raise WireError.
    """

    def __init__(self, connection: Connection, header: FileHeader, length: int | None) -> None:
        self._connection = connection
        self._left = length
        self.header = header

    @property
    def size(self) -> int:
        return self.header.size

    def __aiter__(self) -> "FileReader":
        return self

    async def __anext__(self) -> bytes:
        frame = await self._connection.receive()
        if frame.op is Op.DATA and self._may_be(frame.payload):
            return frame.payload
        if frame.op is Op.END:
            raise StopAsyncIteration
        if frame.op is Op.ERROR:
            raise error_of(frame)
        raise WireError(f"cannot go on: {frame.op.name} in the content of a file")

    def _may_be(self, part: bytes) -> bool:
        if self._left is not None:
            self._left -= len(part)
        return len(part) > 0 and (self._left is None or self._left >= 0)


class DirectoryReader:
    """Entries as an async iterator, at most `limit`; `truncated` is known when it has ended."""

    def __init__(self, connection: Connection, limit: int) -> None:
        self._connection = connection
        self._left = limit
        self.truncated = False

    def __aiter__(self) -> "DirectoryReader":
        return self

    async def __anext__(self) -> Entry:
        frame = await self._connection.receive()
        if frame.op is Op.ENTRY and self._left > 0:
            self._left -= 1
            return Entry.decode(frame.payload)
        if frame.op is Op.END:
            self.truncated = bool(End.decode(frame.payload).flags & Flag.TRUNCATED)
            raise StopAsyncIteration
        if frame.op is Op.ERROR:
            raise error_of(frame)
        raise WireError(f"cannot go on: {frame.op.name} in a list of files")


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How a file is written. By default it is truncated and written in place.

    With `offset` or `append` the rest is kept; `atomic` writes a temporary file beside it and renames it when
    complete, so that a failure or a cancellation changes nothing. `resume` collects a file beside it piece by piece,
    each at the `offset` where the one before ended; with `atomic` too the piece is the last. `exclusive` fails when
    the file exists; `parents` makes missing directories, `owner`'s too. An existing file keeps its mode and owner
    where none are given, a new one gets 0644.
    """

    mode: int | None = None
    owner: str | None = None
    group: str | None = None
    offset: int | None = None
    atomic: bool = False
    append: bool = False
    exclusive: bool = False
    parents: bool = False
    resume: bool = False


def _flags(**wanted: bool) -> Flag:
    flags = NO_FLAGS
    for name, is_wanted in wanted.items():
        flags |= Flag[name.upper()] if is_wanted else NO_FLAGS
    return flags


def _request(op: Op, path: Path, user: str, cwd: str, fields: dict[Tag, Any] | None = None, **flags: bool) -> bytes:
    common: dict[Tag, Any] = {Tag.PATH: check_path(path), Tag.USER: user, Tag.CWD: cwd or None}
    if flags:
        common[Tag.FLAGS] = _flags(**flags)
    return encode_fields(op, common | (fields or {}))


class FileOperations(Connector):
    async def stat(
        self, path: Path, *, user: str = "", cwd: str = "", follow: bool = True, resume: bool = False
    ) -> Entry:
        """`resume`: of the file that an upload is collected in."""
        async with self._open(_request(Op.STAT, path, user, cwd, follow=follow, resume=resume)) as connection:
            return await connection.expect(Entry)

    @asynccontextmanager
    async def list_dir(
        self,
        path: Path,
        *,
        user: str = "",
        cwd: str = "",
        depth: int = 1,
        limit: int = DEFAULT_MAX_ENTRIES,
        after: Path = b"",
    ) -> AsyncIterator[DirectoryReader]:
        """The entries below a directory, depth first in the order of their names' bytes, those behind `after`.

        Links are not followed.
        """
        fields = {Tag.DEPTH: depth, Tag.LIMIT: limit, Tag.AFTER: after or None}
        async with self._open(_request(Op.LIST_DIR, path, user, cwd, fields)) as connection:
            yield DirectoryReader(connection, limit)

    @asynccontextmanager
    async def read_file(
        self, path: Path, *, user: str = "", cwd: str = "", offset: int = 0, length: int | None = None
    ) -> AsyncIterator[FileReader]:
        fields = {Tag.OFFSET: offset, Tag.LENGTH: length}
        async with self._open(_request(Op.READ_FILE, path, user, cwd, fields)) as connection:
            yield FileReader(connection, await connection.expect(FileHeader), length)

    async def write_file(
        self,
        path: Path,
        content: AsyncIterator[bytes],
        *,
        user: str = "",
        cwd: str = "",
        options: WriteOptions = WriteOptions(),
    ) -> int:
        """Write a file and return the number of bytes.

        `content` is not read to its end when init refuses early; closing it is the caller's.
        """
        fields = {
            Tag.MODE: options.mode,
            Tag.OWNER: options.owner,
            Tag.GROUP: options.group,
            Tag.OFFSET: options.offset,
        }
        flags = {name: getattr(options, name) for name in ("atomic", "append", "exclusive", "parents", "resume")}
        async with self._open(_request(Op.WRITE_FILE, path, user, cwd, fields, **flags)) as connection:
            await _send_content(connection, content)
            done = await connection.expect(Done)
        if done.bytes is None:
            raise WireError("cannot go on: no count of bytes written")
        return done.bytes

    async def truncate(self, path: Path, size: int, *, user: str = "", cwd: str = "") -> None:
        await self._call(_request(Op.TRUNCATE, path, user, cwd, {Tag.SIZE: size}))

    async def mkdir(
        self,
        path: Path,
        *,
        user: str = "",
        cwd: str = "",
        mode: int = 0o755,
        owner: str | None = None,
        group: str | None = None,
        parents: bool = False,
    ) -> int:
        """Make a directory and return how many were made; with `parents` an existing one is no error."""
        fields = {Tag.MODE: mode, Tag.OWNER: owner, Tag.GROUP: group}
        return await self._count(_request(Op.MKDIR, path, user, cwd, fields, parents=parents))

    async def remove(
        self, path: Path, *, user: str = "", cwd: str = "", recursive: bool = False, resume: bool = False
    ) -> int:
        """Remove a file, a link, or a directory (an empty one unless `recursive`); returns how many went.

        `resume`: the file that an upload is collected in.
        """
        return await self._count(_request(Op.REMOVE, path, user, cwd, recursive=recursive, resume=resume))

    async def rename(
        self,
        path: Path,
        target: Path,
        *,
        user: str = "",
        cwd: str = "",
        replace: bool = True,
        parents: bool = False,
    ) -> None:
        fields = {Tag.TARGET: check_path(target)}
        await self._call(_request(Op.RENAME, path, user, cwd, fields, no_replace=not replace, parents=parents))

    async def copy(
        self,
        path: Path,
        target: Path,
        *,
        user: str = "",
        cwd: str = "",
        recursive: bool = False,
        replace: bool = True,
        parents: bool = False,
    ) -> Done:
        """Copy a file, a link as such, or (`recursive`) a directory to a new name, which appears when complete.

        Returns how many things and bytes were copied. A directory never takes the place of one that is not empty.
        """
        flags = {"recursive": recursive, "no_replace": not replace, "parents": parents}
        return await self._call(_request(Op.COPY, path, user, cwd, {Tag.TARGET: check_path(target)}, **flags))

    async def symlink(self, path: Path, target: Path, *, user: str = "", cwd: str = "") -> None:
        """Make a link at `path` that says `target`, which may be anything."""
        await self._call(_request(Op.SYMLINK, path, user, cwd, {Tag.TARGET: target}))

    async def chmod(self, path: Path, mode: int, *, user: str = "", cwd: str = "", recursive: bool = False) -> int:
        """How many were changed. `recursive` follows no link, the given one included."""
        return await self._count(_request(Op.CHMOD, path, user, cwd, {Tag.MODE: mode}, recursive=recursive))

    async def chown(
        self,
        path: Path,
        *,
        owner: str | None = None,
        group: str | None = None,
        user: str = "",
        cwd: str = "",
        follow: bool = True,
        recursive: bool = False,
    ) -> int:
        """How many were changed. Owner and group are names in the sandbox or digits."""
        fields = {Tag.OWNER: owner, Tag.GROUP: group}
        return await self._count(_request(Op.CHOWN, path, user, cwd, fields, follow=follow, recursive=recursive))

    @asynccontextmanager
    async def pack(
        self, path: Path, *, user: str = "", cwd: str = "", hardlinks: bool = True
    ) -> AsyncIterator[PackReader]:
        """A directory and all in it as one stream. `hardlinks`: tell other names of a file from other files."""
        async with self._open(_request(Op.PACK, path, user, cwd, hardlinks=hardlinks)) as connection:
            yield PackReader(connection)

    @asynccontextmanager
    async def unpack(
        self, path: Path, *, user: str = "", cwd: str = "", parents: bool = False, owners: bool = False
    ) -> AsyncIterator[UnpackWriter]:
        """Fill a directory, made with `parents` if it is missing. `owners`: those in the stream count."""
        request = _request(Op.UNPACK, path, user, cwd, parents=parents, owners=owners)
        async with self._open(request) as connection:
            yield UnpackWriter(connection)

    async def _count(self, request: bytes) -> int:
        return (await self._call(request)).count or 0


async def _send_content(connection: Connection, content: AsyncIterator[bytes]) -> None:
    """DATA and END. init may answer early, with an error, and stop reading: the answer is what counts then."""
    try:
        async for part in content:
            await connection.send(data_frames(part))
        await connection.send(encode_frame(Op.END))
    except InitGone:
        return
