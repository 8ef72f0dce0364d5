"""`sandboxctl`: the daemon's command line.

Each command is loaded when it is used, so that `--help`, completion and a mistyped name answer at once. The modules
beside this one hold the commands; here is which there are.
"""

import importlib
from collections.abc import Mapping
from typing import Any

import click
from click.shell_completion import CompletionItem

from sandboxd import __version__

# section → name → (where, what for)
COMMANDS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "Commands in sandboxes": {
        "run": ("sandboxd.cli.run:run", "Run one command in a throw-away sandbox."),
        "exec": ("sandboxd.cli.run:exec_command", "Run a command in a sandbox."),
        "shell": ("sandboxd.cli.ptys:shell", "Open a login shell in a sandbox."),
        "attach": ("sandboxd.cli.ptys:attach", "Come back to a terminal in a sandbox."),
        "ps": ("sandboxd.cli.commands:ps", "List background commands and terminals."),
        "logs": ("sandboxd.cli.commands:logs", "Show the output of a background command."),
        "kill": ("sandboxd.cli.commands:kill", "Kill, or signal, a background command."),
        "code": ("sandboxd.cli.code:code", "Run code in a kernel that remembers."),
        "cp": ("sandboxd.cli.copy:cp", "Copy files and directories in or out."),
        "fs": ("sandboxd.cli.fs:fs", "List, print, move, remove … files in a sandbox."),
        "watch": ("sandboxd.cli.watch:watch", "Show what happens to files in a sandbox."),
    },
    "Sandboxes": {
        "create": ("sandboxd.cli.sandboxes:create", "Create a sandbox."),
        "ls": ("sandboxd.cli.sandboxes:ls", "List sandboxes."),
        "inspect": ("sandboxd.cli.sandboxes:inspect", "Show all about sandboxes."),
        "pause": ("sandboxd.cli.lifecycle:pause", "Freeze sandboxes."),
        "resume": ("sandboxd.cli.lifecycle:resume", "Let paused sandboxes go on."),
        "stop": ("sandboxd.cli.lifecycle:stop", "End all processes of sandboxes; files stay."),
        "start": ("sandboxd.cli.lifecycle:start", "Start stopped or exited sandboxes."),
        "timeout": ("sandboxd.cli.lifecycle:timeout", "Set how long a sandbox may live, or be idle."),
        "touch": ("sandboxd.cli.lifecycle:touch", "Count sandboxes as used now."),
        "rm": ("sandboxd.cli.sandboxes:rm", "Delete sandboxes."),
        "metrics": ("sandboxd.cli.usage:metrics", "Show what a sandbox uses."),
        "top": ("sandboxd.cli.usage:top", "Watch what all sandboxes use."),
        "events": ("sandboxd.cli.records:events", "Show what happened, or happens."),
    },
    "Snapshots": {
        "snapshot": ("sandboxd.cli.snapshots:snapshot", "Take, list, delete, export … snapshots."),
        "clone": ("sandboxd.cli.snapshots:clone", "Make sandboxes with the files of another."),
        "restore": ("sandboxd.cli.snapshots:restore", "Put a sandbox's files back to a snapshot."),
        "storage": ("sandboxd.cli.snapshots:storage", "Show what is on the disk, and collect garbage."),
    },
    "Ports": {
        "ports": ("sandboxd.cli.ports:ports", "List what listens in a sandbox, and what is exposed."),
        "expose": ("sandboxd.cli.ports:expose", "Give a port of a sandbox a URL, or take it away."),
        "forward": ("sandboxd.cli.forward:forward", "Bring ports of a sandbox to this machine."),
    },
    "The daemon": {
        "info": ("sandboxd.cli.host:info", "Show how the daemon is and what it can do."),
        "log": ("sandboxd.cli.records:log", "Show the daemon's log."),
        "image": ("sandboxd.cli.images:image", "Build, import, list and remove images."),
        "key": ("sandboxd.cli.keys:key", "Create, list and revoke API keys."),
        "help": ("sandboxd.cli.manual:help_command", "Show a topic of the manual, or list them."),
        "completion": ("sandboxd.cli.host:completion", "Print a completion script for a shell."),
    },
}
_LOCATIONS = {name: entry for section in COMMANDS.values() for name, entry in section.items()}


class LazyGroup(click.Group):
    """A group that knows its commands by name and summary, and loads one when it is invoked."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_LOCATIONS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _LOCATIONS:
            return None
        module, attribute = _LOCATIONS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, commands in COMMANDS.items():
            with formatter.section(section):
                # All sections with the columns of one table.
                rows = [(name.ljust(max(map(len, _LOCATIONS))), summary) for name, (_, summary) in commands.items()]
                formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        found = [
            CompletionItem(name, help=what) for name, (_, what) in _LOCATIONS.items() if name.startswith(incomplete)
        ]
        return found or click.Command.shell_complete(self, ctx, incomplete)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="sandboxctl", message="%(prog)s %(version)s")
@click.option(
    "--url",
    metavar="URL",
    help="The daemon: unix:PATH or http://HOST:PORT; by default SANDBOXD_URL, or its socket.",
)
def cli(url: str | None) -> None:
    """Throw-away Linux machines in milliseconds: talk to sandboxd.

    The key for a daemon that asks for one is taken from SANDBOXD_API_KEY.
    """


def main(arguments: list[str] | None = None, **options: Any) -> None:
    cli.main(arguments, prog_name="sandboxctl", **options)


if __name__ == "__main__":
    main()
