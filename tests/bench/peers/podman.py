"""podman, by its command line, with storage of its own."""

import itertools
import os
from pathlib import Path
from typing import Any

from tests.bench.density import descendants, processes_with_word
from tests.bench.provision import debian_program
from tests.bench.systems import IDLE, TRUE, Instance, System, call, count_output, text_of, version_of

COPIED = "/tmp/uploaded"
IMAGE = "localhost/bench"
# podman would raise these to more than the machine allows, and fail.
LIMITS = ("--ulimit", "nofile=4000:4000", "--ulimit", "nproc=4000:4000")


class Podman(System):
    """Owns: podman's storage and runtime directories, in the scratch directory."""

    name = "podman"
    conditions = "command line, as root; its own defaults: overlay root, seccomp, conmon; no cgroup, no network"
    offers = frozenset({"life", "exec", "output", "files", "memory", "copies"})

    def open(self) -> str:
        program = str(debian_program("podman", "podman", "crun"))
        self.directory = self.workplace.scratch / self.name
        self.directory.mkdir()
        storage = ("--root", str(self.directory / "storage"), "--runroot", str(self.directory / "run"))
        self._command = [
            program, *storage, "--tmpdir", str(self.directory / "tmp"), "--cgroup-manager", "cgroupfs",
            "--events-backend", "none",
        ]  # fmt: skip
        self._numbers = itertools.count()
        self._imported = False
        return version_of([program, "--version"])

    def close(self) -> None:
        if hasattr(self, "_command"):
            self.run("rm", "--all", "--force", "--time", "0")

    def live(self) -> None:
        self.run("run", "--rm", *self._options(), f"{self.workplace.rootfs}:O", TRUE)

    def start(self) -> "PodmanInstance":
        name = self.new_name()
        self.run("run", "--detach", "--name", name, *self._options(), f"{self.workplace.rootfs}:O", *IDLE)
        return PodmanInstance(self, name)

    def origin(self) -> "PodmanInstance":
        """podman keeps the changes of containers that stand on an image only, so the tree becomes one first."""
        if not self._imported:
            archive = self.directory / "image.tar"
            call(["/usr/bin/tar", "--numeric-owner", "-C", str(self.workplace.rootfs), "-cf", str(archive), "."])
            self.run("import", "--quiet", str(archive), IMAGE)
            archive.unlink()
            self._imported = True
        return self.run_image(IMAGE)

    def run_image(self, image: str) -> "PodmanInstance":
        name = self.new_name()
        options = self._options()[:-1]
        self.run("run", "--detach", "--name", name, *options, image, *IDLE)
        return PodmanInstance(self, name)

    def commit(self, container: str) -> str:
        image = f"{IMAGE}:{next(self._numbers)}"
        self.run("commit", "--quiet", container, image)
        return image

    def forget(self, snapshot: Any) -> None:
        self.run("rmi", "--force", snapshot)

    def new_name(self) -> str:
        return f"bench-{os.getpid()}-{next(self._numbers)}"

    def run(self, *arguments: str) -> None:
        call([*self._command, *arguments])

    def count(self, *arguments: str) -> int:
        return count_output([*self._command, *arguments])

    def _options(self) -> list[str]:
        return ["--cgroups", "disabled", "--network", "none", *LIMITS, "--rootfs"]


class PodmanInstance(Instance):
    def __init__(self, system: Podman, name: str) -> None:
        self._system, self._name = system, name
        self._images: list[str] = []

    def true(self) -> None:
        self._system.run("exec", self._name, TRUE)

    def output(self, size: int) -> int:
        return self._system.count("exec", self._name, "sh", "-c", text_of(size))

    def shell(self, command: str) -> None:
        self._system.run("exec", self._name, "sh", "-c", command)

    def snapshot(self) -> str:
        return self._system.commit(self._name)

    def clone(self) -> "PodmanInstance":
        image = self._system.commit(self._name)
        clone = self._system.run_image(image)
        clone._images.append(image)
        return clone

    def restore(self, snapshot: Any) -> None:
        """podman puts nothing back: the container is replaced by another one."""
        self._system.run("rm", "--force", "--time", "0", self._name)
        self._name = self._system.run_image(snapshot)._name

    def upload(self, data: bytes) -> None:
        source = self._system.directory / "up"
        source.write_bytes(data)
        self._system.run("cp", str(source), f"{self._name}:{COPIED}")

    def download(self) -> int:
        target = self._system.directory / "down"
        self._system.run("cp", f"{self._name}:{COPIED}", str(target))
        return Path(target).stat().st_size

    def processes(self) -> set[int]:
        """conmon, which has the name among its arguments, and the container below it."""
        first = processes_with_word(self._name)
        return first | descendants(first)

    def stop(self) -> None:
        self._system.run("rm", "--force", "--time", "0", self._name)
        for image in self._images:
            self._system.forget(image)
