"""Files of a sandbox, looked at and changed through sandbox-init: the daemon opens no path that a sandbox controls.

Every operation happens inside, as one of the sandbox's users, whom permissions, symbolic links and races concern as
they do any process there. A relative path begins at the sandbox's working directory, or at the user's home where it
has none.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path as HostPath
from typing import Final, TypedDict

from sandboxd.errors import RequestError, TooLarge
from sandboxd.isolation.init.client import InitClient
from sandboxd.isolation.init.files import FileReader
from sandboxd.isolation.init.files import WriteOptions as WriteOptions
from sandboxd.service.files.archives import ArchiveFormat, Packing, Unpacked, encoder_of, unpack_into
from sandboxd.service.files.errors import file_errors
from sandboxd.service.files.values import FileInfo, Listing, Path
from sandboxd.service.output_memory import Share
from sandboxd.service.sandboxes.entry import Entry

MAX_WHOLE_FILE: Final = 32 * 1024 * 1024
"""Bytes of a file that is read or written in one piece."""
ATOMIC: Final = WriteOptions(atomic=True)


@dataclass(frozen=True, slots=True)
class Copied:
    entries: int
    bytes: int


class _Who(TypedDict):
    user: str
    cwd: str


class Files:
    """The files of one sandbox as one of its users sees them. Holds nothing: make one for every request.

    All methods raise: Conflict (also when the sandbox does not run), NotFound, Forbidden, Unprocessable, Unavailable,
    SandboxLost.
    """

    def __init__(self, entry: Entry, *, user: str = "", cwd: str | None = None) -> None:
        """By default the sandbox's user and working directory; an empty `cwd` is the user's home."""
        self._entry = entry
        spec = entry.sandbox.spec
        self._who = _Who(user=user or spec.user, cwd=spec.workdir if cwd is None else cwd)

    @contextlib.asynccontextmanager
    async def _init(self) -> AsyncIterator[InitClient]:
        async with self._entry.use() as running:
            with file_errors(self._entry):
                yield running.init

    # -- looking

    async def stat(self, path: Path, *, follow: bool = True) -> FileInfo:
        async with self._init() as init:
            return FileInfo.of(await init.stat(path, **self._who, follow=follow))

    async def find(self, path: Path, *, follow: bool = True) -> FileInfo | None:
        """What is there, or None. A path through something that is no directory leads to nothing either."""
        try:
            return await self.stat(path, follow=follow)
        except RequestError as error:
            if error.kind in {"not_found", "not_a_directory"}:
                return None
            raise

    async def list(self, path: Path, *, depth: int, limit: int, after: bytes = b"") -> Listing:
        """Up to `limit` entries below a directory, `depth` levels deep (1: its own), behind the path `after`.

        They come depth first in the order of their names' bytes; links are not followed, directories that may not be
        read look empty.
        """
        async with (
            self._init() as init,
            init.list_dir(path, **self._who, depth=depth, limit=limit, after=after) as reader,
        ):
            entries = tuple([FileInfo.of(entry) async for entry in reader])
        return Listing(entries=entries, next_after=entries[-1].path if reader.truncated and entries else None)

    # -- contents

    @contextlib.asynccontextmanager
    async def open(self, path: Path, *, offset: int = 0, length: int | None = None) -> AsyncIterator[FileReader]:
        """A regular file: what it is, and its bytes as they come."""
        async with (
            self._init() as init,
            init.read_file(path, **self._who, offset=offset, length=length) as reader,
        ):
            yield reader

    async def read(self, path: Path, *, share: Share, offset: int = 0, length: int | None = None) -> bytes:
        """A regular file, or a part of it, of at most MAX_WHOLE_FILE bytes, in a share of the memory for output.

        Raises: TooLarge, TooManyRequests, Unavailable.
        """
        wanted = MAX_WHOLE_FILE + 1 if length is None else min(length, MAX_WHOLE_FILE + 1)
        content = bytearray()
        async with self.open(path, offset=offset, length=wanted) as reader:
            async for part in reader:
                share.require(len(content) + len(part))
                content += part
        if len(content) > MAX_WHOLE_FILE:
            raise TooLarge(
                f"cannot read more than {MAX_WHOLE_FILE} bytes of a file in one piece; download it instead, or read "
                "parts of it",
                kind="file_too_large",
                limit=MAX_WHOLE_FILE,
            )
        return bytes(content)

    async def write(self, path: Path, chunks: AsyncIterator[bytes], options: WriteOptions = ATOMIC) -> int:
        """Write a file of any size; how many bytes came.

        Atomic: it is written to a temporary file beside it, which is renamed when complete. Cancelled or failed, the
        file that was there before is untouched. Nothing is synced to disk: a crash of the host may lose it, as it may
        anything a sandbox has just written.
        """
        async with self._init() as init:
            return await init.write_file(path, chunks, **self._who, options=options)

    # -- uploads in pieces

    async def append_part(
        self, path: Path, chunks: AsyncIterator[bytes], *, offset: int, complete: bool, options: WriteOptions
    ) -> int:
        """Add to an upload, and with `complete` make it the file; returns how many bytes of it there are.

        It is collected in a hidden file beside its place, and what has come stays there whatever happens to the
        client. Raises: Conflict with `offset` when the piece does not begin where the one before ended.
        """
        options = replace(options, offset=offset, resume=True, atomic=complete)
        async with self._init() as init:
            return offset + await init.write_file(path, chunks, **self._who, options=options)

    async def part_size(self, path: Path) -> int:
        """How much of an upload has come. Raises: NotFound when none is under way."""
        async with self._init() as init:
            return (await init.stat(path, **self._who, follow=False, resume=True)).size

    async def drop_part(self, path: Path) -> None:
        """Give an upload up. Raises: NotFound."""
        async with self._init() as init:
            await init.remove(path, **self._who, resume=True)

    # -- directories as archives

    @contextlib.asynccontextmanager
    async def pack(self, path: Path, format_: ArchiveFormat) -> AsyncIterator[Packing]:
        """A directory and all in it: an archive's bytes as they come, to be compressed elsewhere for tar.gz.

        A file or directory that the user may not read ends it early, with the reason in the archive (tar only).
        """
        async with self._init() as init:
            hardlinks = format_ is not ArchiveFormat.ZIP
            async with init.pack(path, **self._who, hardlinks=hardlinks) as reader:
                packing = Packing(reader, encoder_of(format_))
                await packing.begin()
                yield packing

    async def unpack(
        self,
        path: Path,
        body: AsyncIterator[bytes],
        format_: ArchiveFormat,
        *,
        spool: HostPath,
        owners: bool = False,
    ) -> Unpacked:
        """Fill a directory, made if it is missing, with what is in an archive (see archives.py for what is refused).

        `owners`: who owns what in the archive counts; otherwise all is the user's. `spool`: a directory of the host
        where a zip archive waits until it is complete.
        """
        async with (
            self._init() as init,
            init.unpack(path, **self._who, parents=True, owners=owners) as writer,
        ):
            return await unpack_into(writer, body, format_, spool=spool)

    # -- names

    async def mkdir(self, path: Path, *, mode: int = 0o755, parents: bool = False) -> int:
        """How many directories were made; with `parents` an existing one is fine."""
        async with self._init() as init:
            return await init.mkdir(path, **self._who, mode=mode, parents=parents)

    async def remove(self, path: Path, *, recursive: bool = False) -> int:
        """How many things went; a link itself, never what it leads to."""
        async with self._init() as init:
            return await init.remove(path, **self._who, recursive=recursive)

    async def move(self, path: Path, target: Path, *, overwrite: bool = True, parents: bool = False) -> None:
        """Give something a new name. Where the kernel cannot rename (a directory of the image's, another mount) it
        is copied and then removed."""
        try:
            async with self._init() as init:
                await init.rename(path, target, **self._who, replace=overwrite, parents=parents)
        except RequestError as error:
            if error.kind != "other_file_system":
                raise
            await self.copy(path, target, overwrite=overwrite)
            await self.remove(path, recursive=True)

    async def copy(
        self, path: Path, target: Path, *, recursive: bool = True, overwrite: bool = True, parents: bool = False
    ) -> Copied:
        """Copy a file, a link as such, or a directory to a new name, which appears when the copy is complete.

        Modes and times are kept, owners too where the user is root. A directory takes nothing's place but an empty
        directory's.
        """
        async with self._init() as init:
            done = await init.copy(path, target, **self._who, recursive=recursive, replace=overwrite, parents=parents)
        return Copied(done.count or 0, done.bytes or 0)

    async def symlink(self, path: Path, target: Path) -> None:
        async with self._init() as init:
            await init.symlink(path, target, **self._who)

    # -- attributes

    async def chmod(self, path: Path, mode: int, *, recursive: bool = False) -> int:
        """How many were changed. `recursive` follows no link."""
        async with self._init() as init:
            return await init.chmod(path, mode, **self._who, recursive=recursive)

    async def chown(
        self, path: Path, *, owner: str | None, group: str | None, recursive: bool = False, follow: bool = True
    ) -> int:
        """How many were changed. Owner and group are names in the sandbox or digits. `recursive` follows no link."""
        async with self._init() as init:
            return await init.chown(path, **self._who, owner=owner, group=group, recursive=recursive, follow=follow)
