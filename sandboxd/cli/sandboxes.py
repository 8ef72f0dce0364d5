"""create, ls, inspect, rm."""

import sys
from typing import Any

import click
import trio

from sandboxd.cli.options import sandbox_options, sandbox_wish, time_options
from sandboxd.cli.output import complain, json_option, print_facts, print_json, print_table
from sandboxd.cli.runner import SANDBOX, with_client
from sandboxd.cli.values import assignments_from, show_age, show_size, show_time
from sandboxd.client import AsyncClient, ClientError, Sandbox

# Deleting waits for the kernel more than for us.
DELETES_AT_ONCE = 8


@click.command()
@sandbox_options
@time_options
@json_option
def create(
    timeout: int | None,
    on_timeout: str | None,
    idle_timeout: int | None,
    on_idle: str | None,
    auto_resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Create a sandbox and print its id."""
    wish = sandbox_wish(**options)
    wish |= {"timeout_ms": timeout, "on_timeout": on_timeout, "idle_timeout_ms": idle_timeout, "on_idle": on_idle}
    sandbox = with_client(lambda client: client.create(**wish, auto_resume=auto_resume or None))
    if as_json:
        print_json(sandbox.raw)
    else:
        click.echo(sandbox.id)


@click.command()
@click.option("--status", metavar="STATUS", help="Only those with this status, e.g. running.")
@click.option(
    "--metadata", multiple=True, metavar="KEY=VALUE", callback=assignments_from, help="Only those that have this."
)
@click.option("-q", "--quiet", is_flag=True, help="Only ids.")
@json_option
def ls(status: str | None, metadata: dict[str, str], quiet: bool, as_json: bool) -> None:
    """List sandboxes, oldest first."""

    async def collect(client: AsyncClient) -> list[Sandbox]:
        return [sandbox async for sandbox in client.sandboxes(status=status, metadata=metadata)]

    found = with_client(collect)
    if as_json:
        print_json([sandbox.raw for sandbox in found])
    elif quiet:
        for sandbox in found:
            click.echo(sandbox.id)
    else:
        columns = ("ID", "NAME", "STATUS", "IMAGE", "AGE>", "ENDS IN>", "METADATA")
        print_table(columns, [_row(sandbox) for sandbox in found])


def _row(sandbox: Sandbox) -> tuple[object, ...]:
    return (
        sandbox.id,
        sandbox.name or "-",
        sandbox.status,
        sandbox.image,
        show_age(sandbox.created_at),
        show_age(sandbox.end_at),
        " ".join(f"{key}={value}" for key, value in sandbox.metadata.items()),
    )


@click.command()
@click.argument("sandboxes", nargs=-1, required=True, type=SANDBOX, metavar="SANDBOX...")
@json_option
def inspect(sandboxes: tuple[str, ...], as_json: bool) -> None:
    """Show all about sandboxes, by id or name."""

    async def collect(client: AsyncClient) -> list[Sandbox]:
        return [await client.get(name) for name in sandboxes]

    found = with_client(collect)
    if as_json:
        print_json([sandbox.raw for sandbox in found])
        return
    for number, sandbox in enumerate(found):
        if number:
            click.echo()
        print_facts(_facts(sandbox))


def _facts(sandbox: Sandbox) -> list[tuple[str, object]]:
    named = [(f"limit {name}", value) for name, value in sandbox.limits.items() if value is not None]
    return [
        ("id", sandbox.id),
        ("name", sandbox.name),
        ("status", sandbox.status),
        ("image", sandbox.image),
        ("digest", sandbox.raw.get("image_digest")),
        ("user", sandbox.user),
        ("workdir", sandbox.workdir),
        ("hostname", sandbox.hostname),
        ("backend", sandbox.backend),
        ("created", show_time(sandbox.created_at)),
        ("ends", sandbox.end_at and show_time(sandbox.end_at)),
        ("ended", sandbox.ended_at and show_time(sandbox.ended_at)),
        ("end reason", sandbox.end_reason),
        ("on timeout", sandbox.on_timeout if sandbox.end_at else None),
        ("may be idle", sandbox.idle_timeout_ms and f"{sandbox.idle_timeout_ms / 1000:g} s, then {sandbox.on_idle}"),
        ("auto resume", "yes" if sandbox.auto_resume else None),
        *((name, show_size(value) if name.endswith(("bytes", "bps")) else value) for name, value in named),
        *((f"env {name}", value) for name, value in sandbox.env.items()),
        *((f"metadata {name}", value) for name, value in sandbox.metadata.items()),
    ]


@click.command()
@click.argument("sandboxes", nargs=-1, type=SANDBOX, metavar="SANDBOX...")
@click.option("--all", "everything", is_flag=True, help="Delete every sandbox.")
@click.option("-f", "--force", is_flag=True, help="Do not mind sandboxes that do not exist.")
def rm(sandboxes: tuple[str, ...], everything: bool, force: bool) -> None:
    """Delete sandboxes, by id or name, with all that runs in them."""
    if everything == bool(sandboxes):
        raise click.UsageError("Name the sandboxes to delete, or give --all.")
    deleted = with_client(lambda client: _delete_all(client, sandboxes, everything=everything, force=force))
    sys.exit(0 if deleted else 1)


async def _delete_all(client: AsyncClient, names: tuple[str, ...], *, everything: bool, force: bool) -> bool:
    """Whether all of them are gone; each that is not has been complained about."""
    if everything:
        names = tuple([sandbox.id async for sandbox in client.sandboxes()])
    failures = 0
    limit = trio.CapacityLimiter(DELETES_AT_ONCE)

    async def delete(name: str) -> None:
        nonlocal failures
        async with limit:
            try:
                await client.delete(name)
            except ClientError as error:
                if not ((force or everything) and getattr(error, "status", None) == 404):
                    failures += 1
                    complain(error)
            else:
                click.echo(name)

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(delete, name)
    return not failures
