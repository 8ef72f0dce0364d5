"""What a quiet tenant's commands take while another does its worst, and what memory the daemon has for it.

Both are tenants as from outside: each with a key of its own, over TCP, from an address of its own on loopback. The
other one's clients are processes of their own, so that they take nothing of the time that is measured here.
"""

import contextlib
import http.client
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import Figure, TrialFailed
from tests.bench.systems import TRUE, Workplace
from tests.support.daemon import CHECKOUT, Daemon

MIB = 1024 * 1024
PAGE_BYTES = os.sysconf("SC_PAGESIZE")
QUIET, LOUD = "127.0.0.3", "127.0.0.2"
BEGINNING = 1.0
"""seconds for a load to be there before anything counts"""
SETTLING = 3.0
"""seconds for the daemon to be rid of a load"""
LIMIT = 60.0
P99_RATIO = 5.0
MOST_MEMORY = 300 * MIB
MEMORY_LEFT = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Loud:
    """The tenant that does its worst: where, with what key and sandbox, and for how long at most."""

    port: int
    key: str
    sandbox: str
    seconds: float
    upload_size: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/sandboxes/{self.sandbox}"

    def call(self, method: str, path: str, body: object) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT, source_address=(LOUD, 0))
        with contextlib.closing(connection):
            headers = {"authorization": f"Bearer {self.key}"}
            connection.request(method, f"/v1/sandboxes/{self.sandbox}{path}", json.dumps(body), headers)
            answer = connection.getresponse()
            said = answer.read(300)
            if not 200 <= answer.status < 300:
                raise TrialFailed(f"{method} {path}: {answer.status} {said!r}")

    def curl(self, *arguments: str) -> list[str]:
        quiet = ("--silent", "--no-buffer", "--output", "/dev/null", "--header", f"Authorization: Bearer {self.key}")
        return ["curl", *quiet, "--max-time", str(self.seconds), "--interface", LOUD, *arguments]


Load = Callable[[Loud], Sequence[Sequence[str]]]
"""begins what goes on by itself, and returns the command lines of clients to be run meanwhile"""


def output(loud: Loud) -> Sequence[Sequence[str]]:
    """In the background with nobody who reads it, in a terminal, and as a stream that is read."""
    loud.call("POST", "/commands", {"cmd": "yes"})
    loud.call("POST", "/pty", {"argv": ["yes"]})
    return [loud.curl("--data", json.dumps({"cmd": "yes"}), f"{loud.url}/shell/stream")]


FORK = """
import os, time
while True:
    try:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    except OSError:
        pass
"""


def forks(loud: Loud) -> Sequence[Sequence[str]]:
    """As many processes as it may have, and further attempts without end."""
    loud.call("POST", "/commands", {"argv": ["python3", "-c", FORK]})
    return []


def writes(loud: Loud) -> Sequence[Sequence[str]]:
    loud.call("POST", "/commands", {"cmd": "while :; do dd if=/dev/zero of=/tmp/x bs=1M count=16 conv=fsync; done"})
    return []


def upload(loud: Loud) -> Sequence[Sequence[str]]:
    put = loud.curl("--upload-file", "-", f"{loud.url}/files?path=/tmp/large")
    return [["sh", "-c", 'head -c "$0" /dev/zero | "$@"', str(loud.upload_size), *put]]


CONNECT = """
import socket, sys, time
port, source, until = int(sys.argv[1]), sys.argv[2], time.monotonic() + float(sys.argv[3])
held = []
while time.monotonic() < until:
    try:
        sock = socket.create_connection(("127.0.0.1", port), 10, (source, 0))
        sock.sendall(b"GET /v1/hea")
        held.append(sock)
    except OSError:
        time.sleep(0.01)
    del held[:max(0, len(held) - 5000)]
    time.sleep(0.0005)
"""


def connections(loud: Loud) -> Sequence[Sequence[str]]:
    """As many as it may have and more, with half a request on each."""
    return [[sys.executable, "-c", CONNECT, str(loud.port), LOUD, str(loud.seconds)]]


POST = """
import http.client, json, sys, time
port, source, until = int(sys.argv[1]), sys.argv[2], time.monotonic() + float(sys.argv[3])
path, key = sys.argv[4:]
deep = b'{"cmd": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"
long = json.dumps({"cmd": "\\u0001" * 4_000_000}).encode()
keys = json.dumps({"cmd": "true", "env": {str(n): "" for n in range(1_000_000)}}).encode()
numbers = json.dumps({"cmd": "true", "timeout_ms": 10**4000, "argv": [1e300] * 1_000_000}).encode()
while time.monotonic() < until:
    for body in (deep, long, keys, numbers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60, source_address=(source, 0))
        try:
            connection.request("POST", path, body, {"authorization": f"Bearer {key}"})
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
"""


def worst_json(loud: Loud) -> Sequence[Sequence[str]]:
    """Deep, long, of many keys, of large numbers: each some megabytes."""
    path = f"/v1/sandboxes/{loud.sandbox}/shell"
    return [[sys.executable, "-c", POST, str(loud.port), LOUD, str(loud.seconds), path, loud.key]]


LOADS: dict[str, Load] = {
    "output": output,
    "forks": forks,
    "writes": writes,
    "upload": upload,
    "connections": connections,
    "JSON": worst_json,
}


def of_sandboxd(workplace: Workplace, *, seconds: float, upload_size: int) -> list[Figure]:
    """`exec` of a quiet tenant: alone, then beside each of the loads for so many seconds."""
    daemon = Daemon(workplace.scratch / "neighbours", workplace.image_dir, environment={"PYTHONPATH": str(CHECKOUT)})
    daemon.root.mkdir()
    port = daemon.reserve_port()
    daemon.options = ("--log-level", "warning", "--listen", f"tcp:127.0.0.1:{port}")
    try:
        daemon.start()
        with _tenant(daemon, port, QUIET) as true:
            return list(_figures(daemon, port, true, seconds=seconds, upload_size=upload_size))
    finally:
        daemon.sweep()


def _figures(
    daemon: Daemon, port: int, true: Callable[[], None], *, seconds: float, upload_size: int
) -> Iterator[Figure]:
    for _ in range(50):
        true()
    quiet = Figure(row="exec of a tenant, alone", system="sandboxd", unit="ms")
    _fill(quiet, daemon, true, seconds)
    yield quiet
    for name, load in LOADS.items():
        figure = Figure(row=f"… beside {name}", system="sandboxd", unit="ms")
        before = _resident(daemon)
        try:
            with _under_load(daemon, port, load, seconds=seconds + 2 * BEGINNING, upload_size=upload_size):
                most = _fill(figure, daemon, true, seconds)
        except (TrialFailed, OSError) as failure:
            figure.failures.append(str(failure))
            most = _resident(daemon)
        time.sleep(SETTLING)
        after = _resident(daemon)
        ratio = figure.percentile(99) / quiet.percentile(99)
        met = ratio <= P99_RATIO and most <= MOST_MEMORY and after <= MEMORY_LEFT * before
        figure.note = (
            f"aim p99 ≤ {P99_RATIO:g} × alone, RSS ≤ {MOST_MEMORY // MIB} MiB and {MEMORY_LEFT:g} × after: "
            f"{'[green]met[/]' if met else '[red]missed[/]'}; "
            f"{'–' if math.isnan(ratio) else f'{ratio:.1f}'} ×, {before // MIB} → {most // MIB} → {after // MIB} MiB"
        )
        yield figure


def _fill(figure: Figure, daemon: Daemon, true: Callable[[], None], seconds: float) -> int:
    """Measure for so long; the daemon's largest resident set meanwhile, in bytes."""
    most = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        begun = time.perf_counter()
        try:
            true()
        except (TrialFailed, OSError, http.client.HTTPException) as failure:
            figure.failures.append(str(failure) or type(failure).__name__)
        else:
            figure.values.append((time.perf_counter() - begun) * 1000)
        most = max(most, _resident(daemon))
        time.sleep(0.005)  # a quiet tenant
    return most


@contextlib.contextmanager
def _tenant(daemon: Daemon, port: int, address: str) -> Iterator[Callable[[], None]]:
    """Runs /bin/true in a sandbox of its own, over one connection."""
    headers = {"authorization": f"Bearer {_key(daemon, 'quiet')}"}
    path = f"/v1/sandboxes/{daemon.create()}/shell"
    body = json.dumps({"argv": [TRUE]})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT, source_address=(address, 0))

    def true() -> None:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise TrialFailed(f"{answer.status} {said[:200]!r}")

    with contextlib.closing(connection):
        yield true


def _key(daemon: Daemon, name: str) -> str:
    return str(daemon.call("POST", "/v1/keys", {"name": name, "scopes": ["write"]}).json["key"])


@contextlib.contextmanager
def _under_load(daemon: Daemon, port: int, load: Load, *, seconds: float, upload_size: int) -> Iterator[None]:
    """Let the other tenant go on, in a sandbox that is deleted afterwards."""
    sandbox = daemon.create()
    key = _key(daemon, load.__name__)
    loud = Loud(port=port, key=key, sandbox=sandbox, seconds=seconds, upload_size=upload_size)
    clients: list[subprocess.Popen[bytes]] = []
    try:
        for command in load(loud):
            clients.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))  # noqa: PERF401 - each to be ended
        time.sleep(BEGINNING)
        yield
    finally:
        for client in clients:
            client.kill()
            client.wait()
        daemon.delete(sandbox)


def _resident(daemon: Daemon) -> int:
    return int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]) * PAGE_BYTES
