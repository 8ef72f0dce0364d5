"""Directories as archives, streamed in and out."""

from typing import Final

from sandboxd.http.kit.call import Call
from sandboxd.http.kit.compression import Gzip, decoded_body
from sandboxd.http.kit.streams import OwningBody
from sandboxd.http.native.files.operations import files_of
from sandboxd.http.native.files.views import (
    UnpackedFiles,
)
from sandboxd.http.server.stack import TrioResponse
from sandboxd.service.files.archives import ArchiveFormat, Packing
from sandboxd.service.files.operations import Files

_CONTENT_TYPES: Final = {
    ArchiveFormat.TAR: "application/x-tar",
    ArchiveFormat.TAR_GZ: "application/gzip",
    ArchiveFormat.ZIP: "application/zip",
}


async def unpack(call: Call) -> UnpackedFiles:
    query = call.query
    body = decoded_body(aiter(call.stream), call.headers)
    done = await files_of(call).unpack(
        query.place, body, query.format, spool=call.service.config.state_dir, owners=query.owners
    )
    return UnpackedFiles.at(query.place, entries=done.entries, bytes=done.bytes)


async def pack(call: Call) -> TrioResponse:
    body = ArchiveBody(files_of(call), call.query.place, call.query.format)
    await body.open()
    return TrioResponse(body, content_type=_CONTENT_TYPES[call.query.format])


class ArchiveBody(OwningBody):
    """A directory as a response body. Owns: the transfer, from open() until the response ended."""

    def __init__(self, files: Files, path: bytes, format_: ArchiveFormat) -> None:
        super().__init__()
        self._source = files.pack(path, format_)
        self._compressed = format_ is ArchiveFormat.TAR_GZ
        self._chunks: Packing | Gzip

    async def open(self) -> None:
        """Begin before the response does, so that a missing directory is a 404."""
        packing = await self._stack.enter_async_context(self._source)
        self._chunks = Gzip(packing) if self._compressed else packing

    async def __anext__(self) -> bytes:
        return await anext(self._chunks)
