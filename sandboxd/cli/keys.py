"""key create, key ls, key revoke."""

import click

from sandboxd.cli.output import json_option, print_json, print_table
from sandboxd.cli.runner import with_client
from sandboxd.cli.values import SIZE, show_age
from sandboxd.client import AsyncClient

SCOPES = ("read", "write", "admin")


@click.group()
def key() -> None:
    """Create, list and revoke API keys, which clients need over TCP."""


@key.command()
@click.argument("name")
@click.option(
    "-s",
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    default=("read", "write"),
    show_default=True,
    help="What it allows. Repeatable.",
)
@click.option(
    "--tier",
    type=click.Choice(("beta", "pro", "unlimited")),
    help="beta: 60 requests a minute, 10 sandboxes; pro: 300 and 50. By default unlimited.",
)
@click.option("--max-sandboxes", type=click.IntRange(min=0), metavar="N", help="In place of the tier's.")
@click.option("--rate", type=click.IntRange(min=1), metavar="N", help="Requests a minute, in place of the tier's.")
@click.option("--max-memory", type=SIZE, metavar="SIZE", help="Of its sandboxes' limits together, e.g. 4G.")
@click.option("--max-disk", type=SIZE, metavar="SIZE", help="Of its sandboxes' limits together.")
@click.option("--own", is_flag=True, help="Let it see and touch only what it has created.")
@json_option
def create(
    name: str,
    scopes: tuple[str, ...],
    tier: str | None,
    max_sandboxes: int | None,
    rate: int | None,
    max_memory: int | None,
    max_disk: int | None,
    own: bool,
    as_json: bool,
) -> None:
    """Create a key and print it: this once, since only its hash is kept."""
    created = with_client(
        lambda client: client.create_key(
            name,
            scopes=scopes,
            own=own,
            tier=tier,
            max_sandboxes=max_sandboxes,
            requests_per_minute=rate,
            max_memory_bytes=max_memory,
            max_disk_bytes=max_disk,
        )
    )
    if as_json:
        print_json(created.raw)
    else:
        click.echo(created.key)
        click.echo(f"Key {created.id} ({', '.join(created.scopes)}). It is not shown again.", err=True)


@key.command("ls")
@json_option
def list_keys(as_json: bool) -> None:
    """List keys, without their secrets."""
    keys = with_client(lambda client: client.keys())
    if as_json:
        print_json([item.raw for item in keys])
        return
    print_table(
        ("ID", "NAME", "SCOPES", "SANDBOXES>", "RATE>", "SEES", "AGE>", "LAST USED>"),
        [
            (
                item.id,
                item.name,
                " ".join(item.scopes),
                _bound(item.quota.get("max_sandboxes")),
                _bound(item.quota.get("requests_per_minute")),
                "its own" if item.own else "all",
                show_age(item.created_at),
                show_age(item.last_used_at),
            )
            for item in keys
        ],
    )


def _bound(number: int | None) -> str:
    return "-" if number is None else str(number)


@key.command()
@click.argument("keys", nargs=-1, required=True, metavar="KEY_ID...")
def revoke(keys: tuple[str, ...]) -> None:
    """Revoke keys, by id: they are refused from now on."""

    async def revoke_all(client: AsyncClient) -> None:
        for item in keys:
            await client.revoke_key(item)
            click.echo(item)

    with_client(revoke_all)
