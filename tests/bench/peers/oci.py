"""OCI runtimes on one bundle: crun, runc, and gVisor's runsc."""

import contextlib
import itertools
import json
import os
import threading
from pathlib import Path
from typing import Any, ClassVar

from tests.bench.density import descendants, processes_with_word
from tests.bench.provision import backported_program, debian_program
from tests.bench.systems import IDLE, TRUE, Instance, System, call, count_output, end, text_of, version_of

CGROUP = "sandboxd-bench"
NAMESPACES = ("pid", "network", "ipc", "uts", "mount", "cgroup")
CAPABILITIES = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID")


class OciRuntime(System):
    """Owns: a directory of bundles and the runtime's state in the scratch directory."""

    offers = frozenset({"life", "exec", "output", "memory"})
    options: ClassVar[tuple[str, ...]] = ()
    in_cgroup: ClassVar[bool] = True

    def find(self) -> Path:
        raise NotImplementedError

    def open(self) -> str:
        program = str(self.find())
        self._directory = self.workplace.scratch / self.name
        (self._directory / "state").mkdir(parents=True)
        self.command = [program, "--root", str(self._directory / "state"), *self.options]
        self._numbers = itertools.count()
        self._bundles = threading.local()
        return version_of([program, "--version"])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            Path("/sys/fs/cgroup", CGROUP).rmdir()

    def live(self) -> None:
        name = self.new_name()
        call([*self.command, "run", "--bundle", self._thread_bundle(), name])

    def start(self) -> "OciInstance":
        name = self.new_name()
        return OciInstance(self, name, self.bundle(name, IDLE))

    def new_name(self) -> str:
        return f"bench-{os.getpid()}-{next(self._numbers)}"

    def _thread_bundle(self) -> str:
        """A bundle that runs /bin/true. One for each thread, since a cgroup path is part of it."""
        if not hasattr(self._bundles, "path"):
            self._bundles.path = self.bundle(self.new_name(), (TRUE,))
        return str(self._bundles.path)

    def bundle(self, name: str, argv: tuple[str, ...]) -> Path:
        directory = self._directory / name
        directory.mkdir()
        spec = _spec(self.workplace.rootfs, argv, cgroup=f"/{CGROUP}/{name}" if self.in_cgroup else None)
        (directory / "config.json").write_text(json.dumps(spec))
        return directory


class OciInstance(Instance):
    def __init__(self, system: OciRuntime, name: str, bundle: Path) -> None:
        self._command, self._name = system.command, name
        pid_file = bundle / "pid"
        call([*self._command, "run", "--detach", "--bundle", str(bundle), "--pid-file", str(pid_file), name])
        self._pid = int(pid_file.read_text())

    def true(self) -> None:
        call([*self._command, "exec", self._name, TRUE])

    def output(self, size: int) -> int:
        return count_output([*self._command, "exec", self._name, "/bin/sh", "-c", text_of(size)])

    def processes(self) -> set[int]:
        # gVisor's file server is beside the sandbox, not below it, and has its name in its command line.
        found = {self._pid} | processes_with_word(self._name)
        return found | descendants(found)

    def stop(self) -> None:
        end(self._pid)
        call([*self._command, "delete", "--force", self._name])


class Crun(OciRuntime):
    name = "crun"
    conditions = "command line, as root; read-only root, no user namespace, no seccomp, own cgroup without limits"

    def find(self) -> Path:
        return debian_program("crun", "crun")


class Runc(OciRuntime):
    name = "runc"
    conditions = "as crun"

    def find(self) -> Path:
        return debian_program("runc", "runc")


class Runsc(OciRuntime):
    name = "runsc"
    conditions = "gVisor, systrap platform; read-only root, no cgroup, no network"
    options = ("--platform=systrap", "--network=none", "--ignore-cgroups")
    in_cgroup = False

    def find(self) -> Path:
        return backported_program("runsc", "runsc")


def _spec(rootfs: Path, argv: tuple[str, ...], *, cgroup: str | None) -> dict[str, Any]:
    """An OCI runtime configuration: what `crun spec` writes, less what differs between runtimes."""
    capabilities = dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES)
    linux: dict[str, Any] = {"namespaces": [{"type": kind} for kind in NAMESPACES]}
    if cgroup is not None:
        linux["cgroupsPath"] = cgroup
    return {
        "ociVersion": "1.0.0",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": argv,
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": capabilities,
            "noNewPrivileges": True,
        },
        "root": {"path": str(rootfs), "readonly": True},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            _mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
            _mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
            _mount("/tmp", "tmpfs", "nosuid", "nodev", "mode=1777"),
        ],
        "linux": linux,
    }


def _mount(destination: str, kind: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": kind, "options": options}
