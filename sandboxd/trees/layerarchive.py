"""Reads a snapshot's file: a tar archive of one layer, then a line with the SHA-256 of every byte before it.

    manifest.json     what the snapshot is, for whoever reads (service/storage/transfer)
    upper/…           the layer's tree; whiteouts are character devices 0:0, opaque directories carry overlayfs's
                      attribute, sockets are empty files with star's record of their type

Strangers wrote it, so it is held to the policy of archives (kernel/archive), but for these things: the first two only
hide what lies below, and file capabilities and access control lists mean no more than what a sandbox's root may do.
Nothing else of overlayfs's is taken: a redirect would show what no layer has at that place.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import IO, Final

from sandboxd.trees.archive import split_layer_path
from sandboxd.trees.decompress import decompressed
from sandboxd.trees.idattributes import moved
from sandboxd.trees.tarstream import ArchiveError, ByteSource, EntryType, TarEntry, TarReader, show
from sandboxd.trees.treewriter import Metadata, TreeWriter, UnpackLimits, UnpackSummary

TRAILER: Final = b"sandboxd snapshot sha256 "
TRAILER_SIZE: Final = len(TRAILER) + 64 + 1
MANIFEST: Final = b"manifest.json"
TREE: Final = b"upper"
_MAX_MANIFEST: Final = 4 << 20
_OVERLAY: Final = (b"trusted.overlay.", b"user.overlay.")
_OPAQUE: Final = b"overlay.opaque"


def trailer(digest: str) -> bytes:
    return TRAILER + digest.encode() + b"\n"


class _Checked:
    """Hashes what is read, and holds the last line back. A ByteSource."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._hash = hashlib.sha256()
        self._ahead = b""

    def read(self, size: int, /) -> bytes:
        while len(self._ahead) < size + TRAILER_SIZE and (data := self._source.read(1 << 18)):
            self._ahead += data
        count = max(0, min(size, len(self._ahead) - TRAILER_SIZE))
        data, self._ahead = self._ahead[:count], self._ahead[count:]
        self._hash.update(data)
        return data

    def verify(self) -> None:
        """Read to the end and compare. Raises: ArchiveError."""
        while self.read(1 << 18):
            pass
        if self._ahead != trailer(self._hash.hexdigest()):
            raise ArchiveError(
                "cannot import the snapshot: its checksum is wrong or missing; it was cut short or changed"
            )


def read_layer(
    archive: IO[bytes],
    root: int,
    *,
    accept: Callable[[bytes], int],
    opaque: bytes,
    id_base: int = 0,
    limits: UnpackLimits | None = None,
) -> UnpackSummary:
    """Unpack a snapshot's file into the empty directory open as `root`.

    `accept` is given the manifest before anything is unpacked; it may refuse by raising, and returns what is to be
    taken off the owners in the archive. `opaque` is this daemon's name of overlayfs's attribute. Raises ArchiveError
    and ArchiveTooLarge, as unpack does; until it returns nothing that was written is to be believed.
    """
    with (
        decompressed(archive) as plain,
        TreeWriter(root, id_base=id_base, limits=limits or UnpackLimits()) as writer,
    ):
        source = _Checked(plain)
        reader = TarReader(source)
        entries = iter(reader)
        shift = accept(_manifest(next(entries, None), reader))
        for entry in entries:
            mine = replace(entry, uid=entry.uid - shift, gid=entry.gid - shift)
            _write(writer, mine, reader, opaque, _rights(entry, off=shift, on=id_base))
        source.verify()
        return writer.finish()


def _manifest(entry: TarEntry | None, reader: TarReader) -> bytes:
    if entry is None or entry.path != MANIFEST or entry.type is not EntryType.FILE or entry.size > _MAX_MANIFEST:
        raise ArchiveError("cannot import the snapshot: the file does not begin with a snapshot's manifest")
    return b"".join(data for _, data in reader.segments())


def _rights(entry: TarEntry, *, off: int, on: int) -> dict[bytes, bytes]:
    """Capabilities and access control lists, for ids as they are here."""
    found = {name: moved(name, value, off=off, on=on) for name, value in entry.xattrs.items()}
    return {name: value for name, value in found.items() if value is not None}


def _write(
    writer: TreeWriter, entry: TarEntry, reader: TarReader, opaque: bytes, rights: Mapping[bytes, bytes]
) -> None:
    path = _inside(entry.path)
    hides = any(name.endswith(_OPAQUE) for name in entry.xattrs if name.startswith(_OVERLAY))
    metadata = Metadata(
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime_ns=entry.mtime_ns,
        xattrs={name: value for name, value in entry.xattrs.items() if not name.startswith(_OVERLAY)},
        trusted_xattrs=rights,
    )
    match entry.type:
        case EntryType.FILE:
            writer.file(path, metadata, size=entry.size, segments=reader.segments())
        case EntryType.DIRECTORY:
            writer.directory(path, metadata, opaque=opaque if hides else None)
        case EntryType.SYMLINK:
            writer.symlink(path, metadata, target=entry.link)
        case EntryType.HARDLINK:
            writer.hardlink(path, target=_inside(entry.link))
        case EntryType.FIFO:
            writer.fifo(path, metadata)
        case EntryType.SOCKET:
            writer.socket(path, metadata)
        case EntryType.CHARACTER_DEVICE if entry.device == (0, 0):
            writer.whiteout(path, metadata)
        case _:
            raise ArchiveError(f"cannot import the snapshot: {show(entry.path)} in it is a {entry.type.value}")


def _inside(name: bytes) -> tuple[bytes, ...]:
    path = split_layer_path(name)
    if path[:1] != (TREE,):
        raise ArchiveError(f"cannot import the snapshot: {show(name)} lies outside of its tree")
    return path[1:]
