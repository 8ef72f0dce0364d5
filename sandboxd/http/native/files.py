"""Files, streamed in and out."""

from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from quart import request
from quart.wrappers.response import ResponseBody

from sandboxd.http.native.file_schemas import Uploaded
from sandboxd.http.routes import Call
from sandboxd.http.stack import TrioResponse
from sandboxd.isolation.init_files import FileReader
from sandboxd.service import files
from sandboxd.service.entry import Entry


async def upload(call: Call, sandbox: str) -> Uploaded:
    entry = call.service.sandboxes.entry(sandbox)
    size = await files.upload(
        entry,
        call.query.path,
        aiter(request.body),
        user=call.query.user or entry.sandbox.spec.user,
        mode=int(call.query.mode, 8),
        parents=call.query.parents,
    )
    return Uploaded(path=call.query.path, size=size)


async def download(call: Call, sandbox: str) -> TrioResponse:
    entry = call.service.sandboxes.entry(sandbox)
    body = _FileBody(entry, call.query.path, call.query.user or entry.sandbox.spec.user)
    size = await body.open()
    return TrioResponse(body, headers={"content-length": str(size)}, content_type="application/octet-stream")


class _FileBody(ResponseBody):
    """A file as a response body. Owns: the transfer, from open() until the response ended."""

    def __init__(self, entry: Entry, path: str, user: str) -> None:
        self._source = files.download(entry, path, user=user)
        self._stack = AsyncExitStack()
        self._reader: FileReader
        self._left = 0

    async def open(self) -> int:
        """Begin before the response does, so that a missing file is a 404. The size that is promised."""
        self._reader = await self._stack.enter_async_context(self._source)
        self._left = self._reader.size
        return self._left

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(exc_type, exc, tb)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Never more than was promised: the file may grow while it is read."""
        if not self._left:
            raise StopAsyncIteration
        chunk = (await anext(self._reader))[: self._left]
        self._left -= len(chunk)
        return chunk
