"""Snapshots as files: written for other places and times, and read again.

The format is that of kernel/layerarchive. The manifest names the image by its digest, which has to be there where the
file is read; whatever lies between image and snapshot goes into the file as one tree.
"""

import contextlib
import hashlib
import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Final, Protocol

import trio
from pydantic import ValidationError

from sandboxd import clock
from sandboxd.crashpoints import crash_point
from sandboxd.errors import InvalidRequest, NotFound, SandboxdError, TooLarge, Unavailable, Unprocessable, ungrouped
from sandboxd.kernel.overlay import UPPER
from sandboxd.model import Image, Snapshot
from sandboxd.service.snapshots.manifest import Manifest, manifest_of
from sandboxd.service.storage.layers import Layers
from sandboxd.service.storage.volume import opened
from sandboxd.threads import open_process, run_in_thread
from sandboxd.trees.layerarchive import read_layer, trailer
from sandboxd.trees.layerwriting import begin_archive
from sandboxd.trees.tarstream import ArchiveError, ArchiveTooLarge
from sandboxd.trees.treeclone import OPAQUE
from sandboxd.trees.treewriter import UnpackLimits

_CHUNK: Final = 1 << 18
_HEAD: Final = "head"
_NAMES: Final = "names"
PACK: Final = (
    "tar", "--create", "--format=posix", "--sparse", "--xattrs", "--xattrs-include=*", "--numeric-owner",
    "--no-recursion", "--null", "--verbatim-files-from",
)  # fmt: skip


class _Readable(Protocol):
    async def read(self, size: int, /) -> bytes: ...


class SnapshotTransfer:
    def __init__(
        self,
        *,
        layers: Layers,
        find_image: Callable[[str], Image],
        id_base: int,
        room: Callable[[str | None], int | None],
    ) -> None:
        """`room`: bytes that a new snapshot of a key's may have; it refuses by raising."""
        self._room = room
        self._layers = layers
        self._find_image = find_image
        self._id_base = id_base
        self._limiter = trio.CapacityLimiter(2)

    @contextlib.asynccontextmanager
    async def exported(self, snapshot: Snapshot) -> AsyncIterator[AsyncIterator[bytes]]:
        """The snapshot's file, piece by piece. Raises: NotFound, Unavailable.

        Should writing it fail half way the iterator raises, and what was sent lacks its last line.
        """
        self._layers.check_present(snapshot)
        files = self._layers.files
        with self._layers.held(snapshot.layer):
            place = files.new()
            try:
                tree = await run_in_thread(self._stage, snapshot, place)
                crash_point("export:staged")
                async with _packing(place, tree) as chunks:
                    yield chunks
            finally:
                files.abandon(place)

    def _stage(self, snapshot: Snapshot, place: Path) -> Path:
        """Fill the directory `place` with what _packing() needs. Returns the tree to pack: one made for this, there,
        where several layers have to become one, or directories of the image were renamed.
        """
        trees = self._layers.trees(snapshot.layer)
        image = self._find_image(snapshot.spec.image).rootfs
        alone = self._layers.files.alone(trees, image, check=trio.from_thread.check_cancelled)
        if alone is not None:
            alone.rename(place)
            tree = place
        else:
            place.mkdir(mode=0o700)
            tree = trees[0]
        text = manifest_of(snapshot, id_base=self._id_base)
        with open(place / _HEAD, "xb") as head, open(place / _NAMES, "xb") as names, opened(tree / UPPER) as upper:
            begin_archive(upper, text, head=head, names=names)
        return tree

    async def import_file(self, chunks: AsyncIterator[bytes], *, name: str | None, owner: str | None) -> Snapshot:
        """A snapshot of a file that arrives piece by piece; it belongs to the key `owner`. The name in the file is
        not taken over.

        Raises: InvalidRequest, TooLarge, Conflict, Unprocessable (its image is not here), Unavailable,
        TooManyRequests (the key's quota).
        """
        self._layers.check_name(name)
        room = self._room(owner)
        files = self._layers.files
        new = files.new()
        try:
            manifest, image = await self._receive(chunks, new, limits_within(room))
            self._room(owner)  # others may have come meanwhile
            layer = await self._layers.seal(new, None, check=trio.from_thread.check_cancelled)
        except BaseException:
            files.abandon(new)
            raise
        try:
            self._layers.check_name(name)
            snapshot = Snapshot(
                id="n" + secrets.token_hex(10),
                layer=layer.id,
                spec=manifest.sandbox_spec(image, owner=owner),
                created_at=clock.wall(),
                name=name,
                description=manifest.description,
                metadata=manifest.metadata,
            )
            await self._layers.record(layers=[layer], snapshots=[snapshot])
        except BaseException:
            files.discard(layer.id)
            raise
        crash_point("import:confirmed")
        return snapshot

    async def _receive(self, chunks: AsyncIterator[bytes], new: Path, limits: UnpackLimits) -> tuple[Manifest, Image]:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        found: list[tuple[Manifest, Image]] = []

        def unpack() -> None:
            with os.fdopen(read_end, "rb") as archive:
                found.append(self._unpack(archive, new, limits))

        with ungrouped():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pour, chunks, write_end)
                # Cancelled: the pipe closes, the file ends too early, and the thread returns.
                await run_in_thread(unpack, limiter=self._limiter)
                nursery.cancel_scope.cancel("the file was read")
        return found[0]

    def _unpack(self, archive: IO[bytes], new: Path, limits: UnpackLimits) -> tuple[Manifest, Image]:
        self._layers.files.make(new)
        os.mkdir(new / UPPER, 0o755)
        root = os.open(new / UPPER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        opaque = f"{'user' if self._id_base else 'trusted'}.{OPAQUE}".encode()
        found: list[tuple[Manifest, Image]] = []

        def accept(raw: bytes) -> int:
            found.append(self._checked(raw))
            crash_point("import:unpacking")
            return found[0][0].id_base

        try:
            read_layer(archive, root, accept=accept, opaque=opaque, id_base=self._id_base, limits=limits)
        except (ArchiveError, OSError) as error:
            raise _explained(error) from error
        finally:
            os.close(root)
        return found[0]

    def _checked(self, raw: bytes) -> tuple[Manifest, Image]:
        try:
            manifest = Manifest.model_validate_json(raw)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
            field = ".".join(str(part)[:100] for part in problem["loc"]) or "it"
            raise InvalidRequest(
                f"cannot import the snapshot: its manifest is not one of this daemon's: {field}: {problem['msg']}",
                kind="bad_archive",
            ) from error
        try:
            return manifest, self._find_image(manifest.spec.image)
        except NotFound as error:
            raise Unprocessable(
                f"cannot import the snapshot: it stands on the image {manifest.spec.image_name!r} with digest "
                f"{manifest.spec.image[:12]}…, which is not here; import or build that first",
                kind="image_missing",
                image=manifest.spec.image,
            ) from error


def limits_within(room: int | None) -> UnpackLimits:
    """The limits on an import for whom has `room` bytes left."""
    limits = UnpackLimits()
    return limits if room is None else replace(limits, size=min(limits.size, room))


@contextlib.asynccontextmanager
async def _packing(place: Path, tree: Path) -> AsyncIterator[AsyncIterator[bytes]]:
    """The head, tar's output, and the checksum behind it. A sealed tree does not change under tar."""
    async with await trio.open_file(place / _HEAD, "rb") as head:
        process = await open_process(
            [*PACK, "--directory", str(tree), f"--files-from={place / _NAMES}"],
            verb="export the snapshot",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield _summed(head, process)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                assert process.stdout is not None
                await process.stdout.aclose()


async def _summed(head: "_Readable", process: trio.Process) -> AsyncIterator[bytes]:
    assert process.stdout is not None
    digest = hashlib.sha256()
    while chunk := await head.read(_CHUNK) or await process.stdout.receive_some(_CHUNK):
        digest.update(chunk)
        yield bytes(chunk)
    if await process.wait() != 0:
        raise Unavailable("cannot export the snapshot: reading its tree failed")
    yield trailer(digest.hexdigest())


async def _pour(chunks: AsyncIterator[bytes], write_end: int) -> None:
    async with trio.lowlevel.FdStream(write_end) as pipe:
        with contextlib.suppress(trio.BrokenResourceError):  # the reader gave up, and says why
            async for chunk in chunks:
                await pipe.send_all(chunk)


def _explained(error: ArchiveError | OSError) -> SandboxdError:
    match error:
        case ArchiveTooLarge():
            return TooLarge(str(error), kind="archive_too_large")
        case ArchiveError():
            return InvalidRequest(str(error), kind="bad_archive")
    return Unavailable(f"cannot import the snapshot: {error.strerror or error}", kind="no_space")
