"""sandboxd itself: the daemon over its Unix socket, and sandboxctl as a person would use it."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sandboxd.kernel.cgroup_tree import discover_cgroups
from tests.bench.density import command_line, descendants
from tests.bench.measure import TrialFailed
from tests.bench.provision import NotAvailable
from tests.bench.rawhttp import RawClient
from tests.bench.systems import TRUE, Instance, System, Workplace, call, count_output, text_of
from tests.support.daemon import Daemon

CHECKOUT = Path(__file__).resolve().parents[2]
CODE_IMAGE = "code-interpreter"
UPLOADED = "/home/user/uploaded"


class Sandboxd(System):
    """Owns: a daemon of its own."""

    name = "sandboxd"
    conditions = (
        "API on a kept-alive Unix socket; own id range, writable overlay, all namespaces, seccomp, own cgroup, "
        "resident init, no network; four slots, which know no image, made ahead"
    )
    offers = frozenset({"life", "exec", "output", "stream", "files", "memory", "restart", "creates", "copies"})

    def open(self) -> str:
        options = ("--log-level", "warning")
        self.daemon = Daemon(
            self.workplace.scratch / "".join(self.name.split()),
            self.workplace.image_dir,
            options=options,
            environment={"PYTHONPATH": str(CHECKOUT)},
        )
        self.daemon.root.mkdir()
        try:
            self.prepare()
            self.daemon.start()
        except AssertionError as failure:
            raise NotAvailable(str(failure)) from failure
        self.client = RawClient(self.daemon.socket)
        root = discover_cgroups().root
        return f"{self.client.request('GET', '/v1/health')['version']}, cgroups under {root}"

    def prepare(self) -> None:
        """What comes before the daemon's start."""

    def close(self) -> None:
        if hasattr(self, "client"):
            self.client.close()
        if hasattr(self, "daemon"):
            self.daemon.sweep()

    @property
    def pid(self) -> int:
        assert self.daemon.process is not None
        return self.daemon.process.pid

    def live(self) -> None:
        sandbox = self.create()
        run_true(self.client, sandbox)
        self.client.request("DELETE", f"/v1/sandboxes/{sandbox}")

    def create(self, **wish: str) -> str:
        return str(self.client.request("POST", "/v1/sandboxes", wish)["id"])

    def one_plus_one(self, sandbox: str) -> None:
        execution = self.client.request("POST", f"/v1/sandboxes/{sandbox}/run", {"code": "1+1"})
        if [result["text"] for result in execution["results"]] != ["2"]:
            raise TrialFailed(f"1+1 gave {execution}")

    def first_value(self) -> None:
        sandbox = self.create(image=CODE_IMAGE)
        self.one_plus_one(sandbox)
        self.client.request("DELETE", f"/v1/sandboxes/{sandbox}")

    def start(self) -> "SandboxdInstance":
        return SandboxdInstance(self, self.create())

    def forget(self, snapshot: Any) -> None:
        self.client.request("DELETE", f"/v1/snapshots/{snapshot}")

    def delete_all(self) -> None:
        for sandbox in self.client.request("GET", "/v1/sandboxes?limit=1000")["sandboxes"]:
            self.client.request("DELETE", f"/v1/sandboxes/{sandbox['id']}")


def run_true(client: RawClient, sandbox: str) -> None:
    result = client.request("POST", f"/v1/sandboxes/{sandbox}/shell", {"argv": [TRUE]})
    if result["exit_code"] != 0:
        raise TrialFailed(f"{TRUE} ended with {result['exit_code']}")


class SandboxdInstance(Instance):
    def __init__(self, system: Sandboxd, sandbox: str) -> None:
        self._system, self._sandbox = system, sandbox
        self._path = f"/v1/sandboxes/{sandbox}"

    def true(self) -> None:
        run_true(self._system.client, self._sandbox)

    def output(self, size: int) -> int:
        body = {"cmd": text_of(size), "max_output_bytes": size}
        return len(self._system.client.request("POST", f"{self._path}/shell", body)["stdout"])

    def stream(self, size: int) -> int:
        """As output(), by server-sent events; they are parsed, as any client would."""
        body = json.dumps({"cmd": text_of(size)}).encode()
        with self._response("POST", f"{self._path}/shell/stream", body) as response:
            return sum(len(event["text"]) for event in _events(response) if "text" in event)

    def upload(self, data: bytes) -> None:
        with self._response("PUT", f"{self._path}/files?path={quote(UPLOADED)}&user=user", data):
            pass

    def download(self) -> int:
        return self._received(f"{self._path}/files?path={quote(UPLOADED)}")

    def upload_archive(self, path: str, data: bytes) -> None:
        with self._response("PUT", f"{self._path}/archive?path={quote(path)}&user=user", data):
            pass

    def download_archive(self, path: str) -> int:
        return self._received(f"{self._path}/archive?path={quote(path)}&user=user")

    def _received(self, target: str) -> int:
        total = 0
        with self._response("GET", target, None) as response:
            while chunk := response.read(256 * 1024):
                total += len(chunk)
        return total

    def shell(self, command: str) -> None:
        body = {"cmd": command, "user": "root", "timeout_ms": 600_000}
        done = self._system.client.request("POST", f"{self._path}/shell", body)
        if done["exit_code"]:
            raise TrialFailed(done["stderr"][-200:])

    def snapshot(self) -> str:
        return str(self._system.client.request("POST", f"{self._path}/snapshot", {})["id"])

    def clone(self) -> "SandboxdInstance":
        made = self._system.client.request("POST", f"{self._path}/clone", {})
        return SandboxdInstance(self._system, made["id"])

    def restore(self, snapshot: Any) -> None:
        self._system.client.request("POST", f"{self._path}/restore", {"snapshot": snapshot})

    @property
    def volume(self) -> Path:
        """The disk that it lies on, as the daemon sees it."""
        return self._system.daemon.volume

    @property
    def written(self) -> Path:
        """What it has written, there."""
        return self.volume / "sandboxes" / self._sandbox / "upper"

    def processes(self) -> set[int]:
        """Of all sandboxes of the daemon: everything below its fork server."""
        return descendants({self._system.pid}) - daemon_processes(self._system.pid)

    def stop(self) -> None:
        self._system.client.request("DELETE", self._path)

    @contextlib.contextmanager
    def _response(self, method: str, target: str, body: bytes | None) -> Iterator[Any]:
        with contextlib.closing(self._system.daemon.connect()) as connection:
            connection.request(method, target, body)
            response = connection.getresponse()
            if not 200 <= response.status < 300:
                raise TrialFailed(f"{method} {target}: {response.status} {response.read(300)!r}")
            yield response


def daemon_processes(pid: int) -> set[int]:
    """The daemon and its fork server, by their command lines."""
    return {pid} | {child for child in descendants({pid}) if b"forkserver.py" in command_line(child)}


def _events(response: Any) -> Iterator[dict[str, Any]]:
    for line in response:
        if line.startswith(b"data:"):
            yield json.loads(line[5:])


class Sandboxctl(System):
    """The command line against the same daemon: what a person at a terminal gets, Python's start included."""

    name = "sandboxctl"
    conditions = "`sandboxctl run` and `exec`, a new Python process each, against the daemon above"
    offers = frozenset({"life", "exec", "output"})

    def __init__(self, workplace: Workplace, daemon: Sandboxd) -> None:
        super().__init__(workplace)
        self.daemon = daemon

    def open(self) -> str:
        if not hasattr(self.daemon, "daemon"):
            raise NotAvailable("it needs the daemon of the system sandboxd, which is not measured")
        self._program = Path(sys.executable).parent / "sandboxctl"
        self._environment = {**os.environ, "SANDBOXD_URL": f"unix:{self.daemon.daemon.socket}"}
        if not os.access(self._program, os.X_OK):
            raise NotAvailable(f"{self._program.name} is not installed: run `make setup`")
        self._call("--version")
        return "the daemon's"

    def live(self) -> None:
        self._call("run", "--", TRUE)

    def start(self) -> "SandboxctlInstance":
        return SandboxctlInstance(self, self.daemon.create())

    def _call(self, *arguments: str) -> None:
        call([str(self._program), *arguments], environment=self._environment)


class SandboxctlInstance(Instance):
    def __init__(self, system: Sandboxctl, sandbox: str) -> None:
        self._system, self._sandbox = system, sandbox

    def true(self) -> None:
        self._system._call("exec", self._sandbox, "--", TRUE)

    def output(self, size: int) -> int:
        command = [str(self._system._program), "exec", self._sandbox, "--", "sh", "-c", text_of(size)]
        return count_output(command, environment=self._system._environment)

    def stop(self) -> None:
        self._system.daemon.client.request("DELETE", f"/v1/sandboxes/{self._sandbox}")
