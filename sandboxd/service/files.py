"""Files of a sandbox, moved in and out through sandbox-init: the daemon opens no path that a sandbox controls."""

import contextlib
from collections.abc import AsyncIterator

from sandboxd.isolation.init_files import FileReader
from sandboxd.service.commands import init_errors
from sandboxd.service.entry import Entry


async def upload(
    entry: Entry, path: str, chunks: AsyncIterator[bytes], *, user: str, mode: int, parents: bool
) -> int:
    """Write a file of any size: into a temporary one beside it, then renamed. The number of bytes.

    Cancelled or failed: the file that was there before is untouched. Raises: Conflict, InvalidRequest, SandboxLost.
    """
    running = entry.require_running()
    with init_errors(entry):
        return await running.init.write_file(path, chunks, user=user, mode=mode, atomic=True, parents=parents)


@contextlib.asynccontextmanager
async def download(entry: Entry, path: str, *, user: str) -> AsyncIterator[FileReader]:
    """A regular file: its size, and its bytes as they come. Raises: Conflict, NotFound, SandboxLost."""
    running = entry.require_running()
    with init_errors(entry):
        async with running.init.read_file(path, user=user) as reader:
            yield reader
