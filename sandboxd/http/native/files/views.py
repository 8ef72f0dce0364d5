"""What is told of files."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Self

from pydantic import Field

from sandboxd.http.kit.encoding import to_base64
from sandboxd.http.native.fields import Response
from sandboxd.service.files.values import FileInfo, FileKind, Listing

OnlyIfGiven = Annotated[str | None, Field(exclude_if=lambda value: value is None)]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def show(path: bytes) -> str:
    return path.decode("utf-8", "replace")


def exact(path: bytes) -> str | None:
    """Its base64, where text does not say it."""
    try:
        path.decode()
    except UnicodeDecodeError:
        return to_base64(path)
    return None


class Located(Response):
    path: str
    """as asked for"""
    path_b64: OnlyIfGiven = None
    """where `path` is not all there is to say"""

    @classmethod
    def at(cls, path: bytes, **fields: Any) -> Self:
        return cls.model_construct(None, path=show(path), path_b64=exact(path), **fields)


class FileView(Located):
    name: str
    type: FileKind
    size: int
    mode: str
    """permission bits, octal"""
    owner: str
    group: str
    uid: int
    gid: int
    modified_at: datetime
    changed_at: datetime
    """its content or its attributes"""
    target: str | None = None
    """what a symbolic link says"""
    target_b64: OnlyIfGiven = None
    real_path: OnlyIfGiven = None
    """where the path leads, links resolved"""

    @classmethod
    def of(cls, info: FileInfo) -> Self:
        name = info.path.rstrip(b"/").rpartition(b"/")[2] or b"/"
        return cls.at(
            info.path,
            name=show(name),
            type=info.kind,
            size=info.size,
            mode=f"{info.mode:04o}",
            owner=info.owner,
            group=info.group,
            uid=info.uid,
            gid=info.gid,
            modified_at=_EPOCH + timedelta(microseconds=info.mtime_ns // 1000),
            changed_at=_EPOCH + timedelta(microseconds=info.ctime_ns // 1000),
            target=None if info.target is None else show(info.target),
            target_b64=None if info.target is None else exact(info.target),
            real_path=None if info.real_path is None else show(info.real_path),
        )


class FileList(Located):
    entries: list[FileView]
    """depth first, in the order of their names' bytes; `path` is relative to the directory"""
    next_cursor: str | None = None
    """there is more: ask again with it as `cursor`"""

    @classmethod
    def of(cls, path: bytes, listing: Listing) -> Self:
        return cls.at(
            path,
            entries=[FileView.of(info) for info in listing.entries],
            next_cursor=None if listing.next_after is None else to_base64(listing.next_after),
        )


class Exists(Located):
    exists: bool
    type: FileKind | None = None


class FileText(Located):
    content: str
    size: int


class FileBytes(Located):
    content_b64: str
    size: int


class Written(Located):
    size: int
    """bytes written"""


class Changed(Located):
    count: int
    """how many things were made, removed or changed"""


class Moved(Located):
    target: str
    target_b64: OnlyIfGiven = None

    @classmethod
    def between(cls, path: bytes, target: bytes, **fields: Any) -> Self:
        return cls.at(path, target=show(target), target_b64=exact(target), **fields)


class CopiedFiles(Moved):
    entries: int
    bytes: int


class UploadState(Located):
    offset: int
    """how much of the upload has come: where the next piece begins"""
    complete: bool = False


class UnpackedFiles(Located):
    entries: int
    bytes: int
