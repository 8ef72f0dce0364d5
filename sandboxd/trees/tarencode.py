"""Writes tar archives piece by piece, without I/O: ustar headers, pax records for what those cannot say."""

import tarfile
from typing import Final

from sandboxd.trees.tarstream import BLOCK, ERROR_RECORD, EntryType, TarEntry

_TYPES: Final = {
    EntryType.FILE: tarfile.REGTYPE,
    EntryType.DIRECTORY: tarfile.DIRTYPE,
    EntryType.SYMLINK: tarfile.SYMTYPE,
    EntryType.HARDLINK: tarfile.LNKTYPE,
    EntryType.FIFO: tarfile.FIFOTYPE,
}
_END: Final = bytes(2 * BLOCK)
_MOST_FILLED: Final = 1 << 20
"""Bytes that a file may lack for an error to be told behind it."""


class TarEncoder:
    """For each entry: `begin`, `content` of exactly its size, `end`; then `finish`. All return bytes to be sent."""

    def __init__(self) -> None:
        self._size = 0
        self._left = 0

    def begin(self, entry: TarEntry, *, owner: str = "", group: str = "") -> bytes:
        """b"" for what an archive cannot hold; that has no content either."""
        kind = _TYPES.get(entry.type)
        self._size = self._left = 0
        if kind is None:
            return b""
        info = tarfile.TarInfo(_text(entry.path))
        info.type = kind
        info.mode, info.uid, info.gid = entry.mode, entry.uid, entry.gid
        info.uname, info.gname = owner, group
        # Whole seconds fit the header; fractions would cost every file a kilobyte.
        info.mtime = entry.mtime_ns // 1_000_000_000
        info.linkname = _text(entry.link)
        self._size = self._left = info.size = entry.size if entry.type is EntryType.FILE else 0
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")

    def content(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data

    def end(self) -> bytes:
        padding = bytes(-self._size % BLOCK)
        self._size = self._left = 0
        return padding

    def finish(self) -> bytes:
        return _END

    def fail(self, reason: str) -> bytes:
        """Say why the archive ends here: no reader takes it for complete, and ours says why.

        Only where a header can stand: in the middle of a file that lacks much there is nothing to say.
        """
        if self._left > _MOST_FILLED:
            return b""
        rest = bytes(self._left) + self.end()
        return rest + tarfile.TarInfo.create_pax_global_header({ERROR_RECORD.decode(): reason})


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
