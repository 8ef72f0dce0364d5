"""A command in a sandbox joined to this process: its input and output, its terminal, its exit status.

our stdin ──► send_stdin         waits for the command's window: a slow command slows the sender
our stdout, stderr ◄── receive   waits for our reader: `| less` slows the command
"""

import signal
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass

import trio

from sandboxd.cli.descriptors import STDERR, STDIN, STDOUT, DescriptorReader, write_all
from sandboxd.cli.output import complain
from sandboxd.cli.runner import ungrouped
from sandboxd.cli.signals import SignalRelay
from sandboxd.cli.terminal import RawTerminal
from sandboxd.client import Exec, Exited, InputClosed, Output, OutputLost

_DESCRIPTORS = {"stdout": STDOUT, "stderr": STDERR}

EXIT_TIMED_OUT = 124  # as timeout(1) has it
EXIT_OUTPUT_LOST = 125
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE


@dataclass(frozen=True, slots=True)
class _Conclusion:
    exited: Exited
    lost: int
    """bytes of output"""


async def attach(command: Exec, relay: SignalRelay, *, stdin: bool, terminal: bool) -> int:
    """Stay with a command until it ends; returns the exit status for this process. Raises: ClientError.

    `terminal`: ours is the command's, raw for as long as this lasts.
    """
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(RawTerminal(STDIN)) if terminal else None
            await relay.connect(command, on_terminal_change=_follow(raw, command) if raw else None)
            conclusion = await _converse(command, stdin=stdin)
    except BrokenPipeError:
        return EXIT_BROKEN_PIPE  # nobody reads us any more; as for any program in a pipeline, no reason to talk
    return conclude(conclusion.exited, conclusion.lost)


async def _converse(command: Exec, *, stdin: bool) -> _Conclusion:
    with ungrouped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(command.keep_alive)
            if stdin:
                nursery.start_soon(_pump_stdin, command)
            conclusion = await _show_output(command)
            nursery.cancel_scope.cancel("the command ended")
    return conclusion


async def _show_output(command: Exec) -> _Conclusion:
    lost = 0
    async for event in command:
        if isinstance(event, Output):
            await write_all(_DESCRIPTORS[event.stream], event.data)
        elif isinstance(event, OutputLost):
            lost += event.size
        elif isinstance(event, Exited):
            return _Conclusion(event, lost)
    raise AssertionError("the last event of a command is its exit")


async def _pump_stdin(command: Exec) -> None:
    try:
        async for data in DescriptorReader(STDIN):
            await command.send_stdin(data)
        await command.close_stdin()
    except InputClosed:
        pass  # the command does not want more; that is its right


def _follow(terminal: RawTerminal, command: Exec) -> Callable[[bool], Awaitable[None]]:
    async def follow(continued: bool) -> None:
        if continued:
            terminal.make_raw()  # the shell has set it to its own liking meanwhile
        cols, rows = terminal.size()
        await command.resize(cols=cols, rows=rows)

    return follow


def conclude(exited: Exited, lost: int) -> int:
    """The exit status, and a word on stderr where the status alone would mislead."""
    if exited.timed_out:
        complain(f"the command ran into its time limit and was killed after {exited.duration_ms / 1000:.1f} s")
        return EXIT_TIMED_OUT
    if exited.oom_killed:
        complain("the sandbox ran out of memory: the kernel killed something in it")
    if lost:
        complain(f"{lost} bytes of output were lost")
        return EXIT_OUTPUT_LOST
    return exited.exit_code
