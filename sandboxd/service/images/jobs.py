"""Making images on request of a client: in a process or thread of their own, ended with the request."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import trio

from sandboxd.errors import Unprocessable, ungrouped
from sandboxd.model import Image
from sandboxd.service.images.store import ImageStore
from sandboxd.threads import open_process, run_in_thread

# Building takes all the disk and processor it can get: one at a time, apart from every other kind of thread.
_limiter = trio.CapacityLimiter(1)
# mmdebstrap cleans up after itself when interrupted.
INTERRUPT_LIMIT = 30.0


async def import_archive(store: ImageStore, name: str, chunks: AsyncIterator[bytes]) -> Image:
    """An image of a tar archive that arrives piece by piece. Raises: InvalidRequest, TooLarge, Unprocessable."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    images: list[Image] = []

    def unpack() -> None:
        with os.fdopen(read_end, "rb") as archive:
            images.append(store.import_tar(archive, name))

    with ungrouped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pour, chunks, write_end)
            # Cancelled: the pipe closes, the archive ends too early, and the thread cleans up and returns.
            await run_in_thread(unpack, limiter=_limiter)
            nursery.cancel_scope.cancel("the archive was read")
    return images[0]


async def _pour(chunks: AsyncIterator[bytes], write_end: int) -> None:
    async with trio.lowlevel.FdStream(write_end) as pipe:
        try:
            async for chunk in chunks:
                await pipe.send_all(chunk)
        except trio.BrokenResourceError:  # the reader has what it needs, or gave up and says why
            pass


async def build(image_dir: Path, name: str, *, rebuild: bool) -> AsyncGenerator[str, None]:
    """Lines for people, as the build goes on. Closed early, the build ends.

    Raises: Unprocessable when it fails, Unavailable when there is no process for it.
    """
    command = [sys.executable, "-m", "sandboxd.service.images.build", name, "--image-dir", str(image_dir)]
    if rebuild:
        command.append("--rebuild")
    async with _limiter:
        process = await open_process(
            command,
            verb="build the image",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        last = ""
        try:
            assert process.stdout is not None
            async for line in _lines(process.stdout):
                last = line
                yield line
            if await process.wait() != 0:
                raise Unprocessable(f"cannot build the image {name!r}: {last}", kind="build_failed")
        finally:
            with trio.CancelScope(shield=True):
                await _interrupt(process)


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncGenerator[str, None]:
    rest = b""
    async for chunk in stream:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


async def _interrupt(process: trio.Process) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        with trio.move_on_after(INTERRUPT_LIMIT):
            await process.wait()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.stdout is not None:
        await process.stdout.aclose()
