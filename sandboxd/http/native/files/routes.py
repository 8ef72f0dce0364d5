"""The routes of files: a part of the table in routes.py, which would not fit one screen otherwise."""

from sandboxd.http.kit.routes import Route
from sandboxd.http.native.files import archives, operations, transfers
from sandboxd.http.native.files.schemas import (
    MAX_FILE_BODY,
    ArchiveQuery,
    ChangeMode,
    ChangeOwner,
    CopyFile,
    FileQuery,
    ListFiles,
    MakeDirectory,
    MakeSymlink,
    MoveFile,
    ReadFile,
    ReadText,
    RemoveFile,
    StatFile,
    UnpackQuery,
    UploadPartQuery,
    UploadQuery,
    WriteBytes,
    WriteText,
)
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
    UnpackedFiles,
    UploadState,
    Written,
)
from sandboxd.model import Scope

READ, WRITE = Scope.READ, Scope.WRITE
FILES = "/v1/sandboxes/<sandbox>/files"
ARCHIVE = "/v1/sandboxes/<sandbox>/archive"
FS = "/v1/sandboxes/<sandbox>/fs"

# fmt: off
FILE_ROUTES = (
    Route(method="PUT", path=FILES, handler=transfers.upload, scope=WRITE,
          query=UploadQuery, response=Written, streams="upload",
          summary="Write a file of any size, as one step; Content-Encoding: gzip is undone"),
    Route(method="GET", path=FILES, handler=transfers.download, scope=READ,
          query=FileQuery, streams="download",
          summary="Read a file: Range, If-Range, If-None-Match; compressed where Accept-Encoding is gzip alone"),
    Route(method="PATCH", path=f"{FILES}/upload", handler=transfers.upload_part, scope=WRITE,
          query=UploadPartQuery, response=UploadState, streams="upload",
          summary="Write a file in pieces: add one at an offset, 409 with the right offset when it is another"),
    Route(method="GET", path=f"{FILES}/upload", handler=transfers.upload_state, scope=READ,
          query=FileQuery, response=UploadState, summary="How much of an upload in pieces has come"),
    Route(method="DELETE", path=f"{FILES}/upload", handler=transfers.drop_upload, scope=WRITE,
          query=FileQuery, response=Located, summary="Give an upload in pieces up"),

    Route(method="GET", path=ARCHIVE, handler=archives.pack, scope=READ,
          query=ArchiveQuery, streams="download", summary="A directory and all in it as tar, tar.gz or zip"),
    Route(method="PUT", path=ARCHIVE, handler=archives.unpack, scope=WRITE,
          query=UnpackQuery, response=UnpackedFiles, streams="upload",
          summary="Fill a directory with what is in a tar (compressed or not) or zip archive"),

    Route(method="POST", path=f"{FS}/list", handler=operations.list_directory, scope=READ, optional_body=True,
          body=ListFiles, response=FileList, summary="List a directory, in pages"),
    Route(method="POST", path=f"{FS}/stat", handler=operations.stat, scope=READ,
          body=StatFile, response=FileView, summary="Look at a file"),
    Route(method="POST", path=f"{FS}/exists", handler=operations.exists, scope=READ,
          body=StatFile, response=Exists, summary="Whether there is such a file"),
    Route(method="POST", path=f"{FS}/read", handler=operations.read, scope=READ,
          body=ReadText, response=FileText, summary="Read a text of at most 32 MiB"),
    Route(method="POST", path=f"{FS}/read_bytes", handler=operations.read_bytes, scope=READ,
          body=ReadFile, response=FileBytes, summary="Read at most 32 MiB, as base64"),
    Route(method="POST", path=f"{FS}/write", handler=operations.write, scope=WRITE, max_body_bytes=MAX_FILE_BODY,
          body=WriteText, response=Written, summary="Write a text of at most 32 MiB"),
    Route(method="POST", path=f"{FS}/write_bytes", handler=operations.write, scope=WRITE,
          max_body_bytes=MAX_FILE_BODY, body=WriteBytes, response=Written,
          summary="Write at most 32 MiB, given as base64"),
    Route(method="POST", path=f"{FS}/mkdir", handler=operations.mkdir, scope=WRITE,
          body=MakeDirectory, response=Changed, summary="Make a directory"),
    Route(method="POST", path=f"{FS}/remove", handler=operations.remove, scope=WRITE,
          body=RemoveFile, response=Changed, summary="Remove a file, a link or a directory"),
    Route(method="POST", path=f"{FS}/move", handler=operations.move, scope=WRITE,
          body=MoveFile, response=Moved, summary="Give a file or a directory another name"),
    Route(method="POST", path=f"{FS}/copy", handler=operations.copy, scope=WRITE,
          body=CopyFile, response=CopiedFiles, summary="Copy a file or a directory"),
    Route(method="POST", path=f"{FS}/symlink", handler=operations.symlink, scope=WRITE,
          body=MakeSymlink, response=Located, summary="Make a symbolic link"),
    Route(method="POST", path=f"{FS}/chmod", handler=operations.chmod, scope=WRITE,
          body=ChangeMode, response=Changed, summary="Change permissions"),
    Route(method="POST", path=f"{FS}/chown", handler=operations.chown, scope=WRITE,
          body=ChangeOwner, response=Changed, summary="Change owner and group"),
)
# fmt: on
