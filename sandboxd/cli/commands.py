"""ps, logs, kill: commands in the background, and terminals."""

import click

from sandboxd.cli.descriptors import STDERR, STDOUT, write_all
from sandboxd.cli.output import Failure, complain, json_option, print_json, print_table
from sandboxd.cli.runner import SANDBOX, with_client
from sandboxd.cli.values import SIZE, show_age
from sandboxd.client import AsyncClient, BackgroundCommand, Ended, Output, OutputLost

_DESCRIPTORS = {"stdout": STDOUT, "stderr": STDERR}


@click.command()
@click.option("-a", "--all", "ended_too", is_flag=True, help="Those that have ended too.")
@click.option("-q", "--quiet", is_flag=True, help="Only ids.")
@json_option
@click.argument("sandbox", type=SANDBOX, required=False)
def ps(sandbox: str | None, ended_too: bool, quiet: bool, as_json: bool) -> None:
    """List background commands and terminals, of one sandbox or of all."""

    async def collect(client: AsyncClient) -> list[tuple[str, BackgroundCommand]]:
        names = [sandbox] if sandbox else [each.name or each.id async for each in client.sandboxes()]
        return [
            (name, command)
            for name in names
            for command in await client.commands(name)
            if ended_too or not command.ended
        ]

    found = with_client(collect)
    if as_json:
        print_json([{"sandbox": name, **command.raw} for name, command in found])
    elif quiet:
        for _, command in found:
            click.echo(command.command_id)
    else:
        columns = ("ID", "SANDBOX", "STATUS", "EXIT>", "PID>", "AGE>", "COMMAND")
        print_table(columns, [_row(name, command) for name, command in found])


def _row(sandbox: str, command: BackgroundCommand) -> tuple[object, ...]:
    return (
        command.command_id,
        sandbox,
        command.status,
        "-" if command.exit_code is None else command.exit_code,
        command.pid,
        show_age(command.created_at),
        command.cmd.partition("\n")[0],
    )


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until the command has ended.")
@click.option("--tail", type=SIZE, metavar="SIZE", help="Only the last so many bytes, e.g. 4K.")
@click.argument("sandbox", type=SANDBOX)
@click.argument("command", required=False)
def logs(sandbox: str, command: str | None, follow: bool, tail: int | None) -> None:
    """Show the output of a background command or terminal; by default of the newest one.

    Its stdout goes to ours, its stderr to ours, byte for byte.
    """

    async def show(client: AsyncClient) -> None:
        number = command or _newest(await client.commands(sandbox), sandbox)
        if follow:
            await _follow(client, sandbox, number, tail)
        else:
            await _show(client, sandbox, number, tail)

    with_client(show)


def _newest(commands: list[BackgroundCommand], sandbox: str) -> str:
    if not commands:
        raise Failure(f"cannot show a log: sandbox {sandbox} has run no background command")
    return commands[-1].command_id


async def _show(client: AsyncClient, sandbox: str, command: str, tail: int | None) -> None:
    """What there is now, page by page."""
    page = await client.command_logs(sandbox, command, tail=tail)
    while True:
        _tell_of_gap(page.lost_bytes)
        await write_all(STDOUT, page.stdout)
        await write_all(STDERR, page.stderr)
        if not page.more:
            return
        page = await client.command_logs(sandbox, command, cursor=page.cursor)


async def _follow(client: AsyncClient, sandbox: str, command: str, tail: int | None) -> None:
    async with client.follow_logs(sandbox, command, tail=tail) as events:
        async for event in events:
            if isinstance(event, Output):
                await write_all(_DESCRIPTORS[event.stream], event.data)
            elif isinstance(event, OutputLost):
                _tell_of_gap(event.size)
            elif isinstance(event, Ended):
                return


def _tell_of_gap(size: int) -> None:
    if size:
        complain(f"{size} bytes of output are not kept (any more)")


@click.command()
@click.option("-s", "--signal", "name", metavar="NAME", help="Only send this, e.g. TERM, to its process group.")
@click.argument("sandbox", type=SANDBOX)
@click.argument("command")
def kill(sandbox: str, command: str, name: str | None) -> None:
    """Kill a background command or terminal and everything it started, or send it a signal."""

    async def end(client: AsyncClient) -> None:
        if name is None:
            await client.kill_command(sandbox, command)
        else:
            full = name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"
            await client.signal_command(sandbox, command, full)

    with_client(end)
