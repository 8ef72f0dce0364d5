"""What the file operations give back: frozen values. Names and paths are bytes, as the sandbox has them."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Self

from sandboxd.isolation.init.messages import Entry as WireEntry
from sandboxd.isolation.init.messages import FileHeader as FileHeader
from sandboxd.isolation.init.wire import FileType

Path = str | bytes
"""text is encoded as UTF-8, lone surrogates as the bytes they stand for"""


class FileKind(enum.StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    CHARACTER_DEVICE = "character_device"
    BLOCK_DEVICE = "block_device"
    UNKNOWN = "unknown"


_KINDS: Final[Mapping[FileType, FileKind]] = MappingProxyType(
    {
        FileType.REGULAR: FileKind.FILE,
        FileType.DIRECTORY: FileKind.DIRECTORY,
        FileType.SYMLINK: FileKind.SYMLINK,
        FileType.FIFO: FileKind.FIFO,
        FileType.SOCKET: FileKind.SOCKET,
        FileType.CHARACTER: FileKind.CHARACTER_DEVICE,
        FileType.BLOCK: FileKind.BLOCK_DEVICE,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    path: bytes
    """absolute, or relative to the directory that was listed"""
    kind: FileKind
    size: int
    mode: int
    """permission bits, setuid, setgid and sticky"""
    uid: int
    gid: int
    owner: str
    """"" where the sandbox has no name for the number"""
    group: str
    mtime_ns: int
    ctime_ns: int
    target: bytes | None = None
    """what a symbolic link says"""
    real_path: bytes | None = None
    """where the path leads, links resolved, when they were followed"""

    @classmethod
    def of(cls, entry: WireEntry) -> Self:
        return cls(
            path=_bytes(entry.path),
            kind=_KINDS.get(entry.file_type, FileKind.UNKNOWN),
            size=entry.size,
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            owner=entry.owner,
            group=entry.group,
            mtime_ns=entry.mtime_ns,
            ctime_ns=entry.ctime_ns,
            target=None if entry.target is None else _bytes(entry.target),
            real_path=_bytes(entry.real_path) if entry.real_path else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One page of a directory; `next_after` is the path to go on behind, None when this is the last page."""

    entries: tuple[FileInfo, ...]
    next_after: bytes | None


def version_of(file: FileInfo | FileHeader) -> str:
    """A word that changes whenever a file's content does (what HTTP calls a strong validator)."""
    return f"{file.size:x}-{file.mtime_ns:x}-{file.ctime_ns:x}"


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
