"""snapshot create, ls, inspect, rm, export, import; clone, restore, storage."""

import os
import sys
from collections.abc import Mapping
from typing import IO, Any

import click

from sandboxd.cli.descriptors import STDIN, DescriptorReader, open_source
from sandboxd.cli.output import complain, json_option, print_facts, print_json, print_table
from sandboxd.cli.progress import transfer_progress
from sandboxd.cli.runner import SANDBOX, with_client
from sandboxd.cli.values import DURATION, assignments_from, show_age, show_size, show_time
from sandboxd.client import AsyncClient, ClientError, Snapshot

PIPE = "-"
WORTH_TELLING = 1 << 20


@click.group()
def snapshot() -> None:
    """Keep what sandboxes have on disk, and make sandboxes of it."""


@snapshot.command("create")
@click.argument("sandbox", type=SANDBOX)
@click.option("--name", help="A name to use in place of the id.")
@click.option("--description", help="For people.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", callback=assignments_from, help="Kept with it.")
@json_option
def create_snapshot(
    sandbox: str, name: str | None, description: str | None, metadata: dict[str, str], as_json: bool
) -> None:
    """Take a snapshot of a sandbox, whether it runs or not, and print its id."""
    taken = with_client(
        lambda client: client.take_snapshot(sandbox, name=name, description=description, metadata=metadata or None)
    )
    if as_json:
        print_json(taken.raw)
    else:
        click.echo(taken.id)
        _tell_cost(taken.cost)


def _tell_cost(cost: Mapping[str, Any]) -> None:
    """What a copy took where blocks cannot be shared; nothing where it took nothing."""
    copied = cost.get("copied_bytes", 0)
    if copied >= WORTH_TELLING:
        stood = (
            f"the sandbox stood still for {cost['frozen_ms'] / 1000:.2f} s" if cost["frozen_ms"] else "it was at rest"
        )
        click.echo(
            f"{show_size(copied)} were copied, {stood}; in a pool nothing is (sandboxd storage init)", err=True
        )


@snapshot.command("ls")
@click.option("--sandbox", metavar="ID", help="Only those taken of this sandbox.")
@click.option("-q", "--quiet", is_flag=True, help="Only ids.")
@json_option
def list_snapshots(sandbox: str | None, quiet: bool, as_json: bool) -> None:
    """List snapshots, oldest first."""

    async def collect(client: AsyncClient) -> list[Snapshot]:
        return [each async for each in client.snapshots(sandbox=sandbox)]

    found = with_client(collect)
    if as_json:
        print_json([each.raw for each in found])
    elif quiet:
        for each in found:
            click.echo(each.id)
    else:
        print_table(("ID", "NAME", "OF", "IMAGE", "SIZE>", "AGE>", "IN USE BY>"), [_row(each) for each in found])


def _row(found: Snapshot) -> tuple[object, ...]:
    size = _size(found.size_bytes)
    origin = found.sandbox_id or "imported"
    return (found.id, found.name or "-", origin, found.image, size, show_age(found.created_at), len(found.sandboxes))


def _size(size: int | None) -> str:
    """The daemon counts in the background."""
    return "…" if size is None else show_size(size)


@snapshot.command("inspect")
@click.argument("name", metavar="SNAPSHOT")
@json_option
def inspect_snapshot(name: str, as_json: bool) -> None:
    """Show all about a snapshot."""
    found = with_client(lambda client: client.snapshot(name))
    if as_json:
        print_json(found.raw)
        return
    size = None if found.size_bytes is None else show_size(found.size_bytes)
    print_facts(
        [
            ("id", found.id),
            ("name", found.name),
            ("description", found.description),
            ("taken of", found.sandbox_id),
            ("parent", found.parent),
            ("image", found.image),
            ("created", show_time(found.created_at)),
            ("size", size),
            ("entries", found.entries),
            ("layers", found.layers),
            ("in use by", " ".join(found.sandboxes)),
            *((name.replace("_", " "), value) for name, value in found.cost.items()),
            *((f"metadata {key}", value) for key, value in found.metadata.items()),
        ]
    )


@snapshot.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="SNAPSHOT...")
def remove_snapshots(names: tuple[str, ...]) -> None:
    """Delete snapshots; sandboxes made of them go on."""

    async def remove(client: AsyncClient) -> bool:
        clean = True
        for name in names:
            try:
                await client.delete_snapshot(name)
            except ClientError as error:
                clean = False
                complain(error)
            else:
                click.echo(name)
        return clean

    sys.exit(0 if with_client(remove) else 1)


@snapshot.command("export")
@click.argument("name", metavar="SNAPSHOT")
@click.argument("file", type=click.Path())
def export_snapshot(name: str, file: str) -> None:
    """Write a snapshot to a file ("-": stdout), for `snapshot import` here or on another machine.

    It is complete but for its image, which has to be there too. Pipe it through zstd to make it smaller.
    """

    async def receive(client: AsyncClient, target: IO[bytes]) -> None:
        async with client.export_snapshot(name) as answer:
            async for chunk in answer:
                target.write(chunk)

    with open(file, "xb") if file != PIPE else os.fdopen(os.dup(1), "wb") as target:
        with_client(lambda client: receive(client, target))


@snapshot.command("import")
@click.argument("file", type=click.Path())
@click.option("--name", help="A name for it.")
@json_option
def import_snapshot(file: str, name: str | None, as_json: bool) -> None:
    """Make a snapshot of a file that `snapshot export` wrote ("-": stdin), compressed or not; prints its id."""

    async def send(client: AsyncClient) -> Snapshot:
        if file == PIPE:
            return await client.import_snapshot(DescriptorReader(STDIN, lambda _: None), name=name)
        with open_source(file) as (source, status), transfer_progress("import", status.st_size) as advance:
            reader = DescriptorReader(source.fileno(), advance)
            return await client.import_snapshot(reader, name=name, size=status.st_size)

    made = with_client(send)
    if as_json:
        print_json(made.raw)
    else:
        click.echo(made.id)


@click.command()
@click.argument("sandbox", type=SANDBOX)
@click.option("-n", "--count", type=click.IntRange(1, 100), default=1, show_default=True)
@click.option("--name", help="Of the clone; of several, each has -1, -2, … behind it.")
@click.option("--timeout", type=DURATION, metavar="DURATION", help="Delete them by themselves after this, e.g. 1h.")
@json_option
def clone(sandbox: str, count: int, name: str | None, timeout: int | None, as_json: bool) -> None:
    """Make sandboxes that begin with the files of this one, and print their ids."""
    clones = with_client(lambda client: client.clone(sandbox, count=count, name=name, timeout_ms=timeout))
    if as_json:
        print_json([each.raw for each in clones.sandboxes])
    else:
        for each in clones.sandboxes:
            click.echo(each.id)
        _tell_cost(clones.cost)
    for error in clones.errors:
        complain(error)
    sys.exit(1 if clones.errors else 0)


@click.command()
@click.argument("sandbox", type=SANDBOX)
@click.argument("snapshot_name", metavar="SNAPSHOT")
def restore(sandbox: str, snapshot_name: str) -> None:
    """Put a sandbox's files back to a snapshot; what it has written since is lost."""
    restored = with_client(lambda client: client.restore(sandbox, snapshot_name))
    click.echo(restored.status)


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def storage(context: click.Context, as_json: bool) -> None:
    """Show what sandboxes, snapshots and images take on the daemon's disk; `gc` removes what nobody needs."""
    if context.invoked_subcommand is not None:
        return
    found = with_client(lambda client: client.storage())
    if as_json:
        print_json(found.raw)
        return
    kinds = (("sandbox", found.sandboxes), ("snapshot", found.snapshots), ("image", found.images))
    rows = [
        (
            kind,
            each["id"][:24],
            each["name"] or "-",
            "…" if each["size_bytes"] is None else show_size(each["size_bytes"]),
        )
        for kind, several in kinds
        for each in several
    ]
    print_table(("WHAT", "ID", "NAME", "SIZE>"), rows)
    free = f"{show_size(found.available_bytes)} of {show_size(found.size_bytes)} free"
    held = f"{show_size(found.layers_bytes)} in layers below sandboxes and snapshots"
    click.echo(f"\n{found.volume}, {free}; {held} ({found.layers}, unused: {found.unused_layers})")


@storage.command()
def gc() -> None:
    """Remove layers that nothing stands on."""
    layers, freed = with_client(lambda client: client.collect_storage())
    click.echo(f"{layers} layers, {show_size(freed)}")
