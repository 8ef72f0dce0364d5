"""The bubblewrap command line: what it costs to isolate, with nothing around it."""

import json
import os
import subprocess
from pathlib import Path

from tests.bench.density import descendants
from tests.bench.provision import debian_program
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


class Bwrap(System):
    name = "bwrap"
    conditions = "command line, as root; read-only root, the same namespaces less user; no overlay, seccomp or cgroup"
    offers = frozenset({"life", "exec", "output", "memory"})

    def open(self) -> str:
        self._program = str(debian_program("bwrap", "bubblewrap"))
        self._nsenter = str(debian_program("nsenter", "util-linux"))
        # fmt: off
        self._argv = [
            self._program,
            "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup",
            "--ro-bind", str(self.workplace.rootfs), "/",
            "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--die-with-parent",
        ]
        # fmt: on
        return version_of([self._program, "--version"])

    def live(self) -> None:
        call([*self._argv, TRUE])

    def start(self) -> "BwrapInstance":
        return BwrapInstance(self._argv, self._nsenter)


class BwrapInstance(Instance):
    """bwrap has no exec; nsenter is what one would use."""

    def __init__(self, argv: list[str], nsenter: str) -> None:
        told, tell = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*argv, "--info-fd", str(tell), *IDLE],
                pass_fds=[tell],
                stdin=subprocess.DEVNULL,
            )
        finally:
            os.close(tell)
        with open(told) as info:
            self._pid = json.load(info)["child-pid"]
        # It sets itself up while we read: what it will have exec'ed is the sign that its mounts are in place.
        while b"sleep" not in Path(f"/proc/{self._pid}/cmdline").read_bytes().split(b"\0")[0]:
            os.sched_yield()
        kinds = ("--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--root", "--wd")
        self._enter = [nsenter, "--target", str(self._pid), *kinds]

    def true(self) -> None:
        call([*self._enter, TRUE])

    def output(self, size: int) -> int:
        return count_output([*self._enter, "/bin/sh", "-c", text_of(size)])

    def processes(self) -> set[int]:
        return {self._process.pid} | descendants({self._process.pid})

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
