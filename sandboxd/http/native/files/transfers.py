"""Files of any size, streamed in and out."""

from dataclasses import replace
from types import TracebackType
from typing import Final

from quart.wrappers import Response
from quart.wrappers.response import ResponseBody
from werkzeug.datastructures import Headers

from sandboxd.errors import Conflict
from sandboxd.http.kit import ranges
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.compression import Gzip, decoded_body, wants_gzip
from sandboxd.http.kit.streams import OwningBody
from sandboxd.http.native.files.operations import files_of
from sandboxd.http.native.files.schemas import UploadPartQuery, UploadQuery
from sandboxd.http.native.files.views import (
    Located,
    UploadState,
    Written,
    show,
)
from sandboxd.http.server.stack import TrioResponse
from sandboxd.service.files.operations import Files, WriteOptions
from sandboxd.service.files.values import FileHeader, FileInfo, version_of

# Files of at most this are read before the answer begins, so that its length is true: those in /proc say 0, those in
# /sys 4096, whatever is in them.
READ_AHEAD: Final = 64 * 1024
# A file that changes between the look at it and the reading is looked at again.
ATTEMPTS: Final = 5


# -- uploads ------------------------------------------------------------------------------------------------------


async def upload(call: Call) -> Written:
    body = decoded_body(aiter(call.stream), call.headers)
    options = replace(_options(call.query), atomic=call.query.atomic)
    size = await files_of(call).write(call.query.place, body, options)
    return Written.at(call.query.place, size=size)


async def upload_part(call: Call) -> UploadState:
    query = call.query
    body = decoded_body(aiter(call.stream), call.headers)
    options = _options(query)
    offset = await files_of(call).append_part(
        query.place, body, offset=query.offset, complete=query.complete, options=options
    )
    return UploadState.at(query.place, offset=offset, complete=query.complete)


def _options(query: UploadQuery | UploadPartQuery) -> WriteOptions:
    return WriteOptions(mode=None if query.mode is None else int(query.mode, 8), parents=query.parents)


async def upload_state(call: Call) -> UploadState:
    offset = await files_of(call).part_size(call.query.place)
    return UploadState.at(call.query.place, offset=offset, complete=False)


async def drop_upload(call: Call) -> Located:
    await files_of(call).drop_part(call.query.place)
    return Located.at(call.query.place)


# -- downloads ----------------------------------------------------------------------------------------------------


async def download(call: Call) -> Response:
    files, path = files_of(call), call.query.place
    return await (_download_part if "Range" in call.headers else _download_whole)(call.headers, files, path)


async def _download_whole(headers: Headers, files: Files, path: bytes) -> Response:
    body = FileBody(files, path)
    plan = ranges.plan(_resource(headers, await body.open()), headers)
    if plan.has_body:
        return _with_body(plan, body)
    await body.close()
    return _without_body(plan)


async def _download_part(headers: Headers, files: Files, path: bytes) -> Response:
    """Where a part begins depends on the whole, which may be replaced between the look at it and the reading."""
    for _ in range(ATTEMPTS):
        info = await files.stat(path)
        plan = ranges.plan(_resource(headers, info), headers)
        if not plan.has_body:
            return _without_body(plan)
        body = FileBody(files, path, plan)
        if version_of(await body.open()) == version_of(info):
            return _with_body(plan, body)
        await body.close()
    raise Conflict(f"cannot read a part of {show(path)}: it keeps changing", kind="changing")


def _resource(headers: Headers, file: FileInfo | FileHeader) -> ranges.Resource:
    gzip = wants_gzip(headers) and "Range" not in headers
    encoding = {"content-encoding": "gzip"} if gzip else {}
    return ranges.Resource(
        size=file.size,
        version=version_of(file) + ("-gzip" if gzip else ""),
        modified=file.mtime_ns / 1e9,
        ranges=file.size > 0 and not gzip,
        headers={**encoding, "vary": "accept-encoding", "x-content-type-options": "nosniff"},
    )


def _without_body(plan: ranges.Plan) -> Response:
    return Response(b"", plan.status, dict(plan.headers), content_type="application/octet-stream")


def _with_body(plan: ranges.Plan, body: "FileBody") -> Response:
    headers = dict(plan.headers)
    compressed = "content-encoding" in headers
    if body.length is not None and not compressed:
        headers["content-length"] = str(body.length)
    source: ResponseBody = GzipBody(body) if compressed else body
    return TrioResponse(source, plan.status, headers, content_type="application/octet-stream")


class FileBody(OwningBody):
    """A file, or a part of it, as a response body. Owns: the transfer, from open() until the response ended."""

    def __init__(self, files: Files, path: bytes, part: ranges.Plan | None = None) -> None:
        super().__init__()
        self._part = part if part is not None and part.status == 206 else None
        offset, length = (self._part.offset, self._part.length) if self._part else (0, None)
        self._source = files.open(path, offset=offset, length=length)
        self._ahead = b""
        self.length: int | None = None
        """what the body will have; None: nobody knows"""

    async def open(self) -> FileHeader:
        """Begin before the response does, so that a missing file is a 404. What was opened."""
        self._reader = await self._stack.enter_async_context(self._source)
        header = self._reader.header
        self.length = self._part.length if self._part else header.size
        if not self._part and header.size <= READ_AHEAD:
            try:
                await self._read_ahead()
            except BaseException:
                await self.close()
                raise
        self._left = self.length
        return header

    async def _read_ahead(self) -> None:
        async for part in self._reader:
            self._ahead += part
            if len(self._ahead) > READ_AHEAD:
                # More than was told: in /proc that is the rule, anywhere else the file is growing.
                self.length = self.length or None
                return
        self.length = len(self._ahead)

    async def close(self) -> None:
        await self._stack.aclose()

    async def __anext__(self) -> bytes:
        """As much as was promised: the file may grow while it is read. Raises: Conflict when it shrinks."""
        if self._left == 0:
            raise StopAsyncIteration
        chunk, self._ahead = self._ahead or await anext(self._reader, b""), b""
        if not chunk and self._left is None:
            raise StopAsyncIteration
        if not chunk:
            raise Conflict(f"cannot go on: {self._left} bytes of the file went while it was read", kind="changing")
        if self._left is not None:
            chunk = chunk[: self._left]
            self._left -= len(chunk)
        return chunk


class GzipBody(ResponseBody):
    """Another body, compressed. Owns: that one."""

    def __init__(self, body: FileBody) -> None:
        self._body = body

    async def __aenter__(self) -> Gzip:
        return Gzip(await self._body.__aenter__())

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._body.__aexit__(exc_type, exc, tb)
