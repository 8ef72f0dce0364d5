"""Options that several commands share."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from sandboxd.cli.values import DURATION, SIZE, assignments_from, environment_from

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_SIZE = (80, 24)


def _all(*decorators: Callable[[Any], Any]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


environment_option = click.option(
    "-e",
    "--env",
    multiple=True,
    metavar="NAME=VALUE",
    callback=environment_from,
    help="Environment variable; NAME alone passes ours on. Repeatable.",
)
user_option = click.option("-u", "--user", metavar="NAME", help="User inside; by default the image's.")
workdir_option = click.option("-w", "--workdir", metavar="DIR", help="Working directory inside.")

# What a sandbox is made of.
sandbox_options = _all(
    click.option("--image", metavar="NAME", help="Image; by default the daemon's default image."),
    click.option("--snapshot", metavar="NAME", help="Snapshot to begin with the files of, in place of an image."),
    click.option("--name", metavar="NAME", help="A name to use in place of the id."),
    environment_option,
    click.option(
        "--metadata",
        multiple=True,
        metavar="KEY=VALUE",
        callback=assignments_from,
        help="Kept with the sandbox, to find it by. Repeatable.",
    ),
    user_option,
    workdir_option,
    click.option("--hostname", metavar="NAME", help="Host name inside."),
    click.option("--backend", metavar="NAME", help="What isolates it; by default the daemon's default backend."),
    click.option("-m", "--memory", type=SIZE, metavar="SIZE", help="Limit of memory, e.g. 512M."),
    click.option("--swap", type=SIZE, metavar="SIZE", help="Limit of swap, e.g. 0."),
    click.option("--cpus", type=click.FloatRange(min=0, min_open=True), help="Limit of processor time, e.g. 1.5."),
    click.option("--cpu-weight", type=click.IntRange(1, 10_000), help="Share under contention; 100 is normal."),
    click.option("--pids", type=click.IntRange(min=1), help="Limit of processes."),
    click.option("--read-bps", type=SIZE, metavar="SIZE", help="Limit of disk reads per second, e.g. 20M."),
    click.option("--write-bps", type=SIZE, metavar="SIZE", help="Limit of disk writes per second."),
    click.option("--disk", type=SIZE, metavar="SIZE", help="Limit of what it may write to its disk, e.g. 2G."),
)

ACTIONS = click.Choice(("kill", "pause", "stop"))

# How long a sandbox lives, and what happens then.
time_options = _all(
    click.option("--timeout", type=DURATION, metavar="DURATION", help="Its lifetime, e.g. 1h."),
    click.option("--on-timeout", type=ACTIONS, help="What happens at its end; by default it is killed."),
    click.option("--idle-timeout", type=DURATION, metavar="DURATION", help="How long it may be idle, e.g. 10m."),
    click.option("--on-idle", type=ACTIONS, help="What happens then; by default the same as on timeout."),
    click.option("--auto-resume", is_flag=True, help="Wake it whenever it is needed."),
)

_LIMITS = {
    "memory": "memory_bytes",
    "swap": "swap_bytes",
    "cpus": "cpus",
    "cpu_weight": "cpu_weight",
    "pids": "pids",
    "read_bps": "read_bps",
    "write_bps": "write_bps",
    "disk": "disk_bytes",
}


def sandbox_wish(**options: Any) -> dict[str, Any]:
    """Arguments for `Client.create` from `sandbox_options`, under the names that both have."""
    limits = {_LIMITS[name]: value for name, value in options.items() if name in _LIMITS and value is not None}
    wish = {name: value for name, value in options.items() if name not in _LIMITS}
    return {**wish, "env": wish["env"] or None, "metadata": wish["metadata"] or None, "limits": limits or None}


# How a command's input and output are joined to ours.
terminal_options = _all(
    click.option(
        "-t/-T",
        "--terminal/--no-terminal",
        default=None,
        help="Give the command a terminal; by default when stdin and stdout are terminals.",
    ),
    click.option(
        "-i/-I",
        "--stdin/--no-stdin",
        default=None,
        help="Pass our stdin on; by default `run` does unless it is the keyboard, `exec` only with a terminal.",
    ),
    click.option(
        "--timeout", type=DURATION, metavar="DURATION", help="Kill the command after this, e.g. 30s; exit status 124."
    ),
)


detach_option = click.option(
    "-d", "--detach", is_flag=True, help="Let it run by itself; with -t in a terminal to `attach` to."
)


@dataclass(frozen=True, slots=True)
class Joint:
    """How a command is joined to this process."""

    stdin: bool
    terminal: tuple[int, int] | None
    """(cols, rows) of the terminal the command gets"""
    raw: bool
    """our own terminal is that terminal"""

    @property
    def environment(self) -> dict[str, str]:
        return {"TERM": os.environ.get("TERM", "xterm-256color")} if self.terminal else {}


def choose_joint(*, terminal: bool | None, stdin: bool | None, piped_stdin: bool) -> Joint:
    """Fill in what was not said: a terminal if we have one at both ends, and its stdin; a pipe's if `piped_stdin`.

    With stdin a terminal and stdout a pipe (`… | less`) the keyboard is left to the other program.
    """
    typed, shown = _is_terminal(sys.__stdin__), _is_terminal(sys.__stdout__)
    if terminal is None:
        terminal = typed and shown
    if stdin is None:
        stdin = terminal or (piped_stdin and not typed)
    return Joint(stdin=stdin, terminal=_size() if terminal else None, raw=terminal and stdin and typed)


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()


def _size() -> tuple[int, int]:
    for descriptor in (0, 1, 2):
        try:
            cols, rows = os.get_terminal_size(descriptor)
        except OSError:
            continue
        if cols and rows:
            return cols, rows
    return DEFAULT_SIZE
