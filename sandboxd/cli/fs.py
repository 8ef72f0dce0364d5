"""fs: look at and change files in a sandbox without starting anything in it."""

import os
import posixpath
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click
import trio

from sandboxd.cli.descriptors import STDIN, STDOUT, DescriptorReader, write_all
from sandboxd.cli.output import Failure, json_option, print_facts, print_json, print_table
from sandboxd.cli.runner import SANDBOX, with_client
from sandboxd.cli.values import show_size
from sandboxd.client import ApiError, AsyncClient, FileInfo

_LETTERS = {
    "directory": "d",
    "symlink": "l",
    "fifo": "p",
    "socket": "s",
    "character_device": "c",
    "block_device": "b",
}
Command = TypeVar("Command", bound=Callable[..., Any])


@click.group()
def fs() -> None:
    """Look at and change files in a sandbox; images need no programs for it.

    Paths are absolute, or relative to the sandbox's working directory. For copies from and to here: cp.
    """


def _options(command: Command) -> Command:
    """The sandbox and the user, as every command here has them."""
    user = click.option("-u", "--user", metavar="NAME", help="Act as this user inside; by default the sandbox's.")
    return click.argument("sandbox", type=SANDBOX)(user(command))


# -- looking ------------------------------------------------------------------------------------------------------


@fs.command()
@_options
@click.argument("path", default=".")
@click.option("-l", "--long", is_flag=True, help="Modes, owners, sizes and times too.")
@click.option("-d", "--depth", type=click.IntRange(1, 64), default=1, help="How many levels deep; 1 by default.")
@json_option
def ls(sandbox: str, path: str, user: str | None, long: bool, depth: int, as_json: bool) -> None:
    """List a directory, or one file. Hidden names are shown too."""

    async def look(client: AsyncClient) -> list[FileInfo]:
        try:
            return [entry async for entry in client.list_files(sandbox, path, depth=depth, user=user)]
        except ApiError as error:
            if error.kind != "not_a_directory":
                raise
            return [await client.stat(sandbox, path, follow=False, user=user)]

    entries = with_client(look)
    if as_json:
        print_json([entry.raw for entry in entries])
    elif long:
        print_table(("MODE", "OWNER", "GROUP", "SIZE>", "MODIFIED", "NAME"), map(_row, entries))
    else:
        for entry in entries:
            click.echo(_shown(entry))


def _row(entry: FileInfo) -> tuple[object, ...]:
    modified = "" if entry.modified_at is None else f"{entry.modified_at:%Y-%m-%d %H:%M}"
    arrow = f" -> {entry.target}" if entry.target is not None else ""
    owners = entry.owner or entry.uid, entry.group or entry.gid
    return _permissions(entry), *owners, show_size(entry.size), modified, _shown(entry) + arrow


def _shown(entry: FileInfo) -> str:
    """A name as it is, so that it can be used again; on a terminal without what would act on it."""
    name = os.fsdecode(entry.exact_path)
    return name if name.isprintable() else repr(name)


def _permissions(entry: FileInfo) -> str:
    letters = "".join(letter if entry.mode & 1 << (8 - place) else "-" for place, letter in enumerate("rwxrwxrwx"))
    for bit, place, letter in ((0o4000, 2, "s"), (0o2000, 5, "s"), (0o1000, 8, "t")):
        if entry.mode & bit:
            letters = letters[:place] + (letter if letters[place] == "x" else letter.upper()) + letters[place + 1 :]
    return _LETTERS.get(entry.type, "-") + letters


@fs.command()
@_options
@click.argument("path")
@click.option("-L/-P", "--follow/--no-follow", default=True, help="What a symbolic link leads to, or the link.")
@json_option
def stat(sandbox: str, path: str, user: str | None, follow: bool, as_json: bool) -> None:
    """Show all about a file."""
    entry = with_client(lambda client: client.stat(sandbox, path, follow=follow, user=user))
    if as_json:
        print_json(entry.raw)
        return
    print_facts(
        (
            ("path", entry.path),
            ("type", entry.type),
            ("size", entry.size),
            ("mode", f"{entry.mode:04o} {_permissions(entry)}"),
            ("owner", f"{entry.owner} ({entry.uid})"),
            ("group", f"{entry.group} ({entry.gid})"),
            ("modified", entry.modified_at and entry.modified_at.isoformat(sep=" ", timespec="milliseconds")),
            ("target", entry.target),
            ("real path", entry.real_path if entry.real_path != entry.path else None),
        )
    )


@fs.command()
@_options
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
def cat(sandbox: str, paths: tuple[str, ...], user: str | None) -> None:
    """Print files."""

    async def show(client: AsyncClient) -> None:
        for path in paths:
            async with client.download(sandbox, path, user=user) as answer:
                async for chunk in answer:
                    await write_all(STDOUT, chunk)

    with_client(show)


# -- changing -----------------------------------------------------------------------------------------------------


@fs.command()
@_options
@click.argument("path")
@click.option("-a", "--append", is_flag=True, help="Add to the file.")
@click.option("-p", "--parents", is_flag=True, help="Make missing directories on the way.")
def write(sandbox: str, path: str, user: str | None, append: bool, parents: bool) -> None:
    """Write what comes on stdin to a file, which changes as one step when stdin ends."""

    async def send(client: AsyncClient) -> None:
        source = DescriptorReader(STDIN)
        if not append:
            await client.upload(sandbox, path, source, user=user, parents=parents)
            return
        async for data in source:
            await client.append(sandbox, path, data, user=user)

    with_client(send)


@fs.command()
@_options
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("-p", "--parents", is_flag=True, help="Make missing directories on the way; one that exists is fine.")
@click.option("-m", "--mode", type=str, metavar="OCTAL", help="Permissions, e.g. 0750.")
def mkdir(sandbox: str, paths: tuple[str, ...], user: str | None, parents: bool, mode: str | None) -> None:
    """Make directories."""
    bits = None if mode is None else _octal(mode)
    _each(paths, lambda client, path: client.mkdir(sandbox, path, mode=bits, parents=parents, user=user))


@fs.command()
@_options
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("-r", "-R", "--recursive", is_flag=True, help="Directories with all that is in them.")
@click.option("-f", "--force", is_flag=True, help="What does not exist is fine.")
def rm(sandbox: str, paths: tuple[str, ...], user: str | None, recursive: bool, force: bool) -> None:
    """Remove files, links and directories."""

    async def remove(client: AsyncClient, path: str) -> None:
        try:
            await client.remove(sandbox, path, recursive=recursive, user=user)
        except ApiError as error:
            if not (force and error.kind == "not_found"):
                raise

    _each(paths, remove)


@fs.command()
@_options
@click.argument("source")
@click.argument("target")
@click.option("-n", "--no-clobber", is_flag=True, help="Refuse to replace anything.")
def mv(sandbox: str, source: str, target: str, user: str | None, no_clobber: bool) -> None:
    """Move a file or directory: to a new name, or into TARGET if that is a directory."""

    async def move(client: AsyncClient) -> None:
        place = await _inner(client, sandbox, source, target, user)
        await client.move(sandbox, source, place, overwrite=not no_clobber, user=user)

    with_client(move)


@fs.command()
@_options
@click.argument("source")
@click.argument("target")
@click.option("-n", "--no-clobber", is_flag=True, help="Refuse to replace anything.")
def cp(sandbox: str, source: str, target: str, user: str | None, no_clobber: bool) -> None:
    """Copy a file or directory inside the sandbox: to a new name, or into TARGET if that is a directory."""

    async def copy(client: AsyncClient) -> None:
        place = await _inner(client, sandbox, source, target, user)
        await client.copy(sandbox, source, place, overwrite=not no_clobber, user=user)

    with_client(copy)


@fs.command()
@_options
@click.argument("target")
@click.argument("link")
def ln(sandbox: str, target: str, link: str, user: str | None) -> None:
    """Make LINK, a symbolic link that says TARGET."""
    with_client(lambda client: client.symlink(sandbox, link, target, user=user))


@fs.command()
@_options
@click.argument("mode")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("-R", "--recursive", is_flag=True, help="Directories with all that is in them; no link is followed.")
def chmod(sandbox: str, mode: str, paths: tuple[str, ...], user: str | None, recursive: bool) -> None:
    """Change permissions: MODE is octal, e.g. 644."""
    bits = _octal(mode)
    _each(paths, lambda client, path: client.chmod(sandbox, path, bits, recursive=recursive, user=user))


@fs.command()
@_options
@click.argument("owner", metavar="OWNER[:GROUP]")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("-R", "--recursive", is_flag=True, help="Directories with all that is in them; no link is followed.")
def chown(sandbox: str, owner: str, paths: tuple[str, ...], user: str | None, recursive: bool) -> None:
    """Change owner and group: names in the sandbox, or numbers. Takes `--user root`."""
    name, _, group = owner.partition(":")
    _each(
        paths,
        lambda client, path: client.chown(
            sandbox, path, owner=name or None, group=group or None, recursive=recursive, user=user
        ),
    )


# -- how ----------------------------------------------------------------------------------------------------------


def _each(paths: tuple[str, ...], act: Callable[[AsyncClient, str], Awaitable[object]]) -> None:
    """One after the other; the first that fails is the last."""

    async def all_of_them(client: AsyncClient) -> None:
        for path in paths:
            await act(client, path)
            await trio.lowlevel.checkpoint()

    with_client(all_of_them)


async def _inner(client: AsyncClient, sandbox: str, source: str, target: str, user: str | None) -> str:
    """Where something goes: into a directory that exists under its own name, otherwise to the path itself."""
    try:
        found = await client.stat(sandbox, target, user=user)
    except ApiError as error:
        if error.kind in {"not_found", "not_a_directory"}:
            return target
        raise
    return posixpath.join(target, posixpath.basename(source.rstrip("/"))) if found.type == "directory" else target


def _octal(text: str) -> int:
    try:
        bits = int(text, 8)
    except ValueError:
        bits = -1
    if not 0 <= bits <= 0o7777:
        raise Failure(f"cannot use the mode {text}: write it in octal, e.g. 644")
    return bits
