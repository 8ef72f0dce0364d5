"""What the way through the daemon to a program's port costs: the same program, in a sandbox and on this host."""

import contextlib
import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from tests.bench.measure import TrialFailed
from tests.bench.sandboxd import Sandboxd

LIMIT = 60.0
BLOCK = 256 * 1024

# Answers GET /N with N bytes, in one write as far as possible; connections are kept.
PROGRAM = """
import socket, sys, threading
BLOCK = b"x" * 65536
def serve(sock):
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with sock, sock.makefile("rb") as lines:
        while line := lines.readline():
            size = int(line.split()[1][1:])
            while lines.readline() not in (b"\\r\\n", b""):
                pass
            head = b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n" % size
            sock.sendall(head + BLOCK[:size])
            for start in range(len(BLOCK), size, len(BLOCK)):
                sock.sendall(BLOCK[:size - start])
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=100)
print(listener.getsockname()[1], flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
PORT = 8000

Get = Callable[[int], None]
"""asks for so many bytes, on a connection that is kept"""


@contextlib.contextmanager
def through(system: Sandboxd) -> Iterator[Get]:
    """By path, over the daemon's Unix socket."""
    sandbox = system.create()
    path = f"/v1/sandboxes/{sandbox}"
    started = {"argv": ["python3", "-c", PROGRAM, str(PORT)]}
    command = system.client.request("POST", f"{path}/commands", started)["command_id"]
    while not system.client.request("POST", f"{path}/commands/{command}/logs", {})["stdout"]:
        time.sleep(0.01)
    with contextlib.closing(system.daemon.connect(limit=LIMIT)) as connection:
        yield _getter(connection, f"{path}/ports/{PORT}")
    system.client.request("DELETE", path)


@contextlib.contextmanager
def direct() -> Iterator[Get]:
    """On this host, over TCP."""
    command = [sys.executable, "-c", PROGRAM, "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)) as connection:
                connection.connect()
                connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                yield _getter(connection, "")
        finally:
            process.kill()


def _getter(connection: http.client.HTTPConnection, prefix: str) -> Get:
    def get(size: int) -> None:
        connection.request("GET", f"{prefix}/{size}")
        response = connection.getresponse()
        received = 0
        while chunk := response.read(BLOCK):
            received += len(chunk)
        if (response.status, received) != (200, size):
            raise TrialFailed(f"{response.status} with {received} of {size} bytes")

    return get
