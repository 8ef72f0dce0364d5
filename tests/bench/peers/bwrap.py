"""The bubblewrap command line: what it costs to isolate, with nothing around it."""

import json
import os
import subprocess
import time

from tests.bench.density import command_line, descendants
from tests.bench.measure import TrialFailed
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

START_LIMIT = 10.0


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
                [*argv, "--as-pid-1", "--info-fd", str(tell), *IDLE],
                pass_fds=[tell],
                stdin=subprocess.DEVNULL,
            )
        finally:
            os.close(tell)
        with open(told) as info:
            self._pid = json.load(info)["child-pid"]
        self._wait_ready()
        kinds = ("--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--root", "--wd")
        self._enter = [nsenter, "--target", str(self._pid), *kinds]

    def _wait_ready(self) -> None:
        """Until it has become the program: only then are its mounts in place."""
        deadline = time.monotonic() + START_LIMIT
        while IDLE[0].encode() not in command_line(self._pid).split(b"\0")[0]:
            if time.monotonic() > deadline:
                self.stop()
                raise TrialFailed("bwrap did not start its program")
            time.sleep(0.001)

    def true(self) -> None:
        call([*self._enter, TRUE])

    def output(self, size: int) -> int:
        return count_output([*self._enter, "/bin/sh", "-c", text_of(size)])

    def processes(self) -> set[int]:
        return {self._process.pid} | descendants({self._process.pid})

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
