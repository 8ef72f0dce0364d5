"""cp: files through the API's file transfer, directories as archives."""

import os
import posixpath
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click

from sandboxd.cli.descriptors import STDIN, STDOUT, DescriptorReader, open_source, write_all
from sandboxd.cli.output import Failure, complain
from sandboxd.cli.progress import transfer_progress
from sandboxd.cli.runner import with_client
from sandboxd.cli.tarpipe import receive_tree, send_tree
from sandboxd.cli.trees import Skipped, current_umask
from sandboxd.client import ApiError, AsyncClient, FileInfo

PIPE = "-"
NOTHING_THERE = frozenset({"not_found", "not_a_directory", "permission_denied"})
# Before the first slash, so that ./a:b is a local file.
_REMOTE = re.compile(r"([^/:]+):(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Place:
    """A path in a sandbox."""

    client: AsyncClient
    sandbox: str
    path: str
    """absolute"""
    user: str | None
    found: FileInfo | None
    """what is there, links followed; None if nothing is"""

    @property
    def is_directory(self) -> bool:
        return self.found is not None and self.found.type == "directory"

    def __str__(self) -> str:
        return f"{self.sandbox}:{self.path}"


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("-u", "--user", metavar="NAME", help="Act as this user inside; by default the sandbox's.")
def cp(source: str, target: str, user: str | None) -> None:
    """Copy a file or directory into a sandbox or out of it; one of SOURCE and TARGET is SANDBOX:PATH.

    \b
    sandboxctl cp notes.txt box:          into the working directory
    sandboxctl cp src box:/srv/app        a directory: into /srv/app if that exists, as /srv/app otherwise
    sandboxctl cp box:/var/log/app.log -  to stdout; as SOURCE, - is stdin
    """
    inside, outside = _REMOTE.fullmatch(source), _REMOTE.fullmatch(target)
    if bool(inside) == bool(outside):
        raise click.UsageError("One of SOURCE and TARGET is a path in a sandbox, SANDBOX:PATH, the other is not.")

    async def copy(client: AsyncClient) -> None:
        if inside:
            await copy_out(await find_place(client, inside[1], inside[2], user), target)
        elif outside:
            await copy_in(source, await find_place(client, outside[1], outside[2], user))

    with_client(copy)


async def find_place(client: AsyncClient, sandbox: str, path: str, user: str | None) -> Place:
    """What a path in a sandbox means, and what is there."""
    if not path.startswith("/"):
        path = posixpath.join((await client.stat(sandbox, ".", user=user)).path, path)
    try:
        return Place(client, sandbox, path, user, await client.stat(sandbox, path, user=user))
    except ApiError as error:
        if error.kind not in NOTHING_THERE:
            raise
        return Place(client, sandbox, path, user, None)


# -- into a sandbox -----------------------------------------------------------------------------------------------


async def copy_in(source: str, target: Place) -> None:
    if source == PIPE:
        await target.client.upload(target.sandbox, target.path, DescriptorReader(STDIN), user=target.user)
    elif is_directory(source):
        await upload_directory(source, target)
    else:
        await upload_file(source, target)


async def upload_file(source: str, target: Place) -> None:
    into = target.is_directory or target.path.endswith("/")
    path = posixpath.join(target.path, own_name(source)) if into else target.path
    with open_source(source) as (file, status):
        size = status.st_size if stat.S_ISREG(status.st_mode) else None
        with transfer_progress(str(target), size) as advance:
            await target.client.upload(
                target.sandbox,
                path,
                DescriptorReader(file.fileno(), advance),
                size=size,
                mode=stat.S_IMODE(status.st_mode) & 0o777,
                user=target.user,
            )


async def upload_directory(source: str, target: Place) -> None:
    if target.found is not None and not target.is_directory:
        raise Failure(f"cannot copy the directory {source}: {target} is not a directory")
    path = posixpath.join(target.path, own_name(source)) if target.is_directory else target.path
    note_skipped(await send_tree(target.client, target.sandbox, Path(source), path, user=target.user), source)


# -- out of a sandbox ---------------------------------------------------------------------------------------------


async def copy_out(source: Place, target: str) -> None:
    if source.found is None:
        raise Failure(f"cannot copy {source}: there is no such file, or it may not be looked at")
    if target == PIPE:
        if source.is_directory:
            raise Failure(f"cannot write {source} to stdout: it is a directory")
        async with source.client.download(source.sandbox, source.path, user=source.user) as answer:
            async for chunk in answer:
                await write_all(STDOUT, chunk)
    elif source.is_directory:
        await download_directory(source, make_directory(inner_path(target, source)))
    else:
        await download_file(source, inner_path(target, source))


async def download_file(source: Place, target: Path) -> None:
    mode = (source.found.mode if source.found else 0) & 0o777
    async with source.client.download(source.sandbox, source.path, user=source.user) as answer:
        with transfer_progress(str(source), answer.size) as advance, replacing(target, mode) as file:
            async for chunk in answer:
                file.write(chunk)
                advance(len(chunk))


async def download_directory(source: Place, target: Path) -> None:
    note_skipped(await receive_tree(source.client, source.sandbox, source.path, target, user=source.user), source)


# -- local files --------------------------------------------------------------------------------------------------


def is_directory(path: str) -> bool:
    return os.path.isdir(path)


def own_name(path: str) -> str:
    """The last component of a path, that of the directory meant by `.` too."""
    return os.path.basename(os.path.realpath(path) if os.path.isdir(path) else path)


def inner_path(target: str, source: Place) -> Path:
    """Where something goes: into a directory that exists under its own name, otherwise to the path itself."""
    if not os.path.isdir(target):
        return Path(target)
    return Path(target) / (posixpath.basename(source.path.rstrip("/")) or source.sandbox)


def make_directory(path: Path) -> Path:
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise Failure(f"cannot make {path}: {error.strerror}") from error
    return path


def note_skipped(skipped: Skipped, source: object) -> None:
    if skipped:
        complain(f"left out of {source}: {skipped.total()} special files")


@contextmanager
def replacing(path: Path, mode: int) -> Iterator[BinaryIO]:
    """A file that takes `path`'s place once it is complete; what is no regular file (/dev/null) is written to."""
    try:
        if path.exists() and not path.is_file():
            with open(path, "wb") as file:
                yield file
            return
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror}") from error
    try:
        with open(descriptor, "wb") as file:
            yield file
            os.fchmod(descriptor, mode & ~current_umask())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
