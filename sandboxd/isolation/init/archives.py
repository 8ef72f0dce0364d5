"""Directories through sandbox-init as one stream, both ways: many small files cost one connection, not one each."""

from dataclasses import dataclass
from typing import Final

from sandboxd.isolation.init.connection import Connection, InitGone, error_of
from sandboxd.isolation.init.messages import Done, Entry, encode_fields
from sandboxd.isolation.init.wire import MAX_DATA, FileType, Op, Tag, WireError, encode_frame

_END: Final = encode_frame(Op.END)


class PackReader:
    """Iterate for what init packs: an Entry, and after that of a regular file its content in pieces of bytes.

    The pieces of a file are exactly as long together as its entry says: one that is not raises WireError.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._left = 0

    def __aiter__(self) -> "PackReader":
        return self

    async def __anext__(self) -> Entry | bytes:
        frame = await self._connection.receive()
        if frame.op is Op.DATA and 0 < len(frame.payload) <= self._left:
            self._left -= len(frame.payload)
            return frame.payload
        if frame.op is Op.ERROR:
            raise error_of(frame)
        if self._left == 0 and frame.op is Op.ENTRY:
            entry = Entry.decode(frame.payload)
            self._left = entry.size if entry.file_type is FileType.REGULAR else 0
            return entry
        if self._left == 0 and frame.op is Op.END:
            raise StopAsyncIteration
        raise WireError(f"cannot go on: {frame.op.name} in a packed directory")


@dataclass(frozen=True, slots=True, kw_only=True)
class PutEntry:
    """Something to be made: `path` is relative, with nothing but names in it."""

    path: bytes
    file_type: FileType
    mode: int
    mtime_ns: int
    target: bytes = b""
    uid: int = 0
    gid: int = 0

    def encode(self) -> bytes:
        """Raises: ValueError for what the protocol cannot say."""
        fields = {
            Tag.PATH: self.path,
            Tag.FILE_TYPE: self.file_type,
            Tag.MODE: self.mode,
            Tag.MTIME_NS: self.mtime_ns,
            Tag.TARGET: self.target,
            Tag.UID: self.uid,
            Tag.GID: self.gid,
        }
        return encode_fields(Op.PUT, fields)


class UnpackWriter:
    """Send frames made by PutEntry.encode and data_frames, then `finish`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def send(self, frames: bytes) -> None:
        """Raises: InitError when init has refused already, InitGone."""
        try:
            await self._connection.send(frames)
        except InitGone:
            # It answered early and hung up.
            await self._connection.expect(Done)
            raise

    async def finish(self) -> Done:
        """How many entries and bytes it made. Raises: InitError, InitGone."""
        await self.send(_END)
        return await self._connection.expect(Done)


def data_frames(part: bytes) -> bytes:
    """Bytes of any length as DATA frames."""
    if len(part) <= MAX_DATA:
        return encode_frame(Op.DATA, part) if part else b""
    return b"".join(encode_frame(Op.DATA, part[start : start + MAX_DATA]) for start in range(0, len(part), MAX_DATA))
