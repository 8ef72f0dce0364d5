"""Unpacks tar archives that strangers made into a directory that only the daemon reaches.

The policy, entry by entry; copies of directories (treecopy) follow it too:

    names             relative, without "..", at most 255 bytes each, 256 deep; OCI whiteouts (.wh.*) refused
    ancestors         directories made by this archive; symbolic links are never followed
    hard links        only to a file or symbolic link unpacked before
    devices           refused, except below /dev where they are dropped: a sandbox has a /dev of its own
    sockets           dropped: nobody listens on them any more
    setuid, setgid    kept as mode bits; they have no effect under no_new_privs, which every sandbox has
    owners            0..65535, anything else refused
    repeated entries  a later file replaces an earlier one; a change of type is refused
    xattrs            user.* kept, overlayfs's refused, the rest dropped (see treewriter)
    size, count       bounded by UnpackLimits, holes of sparse files included
"""

from typing import IO, Final

from sandboxd.trees.decompress import decompressed
from sandboxd.trees.tarstream import ArchiveError, EntryType, TarEntry, TarReader, show
from sandboxd.trees.treewriter import Metadata, Path, TreeWriter, UnpackLimits, UnpackSummary

_WHITEOUT: Final = b".wh."
_IMAGE_FORMAT: Final = frozenset({b"oci-layout", b"manifest.json", b"index.json"})
"""Files at the top of an OCI or Docker image archive."""


def unpack(archive: IO[bytes], root: int, *, id_base: int = 0, limits: UnpackLimits | None = None) -> UnpackSummary:
    """Unpack a tar archive, plain or compressed, into the empty directory open as `root`.

    `archive` is read once from where it stands, so it may be a pipe. Raises ArchiveError for a hostile or broken
    archive and ArchiveTooLarge for one over the limits; what was written until then is left to the caller.
    """
    with (
        decompressed(archive) as source,
        TreeWriter(root, id_base=id_base, limits=limits or UnpackLimits()) as writer,
    ):
        reader = TarReader(source)
        for entry in reader:
            _write(writer, entry, reader)
        return writer.finish()


def _write(writer: TreeWriter, entry: TarEntry, reader: TarReader) -> None:
    path = split_path(entry.path)
    _refuse_image_format(path, entry)
    metadata = Metadata(mode=entry.mode, uid=entry.uid, gid=entry.gid, mtime_ns=entry.mtime_ns, xattrs=entry.xattrs)
    match entry.type:
        case EntryType.FILE:
            writer.file(path, metadata, size=entry.size, segments=reader.segments())
        case EntryType.DIRECTORY:
            writer.directory(path, metadata)
        case EntryType.SYMLINK:
            writer.symlink(path, metadata, target=entry.link)
        case EntryType.HARDLINK:
            writer.hardlink(path, target=split_path(entry.link))
        case EntryType.FIFO:
            writer.fifo(path, metadata)
        case EntryType.SOCKET:
            writer.drop("sockets")
        case EntryType.CHARACTER_DEVICE | EntryType.BLOCK_DEVICE:
            drop_device(writer, path, entry.type.value)


def split_path(name: bytes) -> Path:
    """The components of an archive's name. Raises ArchiveError for one that is not plainly inside the tree."""
    path = split_layer_path(name)
    if any(part.startswith(_WHITEOUT) for part in path):
        raise ArchiveError(
            f"cannot unpack {show(name)}: it is a whiteout, so this is one layer of a container image; "
            "import the flattened file system instead (docker export, podman export)"
        )
    return path


def split_layer_path(name: bytes) -> Path:
    """The same for a snapshot of ours, in which no name means anything but itself."""
    if name.startswith(b"/"):
        raise ArchiveError(f"cannot unpack {show(name)}: its name is absolute")
    path = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if b".." in path:
        raise ArchiveError(f'cannot unpack {show(name)}: its name contains ".."')
    return path


def _refuse_image_format(path: Path, entry: TarEntry) -> None:
    if len(path) == 1 and path[0] in _IMAGE_FORMAT and entry.type is EntryType.FILE:
        raise ArchiveError(
            f"cannot unpack the archive: {show(path[0])} at its top says that it is an OCI or Docker image, "
            "not a root file system; import the flattened file system instead (docker export, podman export)"
        )


def drop_device(writer: TreeWriter, path: Path, what: str) -> None:
    """Count a device below /dev as left out; refuse one anywhere else."""
    if path[:1] != (b"dev",):
        raise ArchiveError(
            f"cannot unpack {show(b'/'.join(path))}: it is a {what}, and devices outside /dev are refused; "
            "leave it out of the archive"
        )
    writer.drop("devices below /dev")
