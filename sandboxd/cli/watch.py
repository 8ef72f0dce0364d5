"""watch: what happens to files, as it does."""

import click
import trio

from sandboxd.cli.output import json_option, print_json_line
from sandboxd.cli.runner import SANDBOX, with_client
from sandboxd.cli.values import printable
from sandboxd.client import ApiError, AsyncClient, ConnectionLost, DaemonUnreachable, WatchEvent

# Seconds for the daemon to stop a watch when we are ending.
STOP_LIMIT = 15.0


@click.command()
@click.argument("sandbox", type=SANDBOX)
@click.argument("path", default=".")
@click.option("--raw", is_flag=True, help="Every event of the kernel: create, write, chmod, rename, remove.")
@click.option("--flat", is_flag=True, help="Not the directories below.")
@click.option(
    "--ignore",
    multiple=True,
    metavar="PATTERN",
    help="Pass over what matches: with a slash a path below PATH, without any name. Repeatable.",
)
@json_option
def watch(sandbox: str, path: str, raw: bool, flat: bool, ignore: tuple[str, ...], as_json: bool) -> None:
    """Show what happens to the files below a directory until interrupted, or until it is gone.

    One line each: what happened, and the path relative to PATH (by default the workdir). "overflow" says that some of
    it was lost. --json prints one object per line.
    """

    async def run(client: AsyncClient) -> None:
        made = await client.watch(
            sandbox, path, recursive=not flat, ignore=ignore, source="raw" if raw else "changes"
        )
        try:
            async with client.follow_watch(sandbox, made.watch_id) as events:
                async for event in events:
                    print_json_line(event.raw) if as_json else _show(event)
        finally:
            await _stop(client, sandbox, made.watch_id)

    with_client(run)


def _show(event: WatchEvent) -> None:
    slash = "/" if event.is_directory and event.path != "." else ""
    reason = f"  ({event.reason})" if event.reason else ""
    click.echo(printable(f"{event.type:<8}  {event.path}{slash}{reason}"))


async def _stop(client: AsyncClient, sandbox: str, watch_id: str) -> None:
    """Nobody else knows of it. It may be gone with its sandbox, or the daemon."""
    with trio.move_on_after(STOP_LIMIT, shield=True):
        try:
            await client.stop_watch(sandbox, watch_id)
        except (ApiError, ConnectionLost, DaemonUnreachable):
            return
