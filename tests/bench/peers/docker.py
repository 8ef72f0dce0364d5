"""dockerd over its Unix socket: the one peer that, like sandboxd, is a daemon with an HTTP API."""

import contextlib
import http.client
import io
import json
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

from tests.bench.density import descendants
from tests.bench.measure import TrialFailed
from tests.bench.provision import NotAvailable, debian_program
from tests.bench.rawhttp import RawClient
from tests.bench.systems import IDLE, TRUE, Instance, System, text_of, version_of
from tests.support.daemon import UnixConnection

START_LIMIT = 30.0
STOP_LIMIT = 30.0
IMAGE = "bench"
CGROUP = "sandboxd-bench-docker"
FRAME_HEADER = 8


class Docker(System):
    """Owns: a dockerd (which runs its own containerd), started here and ended here, with directories of its own."""

    name = "dockerd"
    conditions = "API on a kept-alive Unix socket, as root; its own defaults: overlay2, seccomp, cgroup; no network"
    offers = frozenset({"life", "exec", "output", "files", "memory", "copies"})
    _process: subprocess.Popen[bytes] | None = None

    def open(self) -> str:
        program = debian_program("dockerd", "docker.io")
        directory = self.workplace.scratch / self.name
        directory.mkdir()
        (directory / "daemon.json").write_text("{}")  # whatever the host's own file says stays out of this
        self.socket = directory / "docker.sock"
        with open(directory / "log", "wb") as log:
            self._process = subprocess.Popen(
                _command(program, directory), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.client = RawClient(self.socket)
        self._wait_started(directory / "log")
        self._import_image()
        return version_of([str(program), "--version"])

    def _wait_started(self, log: Path) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_LIMIT
        while True:
            try:
                self.client.request("GET", "/version")
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    last = log.read_text().strip().splitlines()[-1:]
                    raise NotAvailable(f"dockerd did not start: {last}") from None
                time.sleep(0.05)
            else:
                return

    def _import_image(self) -> None:
        command = ["tar", "--numeric-owner", "-C", str(self.workplace.rootfs), "-c", "."]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
            response = self.send("POST", f"/images/create?fromSrc=-&repo={IMAGE}", tar.stdout, chunked=True)
            response.read()

    def close(self) -> None:
        if self._process is None:
            return
        self.client.close()
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            for pid in descendants({self._process.pid}):
                subprocess.run(["kill", "-KILL", str(pid)], check=False)
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(OSError):  # dockerd keeps its directory in the cgroup tree
            Path("/sys/fs/cgroup", CGROUP).rmdir()

    def live(self) -> None:
        container = self.create([TRUE])
        self.client.request("POST", f"/containers/{container}/start")
        ended = self.client.request("POST", f"/containers/{container}/wait")
        self.client.request("DELETE", f"/containers/{container}?force=true")
        if ended["StatusCode"]:
            raise TrialFailed(f"{TRUE} ended with {ended['StatusCode']}")

    def create(self, argv: list[str], *, image: str = IMAGE) -> str:
        body = {"Image": image, "Cmd": argv, "HostConfig": {"NetworkMode": "none"}}
        return str(self.client.request("POST", "/containers/create", body)["Id"])

    def start(self) -> "DockerInstance":
        return self.run(IMAGE)

    def run(self, image: str) -> "DockerInstance":
        container = self.create(list(IDLE), image=image)
        self.client.request("POST", f"/containers/{container}/start")
        return DockerInstance(self, container)

    def commit(self, container: str) -> str:
        """docker's own way, which stops the container's processes meanwhile."""
        return str(self.client.request("POST", f"/commit?container={container}")["Id"])

    def forget(self, snapshot: Any) -> None:
        self.client.request("DELETE", f"/images/{snapshot}?force=true")

    def send(self, method: str, target: str, body: Any = None, *, chunked: bool = False) -> http.client.HTTPResponse:
        """A request on a connection of its own, whose answer may have any length."""
        connection = UnixConnection(self.socket)
        headers = {"content-type": "application/x-tar" if method == "PUT" or chunked else "application/json"}
        connection.request(method, target, body, headers, encode_chunked=chunked)
        response = connection.getresponse()
        if not 200 <= response.status < 300:
            raise TrialFailed(f"{method} {target}: {response.status} {response.read(300)!r}")
        return response


def _command(program: Path, directory: Path) -> list[str]:
    # Should this process be killed, dockerd ends too.
    return [
        "setpriv", "--pdeathsig", "TERM",
        str(program), "--host", f"unix://{directory / 'docker.sock'}", "--data-root", str(directory / "data"),
        "--exec-root", str(directory / "exec"), "--pidfile", str(directory / "pid"),
        "--config-file", str(directory / "daemon.json"),
        "--bridge=none", "--iptables=false", "--ip6tables=false", "--storage-driver=overlay2",
        f"--cgroup-parent=/{CGROUP}", "--exec-opt=native.cgroupdriver=cgroupfs",
    ]  # fmt: skip


class DockerInstance(Instance):
    def __init__(self, system: Docker, container: str) -> None:
        self._system, self._container = system, container
        self._images: list[str] = []

    def true(self) -> None:
        self._exec([TRUE])

    def output(self, size: int) -> int:
        return self._exec(["sh", "-c", text_of(size)])

    def shell(self, command: str) -> None:
        self._exec(["sh", "-c", command])

    def snapshot(self) -> str:
        return self._system.commit(self._container)

    def clone(self) -> "DockerInstance":
        image = self._system.commit(self._container)
        clone = self._system.run(image)
        clone._images.append(image)
        return clone

    def restore(self, snapshot: Any) -> None:
        """docker puts nothing back: the container is replaced by another one."""
        self._system.client.request("DELETE", f"/containers/{self._container}?force=true")
        self._container = self._system.run(snapshot)._container

    def _exec(self, argv: list[str]) -> int:
        client = self._system.client
        body = {"Cmd": argv, "AttachStdout": True, "AttachStderr": True}
        made = client.request("POST", f"/containers/{self._container}/exec", body)["Id"]
        total = _count_frames(self._system.send("POST", f"/exec/{made}/start", json.dumps({"Detach": False})))
        ended = client.request("GET", f"/exec/{made}/json")
        if ended["ExitCode"]:
            raise TrialFailed(f"{argv[0]} ended with {ended['ExitCode']}")
        return total

    def upload(self, data: bytes) -> None:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            entry = tarfile.TarInfo("uploaded")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        self._system.send("PUT", f"/containers/{self._container}/archive?path=/tmp", archive.getbuffer()).read()

    def download(self) -> int:
        response = self._system.send("GET", f"/containers/{self._container}/archive?path=/tmp/uploaded")
        with tarfile.open(fileobj=response, mode="r|") as tar:
            entry = tar.next()
            assert entry is not None
            file = tar.extractfile(entry)
            assert file is not None
            total = 0
            while chunk := file.read(256 * 1024):
                total += len(chunk)
        return total

    def processes(self) -> set[int]:
        """The container and its shim."""
        inspected = self._system.client.request("GET", f"/containers/{self._container}/json")
        container = int(inspected["State"]["Pid"])
        shim = int(Path(f"/proc/{container}/stat").read_text().rpartition(")")[2].split()[1])
        return {shim} | descendants({shim})

    def stop(self) -> None:
        self._system.client.request("DELETE", f"/containers/{self._container}?force=true")
        for image in self._images:
            self._system.forget(image)


def _count_frames(response: http.client.HTTPResponse) -> int:
    """Payload bytes of docker's multiplexed stream: frames of stream, three zeros, length, payload."""
    total = 0
    with response:
        while header := response.read(FRAME_HEADER):
            size = int.from_bytes(header[4:], "big")
            total += len(response.read(size))
    return total
