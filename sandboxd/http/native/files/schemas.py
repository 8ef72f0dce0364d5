"""Files on the wire: what is asked; file_views.py has the answers.

A path is text, absolute or relative to the sandbox's working directory. One that is not UTF-8 is given as base64 of
its bytes instead (`path_b64`; both alphabets are taken), and given back so beside a `path` with U+FFFD in it.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from sandboxd.errors import TooLarge
from sandboxd.http.kit.encoding import base64_field, from_base64
from sandboxd.http.native.fields import Request, UserName
from sandboxd.service.files.archives import ArchiveFormat
from sandboxd.service.files.operations import MAX_WHOLE_FILE

MAX_PATH_BYTES = 4095
DEFAULT_PAGE = 5000
MAX_PAGE = 10_000
# The longest JSON body that carries a whole file: as base64, with some room for the rest.
MAX_FILE_BODY = MAX_WHOLE_FILE // 3 * 4 + 64 * 1024


def _path(text: str) -> str:
    _check(text.encode())
    return text


def _encoded_path(text: str) -> str:
    _check(from_base64(text))
    return text


def _check(path: bytes) -> None:
    if b"\0" in path:
        raise ValueError("it contains a NUL character")
    if not 0 < len(path) <= MAX_PATH_BYTES:
        raise ValueError(f"it must have 1 to {MAX_PATH_BYTES} bytes")


Path = Annotated[str, StringConstraints(max_length=MAX_PATH_BYTES), AfterValidator(_path)]
PathBase64 = Annotated[str, StringConstraints(max_length=6000), AfterValidator(_encoded_path)]
Mode = Annotated[str, StringConstraints(pattern=r"^0?[0-7]{3,4}$")]
Offset = Annotated[int, Field(ge=0, lt=2**63)]


# -- requests -----------------------------------------------------------------------------------------------------


class _ByUser(Request):
    user: UserName = ""
    """who does it; by default the sandbox's user"""


class FileQuery(_ByUser):
    path: Path | None = None
    path_b64: PathBase64 | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.path is None) == (self.path_b64 is None):
            raise ValueError("give either path or path_b64")
        return self

    @property
    def place(self) -> bytes:
        return from_base64(self.path_b64) if self.path_b64 is not None else (self.path or "").encode()


class _WithTarget(FileQuery):
    target: Path | None = None
    target_b64: PathBase64 | None = None

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.target is None) == (self.target_b64 is None):
            raise ValueError("give either target or target_b64")
        return self

    @property
    def target_place(self) -> bytes:
        return from_base64(self.target_b64) if self.target_b64 is not None else (self.target or "").encode()


class ListFiles(_ByUser):
    path: Path = "."
    path_b64: PathBase64 | None = None
    depth: Annotated[int, Field(ge=1, le=64)] = 1
    """how many levels below the directory"""
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE
    cursor: PathBase64 | None = None
    """`next_cursor` of the page before"""

    @property
    def place(self) -> bytes:
        return self.path.encode() if self.path_b64 is None else from_base64(self.path_b64)

    @property
    def after(self) -> bytes:
        return from_base64(self.cursor) if self.cursor else b""


class StatFile(FileQuery):
    follow: bool = True
    """tell of what a symbolic link leads to, not of the link"""


class ReadFile(FileQuery):
    offset: Offset = 0
    length: Annotated[int, Field(ge=0, le=MAX_WHOLE_FILE)] | None = None


class ReadText(ReadFile):
    invalid: Literal["error", "replace"] = "error"
    """what to do with bytes that are not UTF-8: refuse (422), or put U+FFFD for them"""


class _WriteFile(FileQuery):
    mode: Mode | None = None
    """permission bits, octal; by default those it has, 0644 for a new file"""
    parents: bool = True
    """make missing directories on the way"""
    append: bool = False
    """add to the file, instead of replacing what is in it"""
    overwrite: bool = True
    """false: 409 when it exists"""
    atomic: bool = False
    """have readers see the old file or the whole new one: written beside it and renamed, so it is another file then,
    without the hard links, extended attributes and ACLs of the old; by default the file itself is written, as editors
    and shells do"""

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if self.append and not self.overwrite:
            raise ValueError("append and overwrite: false exclude each other")
        if self.append and self.atomic:
            raise ValueError("append and atomic exclude each other: what is added is added to the file itself")
        return self


class WriteText(_WriteFile):
    content: str

    def data(self) -> bytes:
        """Raises: TooLarge."""
        return _bounded(self.content.encode())


class WriteBytes(_WriteFile):
    content_b64: str

    def data(self) -> bytes:
        """Raises: InvalidRequest, TooLarge."""
        return _bounded(base64_field(self.content_b64, "content_b64"))


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_WHOLE_FILE:
        raise TooLarge(
            f"cannot write {len(data)} bytes in one piece: the most is {MAX_WHOLE_FILE}; upload the file instead "
            "(PUT …/files)",
            kind="file_too_large",
            limit=MAX_WHOLE_FILE,
        )
    return data


class MakeDirectory(FileQuery):
    mode: Mode = "0755"
    parents: bool = True
    """make missing directories on the way, and take one that exists for made"""


class RemoveFile(FileQuery):
    recursive: bool = False
    """a directory with all that is in it"""


class MoveFile(_WithTarget):
    """`target` is the new name, not a directory to move into."""

    overwrite: bool = True
    parents: bool = False


class CopyFile(MoveFile):
    """`target` is the name of the copy, not a directory to copy into."""

    recursive: bool = True


class MakeSymlink(_WithTarget):
    """`path` is the link, `target` what it says."""


class ChangeMode(FileQuery):
    mode: Mode
    recursive: bool = False


class ChangeOwner(FileQuery):
    owner: UserName | None = None
    group: UserName | None = None
    recursive: bool = False
    follow: bool = True
    """change what a symbolic link leads to, not the link; `recursive` never follows one"""


class _UploadPlace(FileQuery):
    mode: Mode | None = None
    """permission bits, octal; by default those it has, 0644 for a new file"""
    parents: bool = False
    """make missing directories on the way"""


class UploadQuery(_UploadPlace):
    atomic: bool = True
    """write beside the file and rename, so that an upload that breaks off changes nothing; false: write the file
    itself, which keeps its hard links, extended attributes and ACLs, and needs no right to write to its directory"""


class UploadPartQuery(_UploadPlace):
    offset: Offset
    """where this piece begins: how much of the upload has come"""
    complete: bool = False
    """this is the last piece: the upload becomes the file"""


class ArchiveQuery(FileQuery):
    format: ArchiveFormat = ArchiveFormat.TAR


class UnpackQuery(ArchiveQuery):
    """A tar may be compressed with gzip, bzip2, xz or zstd, whatever `format` says of it."""

    owners: bool = False
    """give everything the owner that the archive names, which takes root; otherwise all is the user's"""
