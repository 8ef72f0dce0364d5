"""The client's network on blocking sockets: its coroutines never suspend. Threads may share what is made here."""

import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import TracebackType

from sandboxd.client.errors import TimedOut
from sandboxd.client.network import Disconnected, Lock, ParkingLot, Stream, Tick, run
from sandboxd.client.network.polling import is_readable, is_writable


class SocketStream:
    """A socket, plain or with TLS."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    async def send_all(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except TimeoutError as error:
            raise self._overdue() from error
        except OSError as error:
            raise Disconnected from error

    async def receive_some(self, max_bytes: int) -> bytes:
        try:
            return self._socket.recv(max_bytes)
        except TimeoutError as error:
            raise self._overdue() from error
        except OSError as error:
            raise Disconnected from error

    def has_input(self) -> bool:
        return is_readable(self._socket.fileno())

    def has_room(self) -> bool:
        return is_writable(self._socket.fileno())

    def close(self) -> None:
        with suppress(OSError):  # closing alone does not wake a thread that waits on it
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _overdue(self) -> TimedOut:
        return TimedOut(f"cannot go on: the daemon has been silent for {self._socket.gettimeout()} s")


class ThreadLock:
    """A lock between threads, in the shape that coroutines use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    async def __aenter__(self) -> None:
        self._lock.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()


class ThreadParkingLot:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0

    def ticket(self) -> int:
        return self._count

    async def park(self, ticket: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._count != ticket)

    def unpark_all(self) -> None:
        with self._changed:
            self._count += 1
            self._changed.notify_all()


class SocketNetwork:
    concurrent = False

    def __init__(self, timeout: float | None) -> None:
        """`timeout`: the seconds that one wait for the daemon may take; None for ever."""
        self._timeout = timeout

    async def connect_unix(self, path: str) -> Stream:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(self._timeout)
            sock.connect(path)
        except BaseException:
            sock.close()
            raise
        return SocketStream(sock)

    async def connect_tcp(self, host: str, port: int, *, tls: bool) -> Stream:
        sock = socket.create_connection((host, port), timeout=self._timeout)
        if not tls:
            return SocketStream(sock)
        import ssl  # as slow to load as all of the client

        try:
            return SocketStream(ssl.create_default_context().wrap_socket(sock, server_hostname=host))
        except ssl.SSLError as error:
            raise Disconnected(error) from error
        finally:
            sock.close()  # a wrapped one has taken the descriptor over

    def lock(self) -> Lock:
        return ThreadLock()

    def parking_lot(self) -> ParkingLot:
        return ThreadParkingLot()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - nothing else runs in this thread

    async def at_most(self, seconds: float, work: Tick) -> None:
        await work()  # nothing here can be given up half way: the socket's own time-out bounds it

    async def run_until(self, work: Tick, *, until: Tick) -> None:
        await work()
        await until()

    @asynccontextmanager
    async def every(self, seconds: float, tick: Tick) -> AsyncIterator[None]:
        over = threading.Event()

        def go_on() -> None:
            while not over.wait(seconds):
                run(_awaiting(tick))

        thread = threading.Thread(target=go_on, name="sandboxd client's heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


async def _awaiting(tick: Tick) -> None:
    await tick()
