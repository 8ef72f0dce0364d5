"""The few things that the client takes of an event loop, or of blocking sockets, so that it runs on each of them.

The client is written once, as coroutines over a `Network`. On trio and asyncio they wait for the loop; on blocking
sockets they never suspend, and `run` takes them from their start to their end like any function.

on_trio.py       trio
on_asyncio.py    asyncio
on_sockets.py    blocking sockets, and threads if there are any
"""

import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Tick = Callable[[], Awaitable[None]]


class Disconnected(Exception):
    """A connection broke, or was closed on this side while it was in use."""


class Stream(Protocol):
    """A connection to the daemon. Owns: its socket."""

    async def send_all(self, data: bytes) -> None:
        """Send all of `data`. Raises: Disconnected, TimedOut."""

    async def receive_some(self, max_bytes: int) -> bytes:
        """Wait for some bytes; `b""` is the end. Raises: Disconnected, TimedOut."""

    def has_input(self) -> bool:
        """Whether `receive_some` would not wait: something has come, or the connection is at its end."""

    def has_room(self) -> bool:
        """Whether a few bytes could be sent without waiting."""

    def close(self) -> None:
        """Close it at once; whoever waits on it is woken."""


class Lock(Protocol):
    """One task (or thread) at a time is in its context."""

    async def __aenter__(self) -> Any: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any: ...

    def locked(self) -> bool:
        """Whether somebody is in its context now."""


class ParkingLot(Protocol):
    """Where tasks (or threads) wait for a thing to change, and are woken all together."""

    def ticket(self) -> int:
        """How often it was unparked so far; take one before looking at the thing."""

    async def park(self, ticket: int) -> None:
        """Wait until `unpark_all` is called; not at all if it was since the ticket was taken."""

    def unpark_all(self) -> None:
        """Wake everybody who waits."""


class Network(Protocol):
    """Connections, and the waiting that goes with them."""

    concurrent: bool
    """whether another task can receive while this one sends"""

    async def connect_unix(self, path: str) -> Stream:
        """Connect to a Unix socket. Raises: OSError."""

    async def connect_tcp(self, host: str, port: int, *, tls: bool) -> Stream:
        """Connect to a TCP port; with `tls` the peer is verified. Raises: OSError, Disconnected."""

    def lock(self) -> Lock:
        """A new lock that nobody holds."""

    def parking_lot(self) -> ParkingLot:
        """A new, empty parking lot."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    async def at_most(self, seconds: float, work: Tick) -> None:
        """Run `work`, and give it up when it takes longer."""

    async def run_until(self, work: Tick, *, until: Tick) -> None:
        """Run both; once `until` is done `work` is cancelled. The first exception ends both, and comes out bare."""

    def every(self, seconds: float, tick: Tick) -> AbstractAsyncContextManager[None]:
        """Call `tick` again and again while the context is open; it is not to raise."""


def current() -> Network:
    """The network of the event loop that runs here. Raises: RuntimeError without one."""
    if (trio := sys.modules.get("trio")) is not None and trio.lowlevel.in_trio_run():
        from sandboxd.client.network.on_trio import TRIO

        return TRIO
    if (asyncio := sys.modules.get("asyncio")) is not None and asyncio._get_running_loop() is not None:
        from sandboxd.client.network.on_asyncio import ASYNCIO

        return ASYNCIO
    raise RuntimeError("AsyncClient is for code that runs in trio or asyncio; use Client elsewhere")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never suspends, as all are on blocking sockets."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("cannot wait here: an asynchronous iterator was given to the blocking client")
