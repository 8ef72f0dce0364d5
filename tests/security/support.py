"""What attacks need: a daemon on TCP too, holders of keys, and how much the daemon suffers meanwhile."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.daemon import Answer, Daemon


def listening_on_tcp(daemon: Daemon, config: str = "") -> int:
    """Have a daemon that is not started yet listen on TCP too, with this configuration (TOML); the port."""
    port = daemon.reserve_port()
    file = daemon.root / "sandboxd.toml"
    file.write_text(config)
    listeners = ("--listen", f"tcp:127.0.0.1:{port}", "--listen", f"unix:{daemon.socket}")
    daemon.options = ("--config", str(file), *listeners)
    return port


class Holder:
    """Somebody who has a key, and nothing else."""

    def __init__(self, daemon: Daemon, port: int, **terms: Any) -> None:
        answer = daemon.call("POST", "/v1/keys", {"name": "holder", **terms})
        assert answer.status == 201, answer.data
        self.id = str(answer.json["id"])
        self.secret = str(answer.json["key"])
        self.port = port

    def call(
        self, method: str, path: str, body: Any = None, *, data: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> Answer:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            content = data if data is not None else None if body is None else json.dumps(body)
            connection.request(method, path, content, {"authorization": f"Bearer {self.secret}", **headers})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())

    def ask_and_not_read(self, stack: contextlib.ExitStack, path: str, body: Any) -> None:
        """A request whose answer waits, with hardly any room on the way, until the stack is left."""
        connection = stack.enter_context(contextlib.closing(socket.socket()))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", self.port))
        text = json.dumps(body)
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self.secret}\r\n"
        connection.sendall(f"{head}content-length: {len(text)}\r\n\r\n{text}".encode())

    def create(self, **body: Any) -> str:
        answer = self.call("POST", "/v1/sandboxes", body)
        assert answer.status == 201, answer.data
        return str(answer.json["id"])


def resident(pid: int) -> int:
    """Bytes of a process's memory."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


@dataclass
class Strain:
    """What a daemon goes through during a block: its largest memory, and the longest wait of somebody quiet."""

    memory_before: int
    memory: int = 0
    waits: list[float] = field(default_factory=list)

    @property
    def growth(self) -> int:
        return self.memory - self.memory_before

    @property
    def longest_wait(self) -> float:
        return max(self.waits)


@contextlib.contextmanager
def strain(daemon: Daemon) -> Iterator[Strain]:
    """Ask for its health again and again beside the block, and look at its memory."""
    watched = Strain(resident(daemon.pid))
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            began = time.monotonic()
            assert daemon.call("GET", "/v1/health").status == 200
            watched.waits.append(time.monotonic() - began)
            watched.memory = max(watched.memory, resident(daemon.pid))
            time.sleep(0.005)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield watched
    finally:
        done.set()
        asking.join()
