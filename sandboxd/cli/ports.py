"""ports and expose."""

import click

from sandboxd.cli.output import json_option, print_json, print_table
from sandboxd.cli.runner import SANDBOX, with_client
from sandboxd.cli.values import DURATION, show_age
from sandboxd.client import ExposedPort, ListeningPort

PORT = click.IntRange(1, 65535)


@click.command()
@click.argument("sandbox", type=SANDBOX)
@json_option
def ports(sandbox: str, as_json: bool) -> None:
    """List the TCP ports on which something listens in a sandbox, and those that have a URL."""
    listening, exposed = with_client(lambda client: client.ports(sandbox))
    if as_json:
        print_json({"ports": [port.raw for port in listening], "exposed": [port.raw for port in exposed]})
        return
    urls = {port.port: port for port in exposed}
    heard = {port.port: port for port in listening}
    rows = [_row(number, heard.get(number), urls.get(number)) for number in sorted({*heard, *urls})]
    print_table(["PORT>", "ADDRESS", "PID>", "COMMAND", "URL"], rows)


def _row(number: int, port: ListeningPort | None, exposed: ExposedPort | None) -> list[object]:
    heard = [",".join(port.addresses), port.pid or "", port.command or ""] if port else ["nothing listens", "", ""]
    return [number, *heard, _describe(exposed) if exposed else ""]


def _describe(exposed: ExposedPort) -> str:
    until = f", ends in {show_age(exposed.end_at)}" if exposed.end_at else ""
    return f"{exposed.url or exposed.path} ({'token' if exposed.protected else 'open to all'}{until})"


@click.command()
@click.argument("sandbox", type=SANDBOX)
@click.argument("port", type=PORT)
@click.option("--token", is_flag=True, help="Open it to those only who have the URL with its token.")
@click.option("--ttl", type=DURATION, metavar="DURATION", help="For this long, e.g. 1h.")
@click.option("--off", is_flag=True, help="Take the URL away.")
@json_option
def expose(sandbox: str, port: int, token: bool, ttl: int | None, off: bool, as_json: bool) -> None:
    """Give a port of a sandbox a URL and print it. Without --token it opens to all who reach the daemon."""
    if off:
        with_client(lambda client: client.conceal(sandbox, port))
        return
    exposed = with_client(lambda client: client.expose(sandbox, port, token=token, ttl_ms=ttl))
    if as_json:
        print_json(exposed.raw)
    else:
        click.echo(exposed.url or exposed.path)
