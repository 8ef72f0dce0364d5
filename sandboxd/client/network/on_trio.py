"""The client's network on trio."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from sandboxd.client.network import Disconnected, Lock, Network, ParkingLot, Stream, Tick
from sandboxd.client.network.polling import is_readable, is_writable


class TrioStream:
    """A socket of trio's, plain or with TLS."""

    def __init__(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream
        plain = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        self._socket = plain.socket

    async def send_all(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Disconnected from error

    async def receive_some(self, max_bytes: int) -> bytes:
        try:
            return bytes(await self._stream.receive_some(max_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Disconnected from error

    def has_input(self) -> bool:
        return is_readable(self._socket.fileno())

    def has_room(self) -> bool:
        return is_writable(self._socket.fileno())

    def close(self) -> None:
        self._socket.close()


class TrioParkingLot:
    def __init__(self) -> None:
        self._lot = trio.lowlevel.ParkingLot()
        self._count = 0

    def ticket(self) -> int:
        return self._count

    async def park(self, ticket: int) -> None:
        if ticket == self._count:
            await self._lot.park()

    def unpark_all(self) -> None:
        self._count += 1
        self._lot.unpark_all()


class TrioNetwork:
    concurrent = True

    async def connect_unix(self, path: str) -> Stream:
        return TrioStream(await trio.open_unix_socket(path))

    async def connect_tcp(self, host: str, port: int, *, tls: bool) -> Stream:
        if not tls:
            return TrioStream(await trio.open_tcp_stream(host, port))
        context = ssl.create_default_context()
        stream = await trio.open_ssl_over_tcp_stream(host, port, ssl_context=context)
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as error:
            await trio.aclose_forcefully(stream)
            raise Disconnected(error.__cause__ or "the TLS handshake failed") from error
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return TrioStream(stream)

    def lock(self) -> Lock:
        return trio.StrictFIFOLock()

    def parking_lot(self) -> ParkingLot:
        return TrioParkingLot()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def at_most(self, seconds: float, work: Tick) -> None:
        with trio.move_on_after(seconds):
            await work()

    async def run_until(self, work: Tick, *, until: Tick) -> None:
        failures: list[Exception] = []

        async def guard(function: Tick) -> None:
            try:
                await function()
            except Exception as error:
                failures.append(error)
                nursery.cancel_scope.cancel("the other half of the exchange failed")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(guard, work)
            await guard(until)
            nursery.cancel_scope.cancel("answered")
        if failures:
            raise failures[0]

    @asynccontextmanager
    async def every(self, seconds: float, tick: Tick) -> AsyncIterator[None]:
        async def go_on() -> None:
            while True:
                await trio.sleep(seconds)
                await tick()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_on)
            yield
            nursery.cancel_scope.cancel("the connection is closed")


TRIO: Network = TrioNetwork()
