"""Terminals and logs of background commands: what a key costs from here to the program inside and back."""

import contextlib
import json
import time
from collections.abc import Iterator

import wsproto
from wsproto.events import AcceptConnection, BytesMessage, Request, TextMessage

from tests.bench.measure import TrialFailed
from tests.bench.sandboxd import Sandboxd
from tests.bench.systems import text_of
from tests.support.daemon import connect_unix

LIMIT = 60.0
READ_BYTES = 64 * 1024


def echoes(system: Sandboxd, *, count: int) -> Iterator[float]:
    """Milliseconds from a typed byte to its echo by a program in the terminal, over the websocket."""
    sandbox = system.create()
    pty = system.client.request(
        "POST", f"/v1/sandboxes/{sandbox}/pty", {"cmd": "stty raw -echo; echo ready; exec cat"}
    )
    with _websocket(system, f"/v1/sandboxes/{sandbox}/pty/{pty['pty_id']}/ws") as terminal:
        terminal.say({"type": "attach", "offset": 0})
        terminal.read_until(b"ready")
        for number in range(count):
            key = b"%c" % (97 + number % 26)
            begun = time.perf_counter()
            terminal.type(key)
            terminal.read_until(key)
            yield (time.perf_counter() - begun) * 1e3
    system.client.request("DELETE", f"/v1/sandboxes/{sandbox}")


def follow(system: Sandboxd, sandbox: str, size: int) -> int:
    """Start a command that writes so much text, and follow its log to the end; how many bytes came."""
    path = f"/v1/sandboxes/{sandbox}/commands"
    command = system.client.request("POST", path, {"cmd": text_of(size)})["command_id"]
    received = 0
    with contextlib.closing(system.daemon.connect()) as connection:
        connection.request("GET", f"{path}/{command}/logs/stream")
        for line in connection.getresponse():
            if line.startswith(b"data:"):
                received += len(json.loads(line[5:]).get("text", ""))
    return received


class _Terminal:
    """A websocket at a terminal, as little of it as a measurement needs."""

    def __init__(self, system: Sandboxd, target: str) -> None:
        self._socket = connect_unix(system.daemon.socket, limit=LIMIT)
        self._protocol = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._socket.sendall(self._protocol.send(Request(host="localhost", target=target)))
        while not any(isinstance(event, AcceptConnection) for event in self._events()):
            pass

    def say(self, message: object) -> None:
        self._socket.sendall(self._protocol.send(TextMessage(json.dumps(message))))

    def type(self, data: bytes) -> None:
        self._socket.sendall(self._protocol.send(BytesMessage(data)))

    def read_until(self, wanted: bytes) -> None:
        """Output comes with one byte before it that says so; acknowledgements are passed over."""
        seen = b""
        while wanted not in seen:
            seen += b"".join(bytes(event.data[1:]) for event in self._events() if isinstance(event, BytesMessage))

    def _events(self) -> list[object]:
        data = self._socket.recv(READ_BYTES)
        if not data:
            raise TrialFailed("the daemon closed the terminal's connection")
        self._protocol.receive_data(data)
        return list(self._protocol.events())

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def _websocket(system: Sandboxd, target: str) -> Iterator[_Terminal]:
    with contextlib.closing(_Terminal(system, target)) as terminal:
        yield terminal
