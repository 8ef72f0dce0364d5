"""Process trees stopped and continued by signals, while they fork as fast as they can."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.kernel import halting
from tests.support.waiting import wait_until

# pid 1 of a namespace of its own, which reaps what is left to it; a fork bomb with a vfork(2) in each link.
STORM = """
import os, subprocess, sys
if os.fork() == 0:
    while True:
        subprocess.run(["true"], close_fds=False)
if os.fork() == 0:
    while True:
        if os.fork():
            os.wait()
        else:
            os._exit(0)
print("up", flush=True)
while True:
    os.wait()
"""


@contextlib.contextmanager
def namespace(program: str) -> Iterator[int]:
    """The program as pid 1 of a namespace; its pid out here, once it has said that it is up."""
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--fork",
        "--kill-child",
        "--pid",
        sys.executable,
        "-c",
        program,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"up\n"
            yield int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        finally:
            process.kill()


def halt(root: int) -> None:
    wait_until(lambda: halting.halt_tree(root))


def clocks(root: int) -> dict[int, int]:
    """How long each process of the tree has run, in nanoseconds: those that end while they are looked at left out."""
    found: dict[int, int] = {}
    for pid in halting._tree(root):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[pid] = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    return found


def is_at_rest(root: int) -> bool:
    before = clocks(root)
    time.sleep(0.05)  # in which a process that ran would have run
    return clocks(root) == before


@pytest.mark.parametrize("round_", range(5))
def test_a_halted_tree_neither_runs_nor_grows_until_it_is_continued(round_: int) -> None:
    with namespace(STORM) as root:
        assert not halting.halted(root)
        halt(root)
        wait_until(lambda: halting.halted(root))
        # Soon: who is on the way into a stop, or out of an uninterruptible sleep, counts as stopped already.
        wait_until(lambda: is_at_rest(root))
        before = clocks(root)
        halting.continue_tree(root)
        wait_until(lambda: clocks(root) != before)
        assert not halting.halted(root)


def test_what_was_stopped_before_is_left_so() -> None:
    program = "import os, time\nif os.fork() == 0: time.sleep(600)\nprint('up', flush=True)\ntime.sleep(600)"
    with namespace(program) as root:
        _, job = halting._tree(root)
        os.kill(job, signal.SIGSTOP)
        wait_until(lambda: halting.halted(job))
        jobs = halting.stopped_jobs(root)
        assert jobs == {job}
        halt(root)
        halting.continue_tree(root, but=jobs)
        assert halting.halted(job)
        halting.continue_tree(root)
        wait_until(lambda: not halting.halted(job))


def test_a_tree_that_is_gone_is_halted_and_nothing_else_is_touched() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert halting.halted(process.pid)
    assert halting.halt_tree(process.pid)
    halting.continue_tree(process.pid)
    assert halting.stopped_jobs(process.pid) == frozenset()


# Bytes that are no UTF-8, and what a name may be made of to look like the end of one.
NAMES = (b"\xff", b") T 0 (\xff)", b"\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_process_may_have_any_name(name: bytes) -> None:
    program = f"""
import os, sys, time
if os.fork() == 0:
    with open("/proc/self/comm", "wb") as file:
        file.write({name!r})
    print("up", flush=True)
    while True:
        time.sleep(600)
while True:
    os.wait()
"""
    with namespace(program) as root:
        assert halting.stopped_jobs(root) == frozenset()
        halt(root)
        assert halting.halted(root)
        assert len(halting.stopped_jobs(root)) == 2
        halting.continue_tree(root)
        wait_until(lambda: not halting.halted(root))
