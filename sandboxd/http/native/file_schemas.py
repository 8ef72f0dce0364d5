"""Files on the wire."""

from typing import Annotated

from pydantic import StringConstraints

from sandboxd.http.native.fields import Path, Request, Response, UserName


class FileQuery(Request):
    path: Path
    user: UserName = ""


class UploadQuery(FileQuery):
    mode: Annotated[str, StringConstraints(pattern=r"^0?[0-7]{3,4}$")] = "0644"
    """permission bits, octal"""
    parents: bool = False
    """make missing directories on the way"""


class Uploaded(Response):
    path: str
    size: int
