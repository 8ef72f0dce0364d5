"""The client's network on asyncio."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sandboxd.client.network import Disconnected, Lock, Network, ParkingLot, Stream, Tick
from sandboxd.client.network.polling import is_readable, is_writable


class AsyncioStream:
    """A pair of asyncio's streams, plain or with TLS."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send_all(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except (OSError, RuntimeError) as error:  # RuntimeError: written to after it was closed
            raise Disconnected from error

    async def receive_some(self, max_bytes: int) -> bytes:
        try:
            return await self._reader.read(max_bytes)
        except OSError as error:
            raise Disconnected from error

    def has_input(self) -> bool:
        return self._reader.at_eof() or is_readable(self._writer.get_extra_info("socket").fileno())

    def has_room(self) -> bool:
        return is_writable(self._writer.get_extra_info("socket").fileno())

    def close(self) -> None:
        self._writer.transport.abort()  # a close would wait for what is still to be sent, which nobody reads


class AsyncioParkingLot:
    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []
        self._count = 0

    def ticket(self) -> int:
        return self._count

    async def park(self, ticket: int) -> None:
        if ticket == self._count:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future

    def unpark_all(self) -> None:
        self._count += 1
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class AsyncioNetwork:
    concurrent = True

    async def connect_unix(self, path: str) -> Stream:
        return AsyncioStream(*await asyncio.open_unix_connection(path))

    async def connect_tcp(self, host: str, port: int, *, tls: bool) -> Stream:
        context = ssl.create_default_context() if tls else None
        try:
            return AsyncioStream(*await asyncio.open_connection(host, port, ssl=context))
        except ssl.SSLError as error:
            raise Disconnected(error) from error

    def lock(self) -> Lock:
        return asyncio.Lock()

    def parking_lot(self) -> ParkingLot:
        return AsyncioParkingLot()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def at_most(self, seconds: float, work: Tick) -> None:
        try:
            async with asyncio.timeout(seconds):
                await work()
        except TimeoutError:
            pass

    async def run_until(self, work: Tick, *, until: Tick) -> None:
        tasks = [asyncio.ensure_future(work()), asyncio.ensure_future(until())]
        worker, last = tasks
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not last.done() and worker.exception() is None:
                await asyncio.wait([last])
            failed = [task for task in tasks if task.done() and task.exception() is not None]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in failed:
            task.result()

    @asynccontextmanager
    async def every(self, seconds: float, tick: Tick) -> AsyncIterator[None]:
        async def go_on() -> None:
            while True:
                await asyncio.sleep(seconds)
                await tick()

        task = asyncio.ensure_future(go_on())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


ASYNCIO: Network = AsyncioNetwork()
