"""Real processes in real cgroups, for tests."""

import contextlib
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sandboxd.kernel.cgroup_events import CgroupWatcher
from sandboxd.kernel.cgroups import Cgroup
from tests.support.waiting import PATIENCE

BUSY_LOOP = ("sh", "-c", "while :; do :; done")


@contextlib.contextmanager
def process_in(
    cgroup: Cgroup, argv: Sequence[str | Path], *, stderr: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that begins its work in the cgroup: it is held back until it has been moved there.

    It is killed and reaped on leaving; what it started in turn is the cgroup's business.
    """
    held_back = ("sh", "-c", 'read -r go && exec "$@"', "sh", *argv)
    with subprocess.Popen(held_back, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr) as process:
        try:
            cgroup.attach(process.pid)
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(b"\n")
                process.stdin.flush()
            yield process
        finally:
            process.kill()


def wait_until(condition: Callable[[], bool], cgroup: Cgroup) -> None:
    """Wait for a condition that a change of the cgroup makes true, by its events."""
    deadline = time.monotonic() + PATIENCE
    with CgroupWatcher() as watcher:
        watcher.add(cgroup)
        while not condition():
            assert select.select([watcher], [], [], deadline - time.monotonic())[0], "nothing happened"
            watcher.read()


def empty(cgroup: Cgroup) -> None:
    """Kill all that is in a cgroup and wait until it is gone, so that the cgroup can be removed."""
    if cgroup.exists():
        cgroup.kill()
        wait_until(lambda: not cgroup.populated, cgroup)
