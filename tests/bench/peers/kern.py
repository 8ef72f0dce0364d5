"""kern, the closest peer: a rootless container runtime without a daemon (kern-sandbox on PyPI)."""

import contextlib
import itertools
import os
import shutil

from tests.bench.density import descendants, processes_with_word
from tests.bench.measure import TrialFailed
from tests.bench.provision import python_program
from tests.bench.systems import (
    IDLE,
    TRUE,
    Instance,
    System,
    call,
    count_output,
    text_of,
    version_of,
)

COPIED = "/tmp/uploaded"


class Kern(System):
    """Owns: kern's runtime and data directories, in the scratch directory."""

    name = "kern"
    conditions = "command line, as root; its own defaults: overlay root, seccomp, user namespace, no limits in force"
    offers = frozenset({"life", "exec", "output", "files", "memory"})

    def open(self) -> str:
        self._program = str(python_program("kern", "kern-sandbox"))
        self.directory = self.workplace.scratch / self.name
        self.directory.mkdir(mode=0o700)
        self.environment = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(self.directory),
            "XDG_DATA_HOME": str(self.directory / "data"),
        }
        self._numbers = itertools.count()
        return version_of([self._program, "--version"])

    def close(self) -> None:
        if hasattr(self, "environment"):
            with contextlib.suppress(TrialFailed):  # it is an error to it that nothing runs
                self.run("stop", "--all")
            shutil.rmtree(self.directory, ignore_errors=True)

    def live(self) -> None:
        self.run("box", *self._box(self.new_name()), "--", TRUE)

    def start(self) -> "KernInstance":
        name = self.new_name()
        self.run("box", *self._box(name), "--detach", "--", *IDLE)
        return KernInstance(self, name)

    def new_name(self) -> str:
        return f"bench-{os.getpid()}-{next(self._numbers)}"

    def run(self, *arguments: str) -> None:
        call([self._program, *arguments], environment=self.environment)

    def count(self, *arguments: str) -> int:
        return count_output([self._program, *arguments], environment=self.environment)

    def _box(self, name: str) -> list[str]:
        return [name, "--rootfs", str(self.workplace.rootfs), "--quiet", "--rm", "--allow-uncapped"]


class KernInstance(Instance):
    def __init__(self, system: Kern, name: str) -> None:
        self._system, self._name = system, name

    def true(self) -> None:
        self._system.run("exec", self._name, "--", TRUE)

    def output(self, size: int) -> int:
        return self._system.count("exec", self._name, "--", "sh", "-c", text_of(size))

    def upload(self, data: bytes) -> None:
        source = self._system.directory / "up"
        source.write_bytes(data)
        self._system.run("cp", str(source), f"{self._name}:{COPIED}")

    def download(self) -> int:
        target = self._system.directory / "down"
        self._system.run("cp", f"{self._name}:{COPIED}", str(target))
        return target.stat().st_size

    def processes(self) -> set[int]:
        first = processes_with_word(self._name)
        return first | descendants(first)

    def stop(self) -> None:
        self._system.run("kill", self._name)
