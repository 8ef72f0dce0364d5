"""The client's methods for files.

A path is text or bytes, absolute or relative to the sandbox's working directory; text may hold the surrogates by
which Python says names that are not UTF-8 (os.fsdecode).
"""

import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from sandboxd.client.calls import Caller, SandboxRef, body_headers, drop_none, json_of, sandbox_path, target_of
from sandboxd.client.http import Answer
from sandboxd.client.models import FileInfo, Unpacked, UploadState
from sandboxd.client.streams import Content, Pages, chunks_of

Path = str | bytes
ArchiveFormat = Literal["tar", "tar.gz", "zip"]
_ARCHIVE_TYPES = {"tar": "application/x-tar", "tar.gz": "application/gzip", "zip": "application/zip"}


class FileMethods(Caller):
    """`user` is who does it inside; by default the sandbox's user."""

    # Contents

    async def upload(
        self,
        sandbox: SandboxRef,
        path: Path,
        data: Content,
        *,
        size: int | None = None,
        mode: int | None = None,
        user: str | None = None,
        parents: bool = False,
        atomic: bool = True,
    ) -> int:
        """Write a file from bytes or a stream of any length, and return its size.

        `size`: what a stream will yield, if known. `mode`: permission bits. `parents`: make missing directories.
        `atomic`: it is complete or not there; otherwise the file itself is written, and keeps its hard links,
        extended attributes and ACLs.
        """
        query = _query(path, mode=_octal(mode), user=user, parents=parents, atomic=atomic)
        return int((await self._send("PUT", sandbox_path(sandbox, "files"), query, data, size))["size"])

    @asynccontextmanager
    async def download(
        self, sandbox: SandboxRef, path: Path, *, user: str | None = None, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[Answer]:
        """A file's content, or a part of it: `answer.size`, then iterate over `answer`, or `await answer.read()`."""
        target = target_of(sandbox_path(sandbox, "files"), _query(path, user=user))
        last = "" if length is None else offset + length - 1
        headers = [("Range", f"bytes={offset}-{last}")] if offset or length is not None else []
        async with self._pool.exchange("GET", target, headers=headers) as answer:
            yield answer

    async def upload_part(
        self,
        sandbox: SandboxRef,
        path: Path,
        data: Content,
        *,
        offset: int,
        complete: bool = False,
        size: int | None = None,
        mode: int | None = None,
        user: str | None = None,
        parents: bool = False,
    ) -> UploadState:
        """Add a piece to an upload that may be interrupted; with `complete` it becomes the file.

        Raises: ApiError of kind "offset_mismatch" whose details say at which `offset` to go on.
        """
        query = _query(path, offset=offset, complete=complete, mode=_octal(mode), user=user, parents=parents)
        answer = await self._send("PATCH", sandbox_path(sandbox, "files/upload"), query, data, size)
        return UploadState.read(answer)

    async def upload_state(self, sandbox: SandboxRef, path: Path, *, user: str | None = None) -> UploadState:
        """How much of an upload in pieces has come."""
        query = _query(path, user=user)
        return UploadState.read(await self._call("GET", sandbox_path(sandbox, "files/upload"), query=query))

    async def drop_upload(self, sandbox: SandboxRef, path: Path, *, user: str | None = None) -> None:
        """Give an upload in pieces up."""
        await self._call("DELETE", sandbox_path(sandbox, "files/upload"), query=_query(path, user=user))

    async def read_text(self, sandbox: SandboxRef, path: Path, *, user: str | None = None) -> str:
        """A text of at most 32 MiB. Raises: ApiError of kind "not_utf8" for what is none."""
        return str((await self._fs(sandbox, "read", path, user=user))["content"])

    async def read_bytes(self, sandbox: SandboxRef, path: Path, *, user: str | None = None) -> bytes:
        """A file of any size, in memory."""
        async with self.download(sandbox, path, user=user) as answer:
            return await answer.read()

    async def append(self, sandbox: SandboxRef, path: Path, data: bytes, *, user: str | None = None) -> None:
        """Add to a file, made if it is missing; at most 32 MiB."""
        content = b64encode(data).decode()
        await self._fs(sandbox, "write_bytes", path, content_b64=content, append=True, user=user)

    # Directories as archives

    async def upload_archive(
        self,
        sandbox: SandboxRef,
        path: Path,
        archive: Content,
        *,
        format: ArchiveFormat = "tar",  # noqa: A002 - what the API calls it
        size: int | None = None,
        user: str | None = None,
        owners: bool = False,
    ) -> Unpacked:
        """Fill a directory, made if it is missing, with what is in an archive; a tar may be compressed.

        `owners`: those that the archive names, which takes root; otherwise all is the user's.
        """
        query = _query(path, format=format, user=user, owners=owners)
        answer = await self._send("PUT", sandbox_path(sandbox, "archive"), query, archive, size, format)
        return Unpacked.read(answer)

    @asynccontextmanager
    async def download_archive(
        self,
        sandbox: SandboxRef,
        path: Path,
        *,
        format: ArchiveFormat = "tar",  # noqa: A002
        user: str | None = None,
    ) -> AsyncIterator[Answer]:
        """A directory and all in it: iterate over `answer` for the archive's bytes."""
        target = target_of(sandbox_path(sandbox, "archive"), _query(path, format=format, user=user))
        async with self._pool.exchange("GET", target) as answer:
            yield answer

    # Looking

    def list_files(
        self,
        sandbox: SandboxRef,
        path: Path = ".",
        *,
        depth: int = 1,
        user: str | None = None,
        page: int | None = None,
    ) -> AsyncIterator[FileInfo]:
        """What is in a directory, `depth` levels deep, in the order of the names' bytes; asked for in pages."""

        async def fetch(cursor: str | None) -> tuple[list[FileInfo], str | None]:
            answer = await self._fs(sandbox, "list", path, depth=depth, limit=page, cursor=cursor, user=user)
            return [FileInfo.read(raw) for raw in answer["entries"]], answer.get("next_cursor")

        return Pages(fetch)

    async def stat(
        self, sandbox: SandboxRef, path: Path, *, follow: bool = True, user: str | None = None
    ) -> FileInfo:
        return FileInfo.read(await self._fs(sandbox, "stat", path, follow=follow, user=user))

    async def exists(self, sandbox: SandboxRef, path: Path, *, follow: bool = True, user: str | None = None) -> bool:
        return bool((await self._fs(sandbox, "exists", path, follow=follow, user=user))["exists"])

    # Changing

    async def mkdir(
        self,
        sandbox: SandboxRef,
        path: Path,
        *,
        mode: int | None = None,
        parents: bool = True,
        user: str | None = None,
    ) -> int:
        """How many directories were made; with `parents` one that exists is fine."""
        return await self._count(sandbox, "mkdir", path, mode=_octal(mode), parents=parents, user=user)

    async def remove(
        self, sandbox: SandboxRef, path: Path, *, recursive: bool = False, user: str | None = None
    ) -> int:
        """How many things went."""
        return await self._count(sandbox, "remove", path, recursive=recursive, user=user)

    async def move(
        self, sandbox: SandboxRef, path: Path, target: Path, *, overwrite: bool = True, user: str | None = None
    ) -> None:
        """`target` is the new name, not a directory to move into."""
        await self._fs(sandbox, "move", path, **_place(target, "target"), overwrite=overwrite, user=user)

    async def copy(
        self, sandbox: SandboxRef, path: Path, target: Path, *, overwrite: bool = True, user: str | None = None
    ) -> None:
        """Copy a file or a directory; `target` is the copy's name, not a directory to copy into."""
        await self._fs(sandbox, "copy", path, **_place(target, "target"), overwrite=overwrite, user=user)

    async def symlink(self, sandbox: SandboxRef, path: Path, target: Path, *, user: str | None = None) -> None:
        """Make a link at `path` that says `target`."""
        await self._fs(sandbox, "symlink", path, **_place(target, "target"), user=user)

    async def chmod(
        self, sandbox: SandboxRef, path: Path, mode: int, *, recursive: bool = False, user: str | None = None
    ) -> int:
        """How many were changed."""
        return await self._count(sandbox, "chmod", path, mode=_octal(mode), recursive=recursive, user=user)

    async def chown(
        self,
        sandbox: SandboxRef,
        path: Path,
        *,
        owner: str | None = None,
        group: str | None = None,
        recursive: bool = False,
        user: str | None = None,
    ) -> int:
        """How many were changed; names in the sandbox, or numbers."""
        return await self._count(sandbox, "chown", path, owner=owner, group=group, recursive=recursive, user=user)

    # How

    async def _fs(self, sandbox: SandboxRef, operation: str, path: Path, **body: Any) -> dict[str, Any]:
        return await self._call("POST", sandbox_path(sandbox, f"fs/{operation}"), drop_none(**_place(path), **body))

    async def _count(self, sandbox: SandboxRef, operation: str, path: Path, **body: Any) -> int:
        return int((await self._fs(sandbox, operation, path, **body))["count"])

    async def _send(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        data: Content,
        size: int | None,
        format_: str = "",
    ) -> dict[str, Any]:
        chunks = chunks_of(data)
        length = len(data) if isinstance(data, bytes) else size
        headers = body_headers(_ARCHIVE_TYPES.get(format_, "application/octet-stream"), length)
        async with self._pool.exchange(method, target_of(path, query), chunks, headers) as answer:
            return await json_of(answer)


def _place(path: Path, name: str = "path") -> dict[str, str]:
    """A path as the API takes it: text, or base64 where text cannot say it."""
    data = path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_b64": urlsafe_b64encode(data).decode()}


def _query(path: Path, **body: Any) -> dict[str, str]:
    values = drop_none(**body)
    return {
        **_place(path),
        **{name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()},
    }


def _octal(mode: int | None) -> str | None:
    return None if mode is None else f"{mode:04o}"
