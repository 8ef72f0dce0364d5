"""key create, key ls, key revoke."""

import click

from sandboxd.cli.output import json_option, print_json, print_table
from sandboxd.cli.runner import with_client
from sandboxd.cli.values import show_age
from sandboxd.client import Client

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
@json_option
def create(name: str, scopes: tuple[str, ...], as_json: bool) -> None:
    """Create a key and print it: this once, since only its hash is kept."""
    created = with_client(lambda client: client.create_key(name, scopes=scopes))
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
        ("ID", "NAME", "SCOPES", "AGE>", "LAST USED>"),
        [
            (item.id, item.name, " ".join(item.scopes), show_age(item.created_at), show_age(item.last_used_at))
            for item in keys
        ],
    )


@key.command()
@click.argument("keys", nargs=-1, required=True, metavar="KEY_ID...")
def revoke(keys: tuple[str, ...]) -> None:
    """Revoke keys, by id: they are refused from now on."""

    async def revoke_all(client: Client) -> None:
        for item in keys:
            await client.revoke_key(item)
            click.echo(item)

    with_client(revoke_all)
