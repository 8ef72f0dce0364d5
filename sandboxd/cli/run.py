"""run and exec: commands joined to this process, or (-d) left to themselves."""

import errno
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import MappingProxyType
from typing import Any, NoReturn

import click
import trio

from sandboxd.cli.attach import attach
from sandboxd.cli.options import (
    Joint,
    choose_joint,
    detach_option,
    environment_option,
    sandbox_options,
    sandbox_wish,
    terminal_options,
    user_option,
    workdir_option,
)
from sandboxd.cli.output import Failure, NotExecutable, NotFound, RunFailure, complain
from sandboxd.cli.runner import SANDBOX, explain, with_client
from sandboxd.cli.signals import SignalRelay, under_signals
from sandboxd.client import ApiError, AsyncClient, ClientError, Sandbox
from sandboxd.client.calls import Command

# Options end where the command begins, so that its own need no `--` before them.
COMMAND_LAST = {"allow_interspersed_args": False}

# `$0` is the shell that runs this: the best one the image has.
LOGIN_SHELL = 'exec "$0" -l'

# Should this process be killed, its sandbox ends by itself after this long: long enough for a laptop to sleep over
# night, which stops our renewals but not the daemon's clock.
LEASE_MS = 24 * 3600 * 1000
RENEWALS_PER_LEASE = 8

NO_VARIABLES: Mapping[str, str] = MappingProxyType({})
HTTP_NOT_FOUND = 404

# Seconds for the daemon to delete a sandbox when we are ending.
DELETE_PATIENCE = 15.0


@click.command(context_settings=COMMAND_LAST)
@sandbox_options
@terminal_options
@detach_option
@click.argument("command", nargs=-1)
def run(
    command: tuple[str, ...],
    terminal: bool | None,
    stdin: bool | None,
    timeout: int | None,
    detach: bool,
    **options: Any,
) -> None:
    """Run one command in a throw-away sandbox; without COMMAND, a shell.

    \b
    Exit status: the command's own; 128+n if signal n ended it; 124 after --timeout;
    125 if it could not be run. The sandbox is deleted in every case but with -d:
    then its id and the command's are printed, and it stays until you delete it.
    """
    wish = sandbox_wish(**options)
    if detach:
        start = partial(run_detached, terminal=terminal or not command, timeout_ms=timeout)
        with_client(lambda client: start(client, wish, command), failure=not_run)
        return
    joint = choose_joint(terminal=terminal, stdin=stdin, piped_stdin=True)

    async def body(client: AsyncClient, relay: SignalRelay) -> int:
        async with throw_away_sandbox(client, wish) as sandbox:
            return await run_joined(client, relay, sandbox.id, command or LOGIN_SHELL, joint, timeout_ms=timeout)

    run_and_exit(body)


@click.command("exec", context_settings=COMMAND_LAST)
@environment_option
@user_option
@workdir_option
@terminal_options
@detach_option
@click.argument("sandbox", type=SANDBOX)
@click.argument("command", nargs=-1, required=True)
def exec_command(
    sandbox: str,
    command: tuple[str, ...],
    env: dict[str, str],
    user: str | None,
    workdir: str | None,
    terminal: bool | None,
    stdin: bool | None,
    timeout: int | None,
    detach: bool,
) -> None:
    """Run a command in a sandbox. Exit status as for `run`; should this program end, the command does too.

    With -d it runs on by itself; its id is printed, for `logs`, `kill` and `attach`.
    """
    command = command[1:] if command[0] == "--" else command  # click leaves it, since SANDBOX ended our options
    if not command:
        raise click.UsageError("Missing argument 'COMMAND...'.")
    if detach:
        start = partial(start_detached, terminal=bool(terminal), timeout_ms=timeout, env=env, user=user, cwd=workdir)
        click.echo(with_client(lambda client: start(client, sandbox, command), failure=not_run))
        return
    joint = choose_joint(terminal=terminal, stdin=stdin, piped_stdin=False)

    async def body(client: AsyncClient, relay: SignalRelay) -> int:
        return await run_joined(
            client, relay, sandbox, command, joint, env=env, user=user, cwd=workdir, timeout_ms=timeout
        )

    run_and_exit(body)


async def run_detached(
    client: AsyncClient, wish: dict[str, Any], command: tuple[str, ...], *, terminal: bool, **options: Any
) -> None:
    """In a sandbox that stays; one in which the command cannot be started does not."""
    sandbox = await client.create(**wish)
    try:
        number = await start_detached(client, sandbox.id, command, terminal=terminal, **options)
    except BaseException:
        await _delete(client, sandbox.id)
        raise
    click.echo(f"{sandbox.id} {number}")


async def start_detached(
    client: AsyncClient, sandbox: str, command: tuple[str, ...], *, terminal: bool, **options: Any
) -> str:
    """In the background, or (`terminal`) in a terminal to attach to; its id."""
    if terminal:
        return (await client.start_pty(sandbox, command or None, **options)).command_id
    return (await client.start_command(sandbox, command, **options)).command_id


def run_and_exit(body: Callable[[AsyncClient, SignalRelay], Awaitable[int]]) -> NoReturn:
    async def life(client: AsyncClient) -> int:
        return await under_signals(lambda relay: body(client, relay))

    sys.exit(with_client(life, failure=not_run))


def not_run(error: ClientError | OSError) -> Failure:
    """A program that cannot be run is told by the status, as a shell does."""
    kind: type[RunFailure] = RunFailure
    if isinstance(error, ApiError) and error.kind == "program_not_found":
        kind = NotExecutable if error.details.get("errno") == errno.EACCES else NotFound
    return kind(explain(error))


async def run_joined(
    client: AsyncClient,
    relay: SignalRelay,
    sandbox: str,
    command: Command,
    joint: Joint,
    *,
    env: Mapping[str, str] = NO_VARIABLES,
    **options: Any,
) -> int:
    """Run a command in a sandbox as if it ran here; `options` are those of `AsyncClient.exec`. Returns its status."""
    environment = {**joint.environment, **env}
    async with client.exec(
        sandbox, command, stdin=joint.stdin, terminal=joint.terminal, env=environment, **options
    ) as process:
        return await attach(process, relay, stdin=joint.stdin, terminal=joint.raw)


@asynccontextmanager
async def throw_away_sandbox(client: AsyncClient, wish: dict[str, Any]) -> AsyncIterator[Sandbox]:
    """A sandbox that does not outlive this block, nor (by much) this process."""
    longest = (await client.capabilities()).max_timeout_ms
    lease = min(LEASE_MS, longest or LEASE_MS)
    sandbox = await client.create(**wish, timeout_ms=lease)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_renew, client, sandbox.id, lease)
            yield sandbox
            nursery.cancel_scope.cancel("no longer needed")
    finally:
        await _delete(client, sandbox.id)


async def _renew(client: AsyncClient, sandbox: str, lease: int) -> None:
    while True:
        await trio.sleep(lease / 1000 / RENEWALS_PER_LEASE)
        with suppress(ClientError):  # the next one may succeed; and whoever talks to the sandbox says what is wrong
            await client.set_timeout(sandbox, timeout_ms=lease)


async def _delete(client: AsyncClient, sandbox: str) -> None:
    with trio.move_on_after(DELETE_PATIENCE, shield=True) as scope:
        try:
            await client.delete(sandbox)
        except ApiError as error:
            if error.status != HTTP_NOT_FOUND:
                complain(f"{error}; sandbox {sandbox} may be left")
        except ClientError as error:
            complain(f"{error}; sandbox {sandbox} may be left")
    if scope.cancelled_caught:
        complain(f"cannot delete sandbox {sandbox}: no answer for {DELETE_PATIENCE:g} s")
