"""The logs of commands, read and removed in threads of their own, apart from those that start processes."""

import shutil
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Final

import trio

from sandboxd.model import StreamName
from sandboxd.service.commands.log import LogPage, end_of_log, read_log
from sandboxd.threads import run_in_thread

# What one read of a log takes into memory.
PAGE: Final = 256 * 1024
THREADS: Final = 16


class LogFiles:
    """Of all commands; each is named by its log's directory. A log that is not there (any more) is an empty one."""

    def __init__(self) -> None:
        self.threads = trio.CapacityLimiter(THREADS)

    async def read(
        self, directory: Path, start: int, *, limit: int = PAGE, stream: StreamName | None = None
    ) -> LogPage:
        """At most `limit` bytes of output from a position of the log on, or from an offset of one stream."""
        return await run_in_thread(
            lambda: read_log(directory, start, limit=limit, stream=stream), limiter=self.threads
        )

    async def end(self, directory: Path) -> tuple[int, Mapping[StreamName, int]]:
        """The position at which the log ends, and each stream's offset there."""
        return await run_in_thread(end_of_log, directory, limiter=self.threads)

    async def remove(self, directory: Path) -> None:
        await run_in_thread(_remove, directory, limiter=self.threads)

    async def remove_others(self, directory: Path, known: Container[str]) -> None:
        """Logs of commands that were forgotten by a daemon that got no further. `known` may grow meanwhile."""
        await run_in_thread(_remove_others, directory, known, limiter=self.threads)


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def _remove_others(directory: Path, known: Container[str]) -> None:
    try:
        names = {path.name for path in directory.iterdir()}
    except FileNotFoundError:
        return
    for name in names:
        if name not in known:
            _remove(directory / name)
