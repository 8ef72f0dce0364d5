"""shell and attach: this terminal as a client of one in a sandbox, which goes on when this program ends."""

import enum
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import click
import trio

from sandboxd.cli.attach import conclude
from sandboxd.cli.descriptors import STDIN, STDOUT, DescriptorReader, write_all
from sandboxd.cli.detach import DEFAULT_KEYS, DetachKeys, parse_keys
from sandboxd.cli.options import choose_joint, environment_option, user_option, workdir_option
from sandboxd.cli.output import RunFailure, complain
from sandboxd.cli.replay import without_queries
from sandboxd.cli.run import run_and_exit
from sandboxd.cli.runner import SANDBOX, ungrouped
from sandboxd.cli.signals import SignalRelay
from sandboxd.cli.terminal import RawTerminal
from sandboxd.cli.values import Parsed
from sandboxd.client import (
    AsyncClient,
    Attached,
    BackgroundCommand,
    ClientError,
    ConnectionLost,
    DaemonUnreachable,
    Exited,
    InputClosed,
    Output,
    OutputLost,
    PtyAttachment,
    Writer,
)

# While the daemon is started again its terminals go on: come back to ours.
RECONNECT_PATIENCE = 30.0
RECONNECT_INTERVAL = 0.2

detach_keys_option = click.option(
    "--detach-keys",
    type=Parsed("keys", parse_keys),
    metavar="KEYS",
    default=DEFAULT_KEYS,
    show_default=True,
    help='Leave the terminal, which goes on; "" for none.',
)


@click.command()
@environment_option
@user_option
@workdir_option
@detach_keys_option
@click.argument("sandbox", type=SANDBOX)
def shell(sandbox: str, env: dict[str, str], user: str | None, workdir: str | None, detach_keys: bytes) -> None:
    """Open a login shell in a sandbox, in this terminal.

    It goes on when you leave it with the detach keys, or lose the connection: come back with `attach`.
    """
    joint = choose_joint(terminal=True, stdin=True, piped_stdin=True)
    if not joint.raw or joint.terminal is None:
        raise RunFailure("cannot open a shell here: stdin is not a terminal; use `sandboxctl exec`")
    cols, rows = joint.terminal

    async def body(client: AsyncClient, relay: SignalRelay) -> int:
        environment: Mapping[str, str] = {**joint.environment, **env}
        pty = await client.start_pty(sandbox, cols=cols, rows=rows, env=environment, user=user, cwd=workdir)
        visit = Visit(client, sandbox, pty.command_id, keys=detach_keys, write="take", offset=0)
        return await visit.stay(relay)

    run_and_exit(body)


@click.command()
@detach_keys_option
@click.option("--read-only", is_flag=True, help="Watch, and leave the writing to others.")
@click.argument("sandbox", type=SANDBOX)
@click.argument("pty", required=False)
def attach(sandbox: str, pty: str | None, detach_keys: bytes, read_only: bool) -> None:
    """Come (back) to a terminal in a sandbox; by default to the newest one that is alive.

    Who writes to it so far is detached. Its last output is shown again. Exit status as for `exec`; 0 when you leave.
    """
    if not choose_joint(terminal=True, stdin=True, piped_stdin=True).raw:
        raise RunFailure("cannot attach here: stdin is not a terminal; use `sandboxctl logs`")

    async def body(client: AsyncClient, relay: SignalRelay) -> int:
        number = pty or newest_alive(await client.ptys(sandbox), sandbox)
        visit = Visit(client, sandbox, number, keys=detach_keys, write="never" if read_only else "take")
        return await visit.stay(relay)

    run_and_exit(body)


def newest_alive(ptys: list[BackgroundCommand], sandbox: str) -> str:
    alive = [pty.command_id for pty in ptys if not pty.ended]
    if not alive:
        raise RunFailure(f"cannot attach: no terminal is alive in {sandbox}; `sandboxctl shell` opens one")
    return alive[-1]


class Leaving(enum.Enum):
    """Why a visit ends though the terminal goes on."""

    DETACHED = "detached; come back with: sandboxctl attach {sandbox} {pty}"
    TAKEN_OVER = "another client has taken over; take it back with: sandboxctl attach {sandbox} {pty}"


@dataclass(frozen=True, slots=True)
class _Ending:
    why: Leaving | Exited
    lost: int
    """bytes of output"""


class Visit:
    """This terminal at one in a sandbox, over as many connections as it takes."""

    def __init__(
        self,
        client: AsyncClient,
        sandbox: str,
        pty: str,
        *,
        keys: bytes,
        write: Literal["take", "never"],
        offset: int | None = None,
    ) -> None:
        self._client = client
        self._sandbox = sandbox
        self._pty = pty
        self._keys = DetachKeys(keys)
        self._write = write
        self._offset = offset
        self._replay = b""
        self._replay_end = 0
        self._lost = 0
        self._place: PtyAttachment | None = None

    async def stay(self, relay: SignalRelay) -> int:
        """Until the terminal has ended, or is left; the exit status for this process. Raises: ClientError."""
        with RawTerminal(STDIN) as raw:

            async def follow(continued: bool) -> None:
                if continued:
                    raw.make_raw()  # the shell has set it to its own liking meanwhile
                cols, rows = raw.size()
                if self._place is not None and self._write == "take":
                    await self._place.resize(cols=cols, rows=rows)

            relay.leave_at_signals(on_terminal_change=follow)
            try:
                ending = await self._persist(raw)
            except trio.Cancelled:
                sys.stderr.write("\r\n")  # whoever writes next begins a line, as after the end of a shell
                raise
        if isinstance(ending.why, Exited):
            return conclude(ending.why, ending.lost)
        sys.stderr.write("\n")
        complain(ending.why.value.format(sandbox=self._sandbox, pty=self._pty))
        return 0

    async def _persist(self, raw: RawTerminal) -> _Ending:
        """A daemon that is started again, or a connection that breaks, ends nothing."""
        lost_at: float | None = None
        while True:
            try:
                async with self._client.attach_pty(
                    self._sandbox, self._pty, write=self._write, offset=self._offset, size=self._size(raw)
                ) as self._place:
                    lost_at = None
                    return await self._sit(self._place, raw)
            except (ConnectionLost, DaemonUnreachable) as error:
                lost_at = trio.current_time() if lost_at is None else lost_at
                if self._place is None or trio.current_time() - lost_at > RECONNECT_PATIENCE:
                    raise
                self._note_lost_connection(error)
                await trio.sleep(RECONNECT_INTERVAL)

    def _size(self, raw: RawTerminal) -> tuple[int, int] | None:
        """A line less at first: the change to the true size lets full screen programs draw themselves again."""
        if self._write == "never":
            return None
        cols, rows = raw.size()
        return (cols, rows) if self._offset == 0 else (cols, max(1, rows - 1))

    def _note_lost_connection(self, error: ClientError) -> None:
        assert self._place is not None
        if self._place.offset:
            self._offset = self._place.offset

    async def _sit(self, place: PtyAttachment, raw: RawTerminal) -> _Ending:
        endings: list[_Ending] = []
        with ungrouped():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(place.keep_alive)
                nursery.start_soon(self._type, place, nursery.cancel_scope, endings)
                endings.append(await self._show(place, raw))
                nursery.cancel_scope.cancel("the visit ends")
        return endings[0]

    async def _show(self, place: PtyAttachment, raw: RawTerminal) -> _Ending:
        async for event in place:
            if isinstance(event, Output):
                await self._display(place, event.data)
            elif isinstance(event, OutputLost):
                self._lost += event.size
            elif isinstance(event, Attached):
                self._replay_end = event.end if self._offset is None else 0
                await self._fit(place, raw)
            elif isinstance(event, Writer) and not event.writer:
                return _Ending(Leaving.TAKEN_OVER, 0)
            elif isinstance(event, Exited):
                return _Ending(event, self._lost)
        raise AssertionError("the last event of a terminal is its exit")

    async def _fit(self, place: PtyAttachment, raw: RawTerminal) -> None:
        if self._write == "take":
            cols, rows = raw.size()
            await place.resize(cols=cols, rows=rows)

    async def _display(self, place: PtyAttachment, data: bytes) -> None:
        """The past in one piece, since what must not be shown again may be cut in two."""
        self._replay += data
        if place.offset >= self._replay_end:
            shown = without_queries(self._replay) if self._replay_end else self._replay
            self._replay, self._replay_end = b"", 0
            await write_all(STDOUT, shown)

    async def _type(self, place: PtyAttachment, everything: trio.CancelScope, endings: list[_Ending]) -> None:
        """What is typed, to the terminal; the end of our own terminal is a way to leave, too."""
        with suppress(InputClosed):  # whoever shows the output learns why
            async for typed in DescriptorReader(STDIN):
                passed, leaving = self._keys.feed(typed)
                if passed and self._write == "take":
                    await place.send_stdin(passed)
                if leaving:
                    break
            endings.append(_Ending(Leaving.DETACHED, 0))
            everything.cancel("left")
