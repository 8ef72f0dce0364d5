"""A real daemon as a process of its own, for tests: started, spoken to, killed, started again, swept away."""

import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandboxd.kernel.cgroup_tree import discover_cgroups
from sandboxd.kernel.cgroups import Cgroup
from tests.support import census
from tests.support.crashing import ALL_POINTS

CHECKOUT = Path(__file__).resolve().parents[2]
START_LIMIT = 120.0
STOP_LIMIT = 60.0
CRASH_AT = "crash-at"
"""in a daemon's directory: where it is to kill itself"""


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
        self.sock = connect_unix(self._path, limit=float(self.timeout or 0))


def connect_unix(path: Path, *, limit: float) -> socket.socket:
    """Connect to a Unix socket whose path may be longer than an address: through a descriptor of its directory."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(limit)
        sock.connect(f"/proc/self/fd/{directory}/{path.name}")
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(directory)
    return sock


@dataclass
class Daemon:
    """Owns the process. `root` holds its state, runtime directory and log."""

    root: Path
    image_dir: Path
    prefix: tuple[str, ...] = ()
    """put before the command: to run it as another user, or in another mount namespace"""
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    interpreter: str = sys.executable
    """the Python that runs it; another one than the tests' finds the sandboxd that is installed for it"""
    descriptors: tuple[int, ...] = ()
    """passed on to it"""
    mortal: bool = False
    """it looks where it is to die, at each of the points: see die_at()"""
    process: subprocess.Popen[bytes] | None = None
    at_rest: Counter[str] = field(default_factory=Counter)
    """descriptors of a shared daemon that has nothing to do, and all of its slots"""
    reserved: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    """ports that are this daemon's until it is swept away, whether it runs or not"""

    def __post_init__(self) -> None:
        census.cgroup_names.add(self.cgroup_name)
        census.directories.add(str(self.root))

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def volume(self) -> Path:
        """Where it keeps sandboxes and layers. A pool is mounted for the daemon only, and seen through it."""
        if not (self.state / "pool.img").exists():
            return self.state
        return Path(f"/proc/{self.pid}/root{self.state}/pool")

    @property
    def runtime(self) -> Path:
        return self.root / "run"

    @property
    def socket(self) -> Path:
        return self.runtime / "sandboxd.sock"

    @property
    def log(self) -> str:
        return (self.root / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def cgroup_name(self) -> str:
        """What it calls its directory in the cgroup tree."""
        return "sandboxd-" + hashlib.sha256(os.fsencode(self.state.resolve())).hexdigest()[:12]

    def reserve_port(self) -> int:
        """A TCP port of 127.0.0.1 to listen on, now and after each start: the kernel gives it to nobody else.

        A socket that is bound and does not listen is in no listener's way if both say SO_REUSEADDR (socket(7)).
        """
        holder = self.reserved.enter_context(socket.socket(socket.AF_INET))
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        return int(holder.getsockname()[1])

    # -- the process ----------------------------------------------------------------------------------------------

    def command(self, *arguments: str) -> tuple[list[str], dict[str, str]]:
        """A command line of the `sandboxd` program as this daemon's user, and its environment."""
        marks = {census.DAEMON: str(self.root)}
        if self.interpreter == sys.executable:
            marks["PYTHONPATH"] = str(CHECKOUT)
        if self.mortal:
            marks["SANDBOXD_CRASH_AT"] = str(self.root / CRASH_AT)
        environment = {**os.environ, **marks, **self.environment}
        return [*self.prefix, self.interpreter, "-m", "sandboxd", *arguments], environment

    def launch(self) -> None:
        """Start it without waiting until it serves."""
        command, environment = self.command(
            "serve",
            "--state-dir", str(self.state), "--runtime-dir", str(self.runtime),
            "--image-dir", str(self.image_dir), *self.options,
        )  # fmt: skip
        with open(self.root / "log", "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.root,
                pass_fds=self.descriptors,
            )

    def start(self) -> "Daemon":
        self.launch()
        deadline = time.monotonic() + START_LIMIT
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.call("GET", "/v1/health").status == 200:
                    return self
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the daemon did not start:\n{self.log}")
            time.sleep(0.01)

    def wait(self, limit: float = STOP_LIMIT) -> int:
        """Until the process ended; its status."""
        assert self.process is not None
        status = self.process.wait(limit)
        self.process = None
        return status

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def die_at(self, point: str | None) -> None:
        """Have it kill itself on reaching that point, running already or yet to be started; None: nowhere.

        It must be `mortal` from before its start.
        """
        file = self.root / CRASH_AT
        if point is None:
            file.unlink(missing_ok=True)
            return
        assert self.mortal
        assert point in ALL_POINTS
        new = file.with_suffix(".new")
        new.write_text(point)
        new.rename(file)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def sweep(self) -> None:
        """End everything, whatever state it is in, and remove its files. Raises: AssertionError if it cannot."""
        self.die_at(None)
        try:
            if self.alive or self._has_left_something():
                if not self.alive:
                    self.start()
                self.delete_all()
                self.stop()
        finally:
            if self.alive:
                self.kill()
            self.reserved.close()
            self._kill_the_rest()
            remove_cgroup(self.cgroup_name)
            subprocess.run(["rm", "-rf", str(self.root)], check=True)

    def _has_left_something(self) -> bool:
        """Other than files and its empty cgroup, which go without it: it has served once, and sandboxes still run."""
        served = (self.state / "state.db").exists()
        # Without root, files of the ids that sandboxes have are the daemon's to remove.
        return served and (os.geteuid() != 0 or any(each.daemon == str(self.root) for each in census.processes()))

    def _kill_the_rest(self) -> None:
        """Sandboxes that the daemon could not delete any more: the test has failed, the machine is to be clean."""
        for process in census.processes():
            if process.daemon == str(self.root):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)

    # -- the API --------------------------------------------------------------------------------------------------

    def connect(self, *, limit: float = 60) -> UnixConnection:
        return UnixConnection(self.socket, limit=limit)

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

    def view(self, sandbox: str) -> Any:
        answer = self.call("GET", f"/v1/sandboxes/{sandbox}")
        assert answer.status == 200, answer.data
        return answer.json

    def views(self, query: str = "limit=1000") -> list[Any]:
        return self._listed("sandboxes", query)

    def _listed(self, what: str, query: str) -> list[Any]:
        """All pages of a list."""
        found: list[Any] = []
        cursor: str | None = ""
        while cursor is not None:
            answer = self.call("GET", f"/v1/{what}?{query}&cursor={cursor}" if cursor else f"/v1/{what}?{query}")
            assert answer.status == 200, answer.data
            found += answer.json[what]
            cursor = answer.json["next_cursor"]
        return found

    def delete(self, sandbox: str) -> None:
        answer = self.call("DELETE", f"/v1/sandboxes/{sandbox}")
        assert answer.status == 200, answer.data

    def delete_all(self) -> None:
        """What goes by itself meanwhile is as good as deleted."""
        for sandbox in self.views():
            assert self.call("DELETE", f"/v1/sandboxes/{sandbox['id']}").status in {200, 404}
        for snapshot in self.snapshots():
            assert self.call("DELETE", f"/v1/snapshots/{snapshot['id']}").status in {200, 404}

    def snapshots(self, query: str = "limit=1000") -> list[Any]:
        return self._listed("snapshots", query)

    def shell(self, sandbox: str, cmd: str, **body: Any) -> Any:
        """Run a command to its end; its result."""
        answer = self.call("POST", f"/v1/sandboxes/{sandbox}/shell", {"cmd": cmd, **body})
        assert answer.status == 200, answer.data
        return answer.json

    def events(self, sandbox: str) -> list[str]:
        """The kinds of what has happened to a sandbox, in order."""
        found = self.call("GET", f"/v1/events?after=0&limit=1000&sandbox={sandbox}").json["events"]
        return [event["kind"] for event in found]


def remove_cgroup(name: str) -> None:
    """A daemon keeps its (empty) cgroup directory for its next start; a test's daemon has none."""
    root = discover_cgroups().root
    if root is None:
        return
    deadline = time.monotonic() + STOP_LIMIT
    while True:
        try:
            Cgroup(root / name).remove()
        except OSError:  # the last processes of a failed test are still dying
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


@contextlib.contextmanager
def running(daemon: Daemon) -> Iterator[Daemon]:
    """Start it, and sweep it away with the block."""
    try:
        yield daemon.start()
    finally:
        daemon.sweep()
