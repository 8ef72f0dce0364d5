"""What /proc tells of real processes, of ended ones and of those that never were."""

import contextlib
import mmap
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.kernel.procstat import boot_id, proportional_set_size, start_time
from tests.support.waiting import PATIENCE, wait_until

MIB = 1 << 20


@contextlib.contextmanager
def child_sharing_memory() -> Iterator[int]:
    """A forked child that does nothing, so that all its pages are ours too."""
    held, release = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(release)
        os.read(held, 1)
        os._exit(0)
    os.close(held)
    try:
        yield pid
    finally:
        os.close(release)
        os.waitpid(pid, 0)


@pytest.fixture
def ended() -> int:
    """The pid of a process that has ended and been reaped."""
    process = subprocess.Popen(["true"])
    process.wait(PATIENCE)
    return process.pid


def test_the_start_time_is_a_clock_of_the_boot() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        started = start_time(process.pid) / os.sysconf("SC_CLK_TCK")
        assert before - 0.05 <= started <= time.clock_gettime(time.CLOCK_BOOTTIME) + 0.05
        assert start_time(process.pid) == start_time(process.pid)
    assert start_time(os.getpid()) < started * os.sysconf("SC_CLK_TCK")


def test_a_command_name_with_parentheses_and_spaces_does_not_shift_the_fields(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 (b"
    program.symlink_to("/bin/cat")
    with subprocess.Popen([program], stdin=subprocess.PIPE) as odd, subprocess.Popen(["true"]) as plain:
        wait_until(lambda: Path(f"/proc/{odd.pid}/comm").read_text() == "a) R 1 (b\n")
        assert 0 <= start_time(plain.pid) - start_time(odd.pid) < PATIENCE * os.sysconf("SC_CLK_TCK")


def test_a_process_that_ended_has_no_start_time_and_no_memory(ended: int) -> None:
    assert start_time(ended) == 0
    assert proportional_set_size([ended]) == 0


def test_a_zombie_keeps_its_start_time_and_has_no_memory() -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    started = start_time(process.pid)
    assert process.stdin is not None
    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert start_time(process.pid) == started > 0
    assert proportional_set_size([process.pid]) == 0
    process.wait()


def memory_counts_as_it_is_shared() -> bool:
    before = proportional_set_size([os.getpid()])
    with mmap.mmap(-1, 32 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as private:
        private.write(b"x" * 32 * MIB)
        alone = proportional_set_size([os.getpid()])
        with child_sharing_memory() as child:
            shared = proportional_set_size([os.getpid()])
            both = proportional_set_size([os.getpid(), child])
    return bool(
        alone - before == pytest.approx(32 * MIB, rel=0.1)
        and shared < alone - 14 * MIB
        and both == pytest.approx(alone, rel=0.1)
    )


def test_memory_of_our_own_counts_in_full_and_shared_memory_in_shares() -> None:
    # Until it does: whoever shares our pages, a child of a test before this one, changes our part by its end.
    wait_until(memory_counts_as_it_is_shared)


def test_the_boot_id_is_the_kernels() -> None:
    assert boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
