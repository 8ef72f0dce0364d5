"""Output: tables for people, JSON for programs, errors as one sentence on stderr."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import click

from sandboxd.cli.values import printable
from sandboxd.printable import escaped_json

json_option = click.option("--json", "as_json", is_flag=True, help="Output for programs.")


class Failure(click.ClickException):
    """Ends the program: one sentence on stderr, and exit status 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        complain(self.message)


class RunFailure(Failure):
    """We failed, not the command that was to run: statuses that few commands use themselves (as env(1), docker)."""

    exit_code = 125


class NotExecutable(RunFailure):
    exit_code = 126


class NotFound(RunFailure):
    exit_code = 127


def complain(message: object) -> None:
    click.echo(f"sandboxctl: {printable(message)}", err=True)


def print_json(value: Any) -> None:
    """Indented: it is read by people too, on terminals."""
    click.echo(escaped_json(json.dumps(value, indent=2, ensure_ascii=False)))


def print_json_line(value: Any) -> None:
    click.echo(escaped_json(json.dumps(value, ensure_ascii=False)))
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A column whose name ends in ">" is aligned to the right. Cut to the width of a terminal, and only of one."""
    if not sys.stdout.isatty():
        for line in _plain_table(columns, [[printable(cell) for cell in row] for row in rows]):
            click.echo(line)
        return
    from rich.console import Console

    Console(highlight=False, emoji=False).print(make_table(columns, rows))


def _plain_table(columns: Sequence[str], rows: list[list[str]]) -> Iterator[str]:
    lines = [[column.rstrip(">") for column in columns], *rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(columns, line, widths, strict=True)
        padded = (cell.rjust(width) if column.endswith(">") else cell.ljust(width) for column, cell, width in cells)
        yield "  ".join(padded).rstrip()


def make_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Any:
    """A rich table, columns as for `print_table`."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    cells = [[Text(printable(cell)) for cell in row] for row in rows]
    for number, column in enumerate(columns):
        # The first column is what people copy, so it is always whole; the last takes more lines if it must.
        whole = max((len(row[0]) for row in cells), default=0) if number == 0 else None
        wraps = number == len(columns) - 1 and not column.endswith(">")
        table.add_column(
            column.rstrip(">"),
            justify="right" if column.endswith(">") else "left",
            min_width=whole,
            no_wrap=not wraps,
            overflow="fold" if wraps else "ellipsis",
        )
    for row in cells:
        table.add_row(*row)
    return table


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Name and value, one pair per line."""
    pairs = [(printable(name), printable(value)) for name, value in facts if value not in (None, "", {}, ())]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        click.echo(f"{name:<{width}}  {value}")
