"""HTTP/1.1 on a Unix socket, as little of it as a measurement needs: one kept-alive connection per thread.

The standard library's client costs about as much per request as the daemon does; this one costs a tenth of that.
It is for short answers; for streams use tests.support.daemon.UnixConnection.
"""

import json
import socket
import threading
from pathlib import Path
from typing import Any

from tests.bench.measure import TrialFailed

# Keeping 1 GiB takes some peers more than a minute.
LIMIT = 300.0
_HEAD_END = b"\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"


class RawClient:
    """Owns: the connections, one for each thread that used it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._all: list[socket.socket] = []

    def request(self, method: str, target: str, body: Any = None) -> Any:
        """The answer's JSON (None if it has no body). Raises: TrialFailed for any status but 2xx."""
        content = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {target} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n"
        )
        connection = self._connection()
        connection.sendall(head.encode() + content)
        status, answer = _read_answer(connection)
        if not 200 <= status < 300:
            raise TrialFailed(f"{method} {target}: {status} {answer[:300].decode(errors='replace')}")
        return json.loads(answer) if answer else None

    def close(self) -> None:
        for connection in self._all:
            connection.close()
        self._all.clear()

    def _connection(self) -> socket.socket:
        connection: socket.socket | None = getattr(self._local, "connection", None)
        if connection is None or connection.fileno() < 0:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(LIMIT)
            connection.connect(str(self._path))
            self._local.connection = connection
            self._all.append(connection)
        return connection


def _read_answer(connection: socket.socket) -> tuple[int, bytes]:
    data = b""
    while _HEAD_END not in data:
        data += _receive(connection)
    head, _, body = data.partition(_HEAD_END)
    lines = head.split(b"\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
    status = int(lines[0].split()[1])
    if headers.get(b"transfer-encoding") == b"chunked":
        return status, _read_chunks(connection, body)
    parts = [body]
    missing = int(headers.get(b"content-length", b"0")) - len(body)
    while missing > 0:
        parts.append(_receive(connection))
        missing -= len(parts[-1])
    return status, b"".join(parts)


def _read_chunks(connection: socket.socket, data: bytes) -> bytes:
    while not data.endswith(_LAST_CHUNK):
        data += _receive(connection)
    body = b""
    while (size := int(data.partition(b"\r\n")[0], 16)) > 0:
        data = data.partition(b"\r\n")[2]
        body, data = body + data[:size], data[size + 2 :]
    return body


def _receive(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 20)
    if not data:
        raise TrialFailed("the server closed the connection")
    return data
