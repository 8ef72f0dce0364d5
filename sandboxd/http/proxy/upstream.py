"""The program's side of the proxy: HTTP/1.1 connections to ports of sandboxes, and those kept for another request.

Everything that comes out of a port is hostile. h11 parses it with a bounded head; whatever it does not accept, and
bytes that nobody asked for, end the connection. Connections are shared between the clients of one port of one sandbox
only, so a program that mixes up its answers deceives nobody but its own clients.
"""

import select
from collections import deque
from weakref import WeakKeyDictionary

import h11
import trio

from sandboxd.errors import BadGateway, Conflict, GatewayTimeout, InvalidRequest
from sandboxd.service.ports import PortConnection, Ports
from sandboxd.service.sandboxes.entry import Entry

READ_BYTES = 64 * 1024

# As the daemon takes from its own clients.
MAX_HEAD_BYTES = 64 * 1024

# Servers keep an idle connection for 2 s (gunicorn) to 75 s (nginx): leave before any of them does.
IDLE_SECONDS = 1.5
MAX_IDLE = 16


class Upstream:
    """One connection, one exchange at a time. Owns: the connection.

    Raises (every method): BadGateway when the program breaks off or does not speak HTTP.
    """

    def __init__(self, connection: PortConnection, *, port: int) -> None:
        self.port = port
        self.reused = False
        self._connection = connection
        self._stream = connection.stream
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)

    async def send(self, *events: h11.Event) -> None:
        """Raises also InvalidRequest: what the client sent cannot be said, e.g. a body of another length."""
        try:
            data = b"".join(part for event in events if (part := self._h11.send(event)))
        except h11.LocalProtocolError as error:
            raise InvalidRequest(f"cannot pass this request on: {error}") from error
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self._broken("it closed the connection") from error

    async def receive(self) -> h11.Event:
        """The next event; never 1xx but 101."""
        while True:
            event = self.receive_nowait()
            if event is not None:
                return event
            await self._read()

    def receive_nowait(self) -> h11.Event | None:
        """The next event, if its bytes are here."""
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                raise self._broken(f"it does not speak HTTP ({error})") from error
            if event is h11.NEED_DATA:
                return None
            if isinstance(event, h11.Response) and _says_its_length_twice(event):
                raise self._broken("it says the length of its answer in two ways")
            if isinstance(event, type | h11.ConnectionClosed):
                raise self._broken("it closed the connection")
            if not isinstance(event, h11.InformationalResponse) or event.status_code == 101:
                return event

    async def _read(self) -> None:
        try:
            data = bytes(await self._stream.receive_some(READ_BYTES))
            if not data and self._connection.was_reset():
                raise self._broken("it has reset the connection")  # an answer without a length would look whole
            self._h11.receive_data(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self._broken("the connection broke") from error
        except h11.RemoteProtocolError as error:  # data after the end of the stream
            raise self._broken("it sent what nobody asked for") from error

    def _broken(self, why: str) -> BadGateway:
        return BadGateway(f"cannot get an answer from port {self.port}: {why}", port=self.port)

    def switched(self) -> tuple[trio.SocketStream, bytes]:
        """The stream after a 101, and what has been read of it."""
        return self._stream, self._h11.trailing_data[0]

    def is_reusable(self) -> bool:
        done = self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE
        return done and not self._h11.trailing_data[0] and not self._speaks()

    def next_cycle(self) -> None:
        self._h11.start_next_cycle()
        self.reused = True

    def is_stale(self) -> bool:
        """Whether an idle connection was closed, or spoken on though nobody asked."""
        return self._speaks()

    def _speaks(self) -> bool:
        poll = select.poll()
        poll.register(self._stream.socket.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        self._connection.close()


def _says_its_length_twice(response: h11.Response) -> bool:
    """RFC 9112 §6.3: an attempt at smuggling, or as good as one. A proxy before us may believe the other length."""
    names = {name for name, _ in response.headers}
    return {b"transfer-encoding", b"content-length"} <= names


class UpstreamPool:
    """Connections to ports. Owns: the idle ones, for `IDLE_SECONDS` and as long as their sandbox runs."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._idle: WeakKeyDictionary[Entry, deque[tuple[float, Upstream]]] = WeakKeyDictionary()

    async def take(self, entry: Entry, port: int, *, reuse: bool) -> Upstream:
        """A connection, an idle one if there is and that is allowed. The caller gives it back, or closes it.

        Raises: as `Ports.connect`.
        """
        await entry.ready()
        while reuse and (upstream := self._pop(entry, port)) is not None:
            if not upstream.is_stale():
                return upstream
            upstream.close()
        return Upstream(await self._ports.connect(entry, port), port=port)

    def give_back(self, entry: Entry, upstream: Upstream) -> None:
        """Keep it if another request may follow on it."""
        idle = self._idle.get(entry)
        if not upstream.is_reusable() or (idle is not None and len(idle) >= MAX_IDLE):
            upstream.close()
            return
        upstream.next_cycle()
        if idle is None:
            idle = self._idle[entry] = deque()
            try:
                entry.start_resident(self._drop_idle, entry, idle)
            except Conflict:  # the sandbox has just ended
                del self._idle[entry]
                upstream.close()
                return
        idle.append((trio.current_time() + IDLE_SECONDS, upstream))

    def _pop(self, entry: Entry, port: int) -> Upstream | None:
        idle = self._idle.get(entry, deque())
        for item in reversed(idle):
            if item[1].port == port:
                idle.remove(item)
                return item[1]
        return None

    async def _drop_idle(self, entry: Entry, idle: deque[tuple[float, Upstream]]) -> None:
        """Until none is left, or the machine ends."""
        try:
            while idle:
                await trio.sleep_until(idle[0][0])
                while idle and idle[0][0] <= trio.current_time():
                    idle.popleft()[1].close()
        finally:
            del self._idle[entry]
            for _, upstream in idle:
                upstream.close()


def no_answer(port: int, seconds: float) -> GatewayTimeout:
    return GatewayTimeout(f"cannot get an answer from port {port}: none came within {seconds:g} s", port=port)
