"""A real daemon as a process of its own, for tests: started, spoken to, killed, started again, swept away."""

import contextlib
import http.client
import json
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_LIMIT = 60.0
STOP_LIMIT = 30.0


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class UnixConnection(http.client.HTTPConnection):
    """The standard library's HTTP client on a Unix socket: independent of everything under test."""

    def __init__(self, path: Path, *, limit: float = 60) -> None:
        super().__init__("localhost", timeout=limit)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        # A path may be longer than an address: reach it through a descriptor of its directory.
        directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            self.sock.connect(f"/proc/self/fd/{directory}/{self._path.name}")
        finally:
            os.close(directory)


@dataclass
class Daemon:
    """Owns the process. `root` holds its state, runtime directory and log."""

    root: Path
    image_dir: Path
    user: str | None = None
    """run as this user instead of the current one"""
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.root / "run" / "sandboxd.sock"

    @property
    def log(self) -> str:
        return (self.root / "log").read_text()

    def launch(self) -> None:
        """Start it without waiting until it serves."""
        command = [
            sys.executable, "-m", "sandboxd", "serve",
            "--state-dir", str(self.root / "state"), "--runtime-dir", str(self.root / "run"),
            "--image-dir", str(self.image_dir), *self.options,
        ]  # fmt: skip
        identity: dict[str, Any] = {}
        environment = {**os.environ, **self.environment}
        if self.user is not None:
            entry = pwd.getpwnam(self.user)
            identity = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            environment |= {"HOME": entry.pw_dir, "USER": self.user}
            environment.pop("XDG_RUNTIME_DIR", None)
        with open(self.root / "log", "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self.root, **identity
            )

    def start(self) -> "Daemon":
        self.launch()
        deadline = time.monotonic() + START_LIMIT
        while True:
            with contextlib.suppress(OSError):
                if self.call("GET", "/v1/health").status == 200:
                    return self
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the daemon did not start:\n{self.log}")
            time.sleep(0.01)

    def connect(self) -> UnixConnection:
        return UnixConnection(self.socket)

    def call(
        self, method: str, path: str, body: Any = None, *, data: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> Answer:
        """One request on a connection of its own."""
        with contextlib.closing(self.connect()) as connection:
            content = data if data is not None else (None if body is None else json.dumps(body).encode())
            connection.request(method, path, content, dict(headers))
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())

    def create(self, **body: Any) -> str:
        answer = self.call("POST", "/v1/sandboxes", body)
        assert answer.status == 201, answer.data
        return str(answer.json["id"])

    def shell(self, sandbox: str, cmd: str, **body: Any) -> Any:
        answer = self.call("POST", f"/v1/sandboxes/{sandbox}/shell", {"cmd": cmd, **body})
        assert answer.status == 200, answer.data
        return answer.json

    def delete_all(self) -> None:
        for sandbox in self.call("GET", "/v1/sandboxes?limit=1000").json["sandboxes"]:
            self.call("DELETE", f"/v1/sandboxes/{sandbox['id']}")

    def wait(self, limit: float = STOP_LIMIT) -> int:
        """Until the process ended; its status."""
        assert self.process is not None
        status = self.process.wait(limit)
        self.process = None
        return status

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.wait()

    def sweep(self) -> None:
        """End everything, whatever state it is in, and remove its files."""
        try:
            if self.process is None or self.process.poll() is not None:
                self.environment.pop("SANDBOXD_CRASH_AT", None)
                self.start()
            self.delete_all()
            self.stop()
        finally:
            if self.process is not None:
                self.kill()
            remove_cgroup_of(self.root / "state")
            subprocess.run(["rm", "-rf", str(self.root)], check=True)


def remove_cgroup_of(state_dir: Path) -> None:
    """A daemon keeps its (empty) cgroup directory for its next start; a test's daemon has none."""
    import hashlib

    from sandboxd.kernel.cgroup_tree import discover_cgroups
    from sandboxd.kernel.cgroups import Cgroup

    root = discover_cgroups().root
    if root is not None:
        name = hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:12]
        Cgroup(root / f"sandboxd-{name}").remove()


@contextlib.contextmanager
def running(root: Path, image_dir: Path, **how: Any) -> Iterator[Daemon]:
    daemon = Daemon(root, image_dir, **how)
    try:
        yield daemon.start()
    finally:
        daemon.sweep()
