"""Signals of this process while a command runs elsewhere: passed on, and in the end obeyed.

The first SIGINT, SIGTERM or SIGHUP goes to the command, which may end in good order and with its own exit status. If
it has not after `PATIENCE`, or at a second signal, whatever is going on here is cancelled, which ends the command. A
terminal that outlives us is different: there, the first signal already cancels what is going on here.
"""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from sandboxd.cli.runner import ungrouped
from sandboxd.client import Exec

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HANDLED = (*ENDING, signal.SIGWINCH, signal.SIGCONT)

# Shorter than the 10 s that supervisors wait before SIGKILL: there must be time left to clean up.
PATIENCE = 5.0


class SignalRelay:
    """Where signals go. One that comes before there is a command waits for it; the patience runs all the same."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.exit_code = 0
        """of this process if `scope` is cancelled"""
        self._command: Exec | None = None
        self._on_terminal_change: Callable[[bool], Awaitable[None]] | None = None
        self._pending: int | None = None
        self._patience = PATIENCE

    def leave_at_signals(self, *, on_terminal_change: Callable[[bool], Awaitable[None]]) -> None:
        """From here on a signal ends what is going on here, and nothing elsewhere."""
        self._patience = 0.0
        self._on_terminal_change = on_terminal_change
        if self._pending is not None:
            self.scope.deadline = trio.current_time()

    async def connect(
        self, command: Exec, *, on_terminal_change: Callable[[bool], Awaitable[None]] | None = None
    ) -> None:
        """`on_terminal_change(continued)` is called at SIGWINCH and SIGCONT."""
        self._command = command
        self._on_terminal_change = on_terminal_change
        if self._pending is not None:
            await command.signal(signal.Signals(self._pending).name)

    async def listen(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number in ENDING:
                await self._end(number)
            elif self._on_terminal_change is not None:
                await self._on_terminal_change(number == signal.SIGCONT)

    async def _end(self, number: int) -> None:
        insists = self._pending is not None
        self._pending = number
        self.exit_code = 128 + number
        self.scope.deadline = trio.current_time() + (0 if insists else self._patience)
        if self._command is not None and not insists:
            await self._command.signal(signal.Signals(number).name)


async def under_signals(body: Callable[[SignalRelay], Awaitable[int]]) -> int:
    """Run `body`, which returns an exit status; its clean-up must be shielded, since a signal may cancel it."""
    relay = SignalRelay()
    exit_code: int | None = None
    with trio.open_signal_receiver(*HANDLED) as signals, ungrouped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.listen, signals)
            with relay.scope:
                exit_code = await body(relay)
            nursery.cancel_scope.cancel("the command ended")
    return relay.exit_code if exit_code is None else exit_code
