"""What may last is bounded in number, and what ends it is always answered.

Watches have a budget too, but take more of the host's inotify instances than it may have.
"""

import errno
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from sandboxd.isolation.init.client import InitClient, InitError, SpawnRequest
from sandboxd.isolation.init.wire import (
    MAX_ATTACHED,
    MAX_FOLLOWERS,
    MAX_WORKERS,
    Scope,
    StdinMode,
)
from tests.init.harness import RunningInit
from tests.support.waiting import PATIENCE

CAT = SpawnRequest(argv=["cat"], stdin=StdinMode.PIPE)


Opener = Callable[[InitClient, Path], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def follower(client: InitClient, _: Path) -> AsyncIterator[None]:
    async with client.spawn_attached(CAT):
        yield


@asynccontextmanager
async def writer(client: InitClient, _: Path) -> AsyncIterator[None]:
    """To the stdin of the first command; it is known to be there once something was taken."""
    async with client.stdin(1) as attachment:
        await attachment.feed(b"x")
        yield


@asynccontextmanager
async def attached(client: InitClient, _: Path) -> AsyncIterator[None]:
    """To the first command; it is known to be there once the answer to a byte typed is received."""
    async with client.attach(1) as attachment:
        await attachment.feed(b"x")
        yield


@asynccontextmanager
async def read(client: InitClient, directory: Path) -> AsyncIterator[None]:
    """A file whose reader does not read on."""
    async with client.read_file(str(directory / "large")):
        yield


LASTING: list[tuple[Opener, int]] = [
    (follower, MAX_FOLLOWERS),
    (writer, MAX_FOLLOWERS),
    (attached, MAX_ATTACHED),
    (read, MAX_WORKERS),
]


async def wait_until_opened(open_one: Opener, client: InitClient, directory: Path) -> None:
    """All of them are given back; init learns of their ends one by one."""
    while True:
        try:
            async with open_one(client, directory):
                return
        except InitError as error:
            if error.kind != "too_many":
                raise
        await trio.sleep(0.01)


@pytest.mark.parametrize(("open_one", "limit"), LASTING, ids=[one.__name__ for one, _ in LASTING])
async def test_one_too_many_is_refused_at_once_and_what_ends_them_is_not(
    release_init: RunningInit, directory: Path, open_one: Opener, limit: int
) -> None:
    client = release_init.client
    (directory / "large").write_bytes(bytes(4 * 1024 * 1024))  # more than the sockets of a connection hold
    first = await client.spawn(CAT)
    with trio.fail_after(2 * PATIENCE):
        async with AsyncExitStack() as held:
            for _ in range(limit):
                await held.enter_async_context(open_one(client, directory))
            for _ in range(3):
                with pytest.raises(InitError, match=f"cannot have more than {limit}") as raised:
                    async with open_one(client, directory):
                        pass
                assert (raised.value.kind, raised.value.errno) == ("too_many", errno.EAGAIN)
            assert (await client.hello()).pid == release_init.pid
            assert (await client.commands())[-1].command == first.command
            assert await client.signal(first.command, 0, scope=Scope.TREE) == 1
            await client.signal(first.command, signal.SIGCONT)
            if limit != MAX_WORKERS:
                assert (await client.stat("/tmp")).path == "/tmp"
        await wait_until_opened(open_one, client, directory)


async def test_all_budgets_together_leave_room_for_control(release_init: RunningInit, directory: Path) -> None:
    client = release_init.client
    (directory / "large").write_bytes(bytes(4 * 1024 * 1024))
    first = await client.spawn(CAT)
    with trio.fail_after(3 * PATIENCE):
        async with AsyncExitStack() as held:
            for open_one, limit in LASTING:
                if open_one is not writer:  # which counts with the followers
                    for _ in range(limit):
                        await held.enter_async_context(open_one(client, directory))
            assert await client.signal(first.command, 9, scope=Scope.TREE) == 1
            assert (await client.hello()).count > MAX_FOLLOWERS / 2
