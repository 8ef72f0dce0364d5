"""image build, image import, image ls, image rm."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import click

from sandboxd.cli.descriptors import STDIN, DescriptorReader, open_source
from sandboxd.cli.output import Failure, json_option, print_json, print_table
from sandboxd.cli.progress import transfer_progress
from sandboxd.cli.runner import with_client
from sandboxd.cli.values import printable, show_age, show_size
from sandboxd.client import AsyncClient, ConnectionLost, Image

PIPE = "-"
DIGEST_SHOWN = 12


@click.group()
def image() -> None:
    """Build, import, list and remove images: the root file systems sandboxes start from."""


@image.command()
@click.argument("recipe")
@click.option("--rebuild", is_flag=True, help="Build again what is there already.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@json_option
def build(recipe: str, rebuild: bool, quiet: bool, as_json: bool) -> None:
    """Build an image from a recipe the daemon knows, e.g. base. Progress goes to stderr."""

    async def follow(client: AsyncClient) -> Image:
        async with client.build_image(recipe, rebuild=rebuild) as news:
            async for item in news:
                if isinstance(item, Image):
                    return item
                if not quiet:
                    click.echo(printable(item), err=True)
        raise ConnectionLost("cannot follow the build any more: the daemon closed the connection")

    _show(with_client(follow), as_json)


@image.command("import")
@click.argument("name")
@click.argument("source")
@json_option
def import_image(name: str, source: str, as_json: bool) -> None:
    """Make an image of a root file system: a directory, a tar archive, or "-" for an archive on stdin.

    A directory is packed by this machine's tar; run it as a user who may read all of it.
    """

    async def send(client: AsyncClient) -> Image:
        with _open_archive(source) as (descriptor, size), transfer_progress(f"import {name}", size) as advance:
            return await client.import_image(name, DescriptorReader(descriptor, advance), size=size)

    _show(with_client(send), as_json)


@image.command("ls")
@json_option
def list_images(as_json: bool) -> None:
    """List images."""
    found = with_client(lambda client: client.images())
    if as_json:
        print_json([item.raw for item in found])
        return
    print_table(
        ("NAMES", "DIGEST", "SIZE>", "AGE>", "USER", "SOURCE"),
        [
            (
                ", ".join(item.names) or "-",
                item.digest.removeprefix("sha256:")[:DIGEST_SHOWN],
                show_size(item.size_bytes),
                show_age(item.created_at),
                item.user or "root",
                item.source,
            )
            for item in found
        ],
    )


@image.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def rm(names: tuple[str, ...]) -> None:
    """Remove images, by name or digest; one that a sandbox uses stays."""

    async def remove(client: AsyncClient) -> None:
        for name in names:
            await client.delete_image(name)
            click.echo(name)

    with_client(remove)


def _show(made: Image, as_json: bool) -> None:
    if as_json:
        print_json(made.raw)
    else:
        click.echo(made.digest)


@contextmanager
def _open_archive(source: str) -> Iterator[tuple[int, int | None]]:
    """A descriptor to read the archive from, and its size if it is known."""
    if source == PIPE:
        yield STDIN, None
    elif os.path.isdir(source):
        with _packed(source) as descriptor:
            yield descriptor, None
    else:
        with open_source(source) as (file, status):
            yield file.fileno(), status.st_size or None


@contextmanager
def _packed(directory: str) -> Iterator[int]:
    """tar(1) packs: unlike the standard library it keeps extended attributes, file capabilities among them."""
    options = ("--create", "--numeric-owner", "--xattrs", "--one-file-system")
    with subprocess.Popen(["tar", *options, "--directory", directory, "."], stdout=subprocess.PIPE) as packing:
        assert packing.stdout is not None
        try:
            yield packing.stdout.fileno()
        except BaseException:
            packing.kill()
            raise
    if packing.returncode:
        raise Failure(f"cannot pack {directory}: tar ended with status {packing.returncode}")
