"""pause, resume, stop, start, touch, timeout: a sandbox put to sleep, woken, and how long it may live."""

from collections.abc import Awaitable, Callable

import click

from sandboxd.cli.options import ACTIONS
from sandboxd.cli.output import json_option, print_json
from sandboxd.cli.runner import SANDBOX, with_client
from sandboxd.cli.values import DURATION, Parsed, parse_lifetime, show_age
from sandboxd.client import AsyncClient, Sandbox

_sandboxes = click.argument("sandboxes", nargs=-1, required=True, type=SANDBOX, metavar="SANDBOX...")


def _each(names: tuple[str, ...], change: Callable[[AsyncClient, str], Awaitable[Sandbox]]) -> None:
    """Change them one after the other, and print the id of each that is."""

    async def change_all(client: AsyncClient) -> None:
        for name in names:
            click.echo((await change(client, name)).id)

    with_client(change_all)


@click.command()
@_sandboxes
def pause(sandboxes: tuple[str, ...]) -> None:
    """Freeze sandboxes: their processes stand still, memory and files stay."""
    _each(sandboxes, lambda client, name: client.pause(name))


@click.command()
@_sandboxes
def resume(sandboxes: tuple[str, ...]) -> None:
    """Let paused sandboxes go on from where they stood."""
    _each(sandboxes, lambda client, name: client.resume(name))


@click.command()
@_sandboxes
@click.option(
    "--grace", type=DURATION, metavar="DURATION", default="5s", show_default=True, help="Time before they are killed."
)
def stop(sandboxes: tuple[str, ...], grace: int) -> None:
    """End all processes of sandboxes; their files stay."""
    _each(sandboxes, lambda client, name: client.stop(name, grace_ms=grace))


@click.command()
@_sandboxes
def start(sandboxes: tuple[str, ...]) -> None:
    """Start sandboxes that were stopped, or have exited, over their files."""
    _each(sandboxes, lambda client, name: client.start(name))


@click.command()
@_sandboxes
def touch(sandboxes: tuple[str, ...]) -> None:
    """Count sandboxes as used now, so that they are not idle."""
    _each(sandboxes, lambda client, name: client.touch(name))


@click.command()
@click.argument("sandbox", type=SANDBOX)
@click.argument("lifetime", type=Parsed("duration", parse_lifetime), metavar="DURATION|none")
@click.option("--on-timeout", type=ACTIONS, help="What happens then; as it is if not given.")
@click.option("--idle", is_flag=True, help="Set how long it may be idle instead.")
@json_option
def timeout(sandbox: str, lifetime: int | None, on_timeout: str | None, idle: bool, as_json: bool) -> None:
    """Set how long a sandbox may live from now on, or be idle; "none" for ever."""
    if idle:
        changed = with_client(lambda client: client.set_idle_timeout(sandbox, idle_timeout_ms=lifetime))
    else:
        changed = with_client(lambda client: client.set_timeout(sandbox, timeout_ms=lifetime, on_timeout=on_timeout))
    if as_json:
        print_json(changed.raw)
    elif idle:
        click.echo("may be idle for ever" if lifetime is None else "may be idle for so long")
    else:
        click.echo(f"ends in {show_age(changed.end_at)}" if changed.end_at else "lives until deleted")
