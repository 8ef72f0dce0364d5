"""Files in Akira's words: one up, one down, of any size."""

from collections.abc import AsyncGenerator, AsyncIterator

import trio

from sandboxd.errors import InvalidRequest
from sandboxd.http.akira.schemas import Upload, Uploaded
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.streams import stream_response
from sandboxd.http.kit.validation import validate_message
from sandboxd.http.server.stack import TrioResponse
from sandboxd.service.files.operations import Files, WriteOptions

_AS_ONE_STEP = WriteOptions(parents=True, atomic=True)


async def upload(call: Call) -> Uploaded:
    files = Files(call.entry)
    if call.query.path is not None:
        return await _write(files, call.query.path, aiter(call.stream))
    body = validate_message(Upload, await call.stream.read(limit=call.service.config.http.max_body_bytes))
    call.check_again()
    return await _write(files, body.path, _one(body.data()))


async def _write(files: Files, path: str, content: AsyncIterator[bytes]) -> Uploaded:
    size = await files.write(path.encode("utf-8", "surrogateescape"), content, _AS_ONE_STEP)
    return Uploaded(path=path, size=size)


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def download(call: Call) -> TrioResponse:
    files = Files(call.entry)
    path = call.query.path.encode("utf-8", "surrogateescape")
    found = await files.stat(path)
    if found.kind != "file":
        raise InvalidRequest(f"cannot download {call.query.path!r}: it is no file but a {found.kind}")
    return stream_response(
        call.conversation, _content(files, path), encode=bytes, content_type="application/octet-stream"
    )


@trio.as_safe_channel
async def _content(files: Files, path: bytes) -> AsyncGenerator[bytes, None]:
    async with files.open(path) as reader:
        async for part in reader:
            yield part
