"""From click's world to trio's: one client per command, errors as sentences."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import click
import trio
from click.shell_completion import CompletionItem

from sandboxd.cli.output import Failure
from sandboxd.client import AsyncClient, ClientError
from sandboxd.errors import first_leaf

T = TypeVar("T")

INTERRUPTED = 130


def failed(error: ClientError | OSError) -> Failure:
    """What to tell a person about an error."""
    return Failure(explain(error))


def explain(error: ClientError | OSError) -> str:
    if isinstance(error, ClientError):
        return str(error)
    where = f"{error.filename}: " if error.filename else ""
    return f"cannot go on: {where}{error.strerror}"


def with_client(
    function: Callable[[AsyncClient], Awaitable[T]], *, failure: Callable[[ClientError | OSError], Failure] = failed
) -> T:
    """Run `function` with a client of the daemon that was asked for. Raises: what `failure` makes of an error."""
    ctx = click.get_current_context(silent=True)
    url = ctx.find_root().params.get("url") if ctx else None

    async def run() -> T:
        async with AsyncClient(url) as client:
            return await function(client)

    try:
        with ungrouped():
            return trio.run(run)
    except BrokenPipeError:
        raise  # click ends quietly
    except (ClientError, OSError) as error:
        raise failure(error) from error
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


# What a command may end with; anything else is a bug and shows its traceback.
EXPECTED = (ClientError, click.ClickException, OSError, KeyboardInterrupt)


@contextmanager
def ungrouped() -> Iterator[None]:
    """Let an expected error, or an interrupt, out of a nursery as itself; a bug keeps its group."""
    try:
        yield
    except BaseExceptionGroup as group:
        expected, bugs = group.split(EXPECTED)
        if expected is None or bugs is not None:
            raise
        raise first_leaf(expected) from group


class SandboxName(click.ParamType[str]):
    """A sandbox's id or name; the shell completes those that exist."""

    name = "sandbox"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        async def names(client: AsyncClient) -> list[CompletionItem]:
            return [
                CompletionItem(label, help=sandbox.image)
                async for sandbox in client.sandboxes()
                for label in (sandbox.name, sandbox.id)
                if label and label.startswith(incomplete)
            ]

        try:
            return with_client(names)
        except Failure:
            return []  # a completion must not talk


SANDBOX = SandboxName()
