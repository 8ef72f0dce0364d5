"""events and log: what happened, page by page, and what happens, as it does."""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

import click

from sandboxd.cli.output import json_option, print_json_line
from sandboxd.cli.runner import SANDBOX, with_client
from sandboxd.cli.values import printable, show_time
from sandboxd.client import Event, LogRecord
from sandboxd.client.models import Json

PAGE = 1000


class Record(Protocol):
    """What events and log lines have in common."""

    @property
    def id(self) -> int: ...
    @property
    def raw(self) -> Json: ...


R = TypeVar("R", bound=Record)
Page = Callable[[int], Awaitable[tuple[list[R], int | None]]]
Follow = Callable[[int | None], AbstractAsyncContextManager[AsyncIterator[R]]]

follow_option = click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now.")
tail_option = click.option(
    "-n", "--tail", type=click.IntRange(min=0), help="Only the last so many; with --follow none by default."
)


@click.command()
@follow_option
@tail_option
@click.option("--after", type=click.IntRange(min=0), help="Only those after the event with this id.")
@click.option("--sandbox", type=SANDBOX, help="Only those of one sandbox, by id.")
@json_option
def events(follow: bool, tail: int | None, after: int | None, sandbox: str | None, as_json: bool) -> None:
    """Show what happened to sandboxes; with --follow, what happens. --json prints one object per line."""

    def show(event: Event) -> None:
        details = " ".join(f"{name}={value}" for name, value in event.details.items())
        click.echo(printable(f"{show_time(event.at)}  {event.kind:<8}  {event.sandbox}  {details}").rstrip())

    with_client(
        lambda client: print_records(
            page=lambda start: client.events(after=start, limit=PAGE, sandbox=sandbox),
            stream=lambda start: client.follow_events(after=start, sandbox=sandbox),
            show=(lambda event: print_json_line(event.raw)) if as_json else show,
            after=after,
            tail=tail,
            follow=follow,
        )
    )


@click.command()
@follow_option
@tail_option
@json_option
def log(follow: bool, tail: int | None, as_json: bool) -> None:
    """Show the daemon's latest log lines (it keeps 1000); with --follow, what it goes on to say.

    --json prints one object per line. Over TCP this takes a key with the scope admin.
    """

    def show(record: LogRecord) -> None:
        click.echo(printable(f"{show_time(record.at)}  {record.level:<7}  {record.logger}: {record.message}"))

    with_client(
        lambda client: print_records(
            page=lambda start: client.log(after=start, limit=PAGE),
            stream=lambda start: client.follow_log(after=start),
            show=(lambda record: print_json_line(record.raw)) if as_json else show,
            after=None,
            tail=tail,
            follow=follow,
        )
    )


async def print_records(
    *,
    page: Page[R],
    stream: Follow[R],
    show: Callable[[R], None],
    after: int | None,
    tail: int | None,
    follow: bool,
) -> None:
    """The past (all of it, the last `tail`, or what came after `after`), then, if asked for, the present."""
    if not follow or tail is not None or after is not None:
        for record in await _collect(page, after or 0, tail):
            show(record)
            after = record.id
    if follow:
        async with stream(after) as records:
            async for record in records:
                show(record)


async def _collect(page: Page[R], after: int, tail: int | None) -> deque[R]:
    kept: deque[R] = deque(maxlen=tail)
    while True:
        records, following = await page(after)
        kept.extend(records)
        if len(records) < PAGE or following is None:
            return kept
        after = following
