"""Files, one small operation at a time: …/fs/…"""

from collections.abc import AsyncIterator

from sandboxd.errors import Unprocessable
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.encoding import to_base64
from sandboxd.http.kit.large_json import JsonResponse, small_or_large
from sandboxd.http.native.files.schemas import WriteBytes, WriteText
from sandboxd.http.native.files.views import (
    Changed,
    CopiedFiles,
    Exists,
    FileBytes,
    FileList,
    FileText,
    FileView,
    Located,
    Moved,
    Written,
    show,
)
from sandboxd.service.files.operations import Files, WriteOptions
from sandboxd.service.files.values import FileKind


def files_of(call: Call) -> Files:
    """The sandbox's files as the user sees them whom the query or the body names."""
    user = (call.body or call.query).user
    return Files(call.entry, user=user)


async def list_directory(call: Call) -> FileList:
    wish = call.body
    listing = await files_of(call).list(wish.place, depth=wish.depth, limit=wish.limit, after=wish.after)
    return FileList.of(wish.place, listing)


async def stat(call: Call) -> FileView:
    return FileView.of(await files_of(call).stat(call.body.place, follow=call.body.follow))


async def exists(call: Call) -> Exists:
    found = await files_of(call).find(call.body.place, follow=call.body.follow)
    kind: FileKind | None = found.kind if found else None
    return Exists.at(call.body.place, exists=found is not None, type=kind)


async def read(call: Call) -> JsonResponse:
    wish = call.body
    share = call.service.output_memory.share(call.entry.sandbox.spec.owner)
    data = await files_of(call).read(wish.place, offset=wish.offset, length=wish.length, share=share)
    try:
        content = data.decode("utf-8", "replace" if wish.invalid == "replace" else "strict")
    except UnicodeDecodeError as error:
        raise Unprocessable(
            f"cannot read {show(wish.place)} as text: it is not UTF-8 (at byte {error.start}); use read_bytes, or "
            'say "invalid": "replace"',
            kind="not_utf8",
            position=error.start,
        ) from error
    view = FileText.at(wish.place, content=content, size=len(data))
    return small_or_large(view.model_dump(mode="json"), len(data), share=share)


async def read_bytes(call: Call) -> JsonResponse:
    wish = call.body
    share = call.service.output_memory.share(call.entry.sandbox.spec.owner)
    data = await files_of(call).read(wish.place, offset=wish.offset, length=wish.length, share=share)
    content = to_base64(data)
    view = FileBytes.at(wish.place, content_b64=content, size=len(data))
    return small_or_large(view.model_dump(mode="json"), len(data), share=share)


class _Piece:
    """A file's content in one piece. Not a generator, which somebody would have to close."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        data, self._data = self._data, b""
        if not data:
            raise StopAsyncIteration
        return data


async def write(call: Call) -> Written:
    wish: WriteText | WriteBytes = call.body
    options = WriteOptions(
        mode=None if wish.mode is None else int(wish.mode, 8),
        atomic=wish.atomic,
        append=wish.append,
        exclusive=not wish.overwrite,
        parents=wish.parents,
    )
    size = await files_of(call).write(wish.place, _Piece(wish.data()), options)
    return Written.at(wish.place, size=size)


async def mkdir(call: Call) -> Changed:
    wish = call.body
    count = await files_of(call).mkdir(wish.place, mode=int(wish.mode, 8), parents=wish.parents)
    return Changed.at(wish.place, count=count)


async def remove(call: Call) -> Changed:
    count = await files_of(call).remove(call.body.place, recursive=call.body.recursive)
    return Changed.at(call.body.place, count=count)


async def move(call: Call) -> Moved:
    wish = call.body
    files = files_of(call)
    await files.move(wish.place, wish.target_place, overwrite=wish.overwrite, parents=wish.parents)
    return Moved.between(wish.place, wish.target_place)


async def copy(call: Call) -> CopiedFiles:
    wish = call.body
    copied = await files_of(call).copy(
        wish.place, wish.target_place, recursive=wish.recursive, overwrite=wish.overwrite, parents=wish.parents
    )
    return CopiedFiles.between(wish.place, wish.target_place, entries=copied.entries, bytes=copied.bytes)


async def symlink(call: Call) -> Located:
    await files_of(call).symlink(call.body.place, call.body.target_place)
    return Located.at(call.body.place)


async def chmod(call: Call) -> Changed:
    wish = call.body
    count = await files_of(call).chmod(wish.place, int(wish.mode, 8), recursive=wish.recursive)
    return Changed.at(wish.place, count=count)


async def chown(call: Call) -> Changed:
    wish = call.body
    count = await files_of(call).chown(
        wish.place, owner=wish.owner, group=wish.group, recursive=wish.recursive, follow=wish.follow
    )
    return Changed.at(wish.place, count=count)
