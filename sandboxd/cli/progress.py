"""A progress bar on stderr for transfers that take long enough to ask for one."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# What this machine copies in the blink of an eye needs no bar.
WORTH_SHOWING = 8 * 1024 * 1024

Advance = Callable[[int], None]


@contextmanager
def transfer_progress(what: str, size: int | None) -> Iterator[Advance]:
    """Yields a function to call with each number of bytes done; `size` None is a transfer of unknown length."""
    if not sys.stderr.isatty() or (size is not None and size < WORTH_SHOWING):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=size)
        yield lambda done: progress.advance(task, done)
