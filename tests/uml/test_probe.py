"""Where User-Mode Linux cannot run, its tests are skipped, for a reason told once; where it is broken, they fail."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.uml import machine
from tests.uml.machine import CHECKOUT

# What is seen of Debian 12's on a processor with AMX, and of one that fails for another reason.
UNFIT = """
echo 'Core dump limits :'
echo 'userspace - ptrace set fp regs failed, errno = 14'
kill -ABRT $$
"""
BROKEN = "echo 'Kernel panic - not syncing: VFS: Unable to mount root fs'; exit 1"
ONE = "test_machine.py::test_a_program_killed_by_a_signal_says_so"


@pytest.fixture(autouse=True)
def probes_anew() -> Iterator[None]:
    machine.unfit_processor.cache_clear()
    yield
    machine.unfit_processor.cache_clear()


def path_to(directory: Path, script: str) -> str:
    """A search path on which the first linux.uml is this script."""
    fake = directory / "linux.uml"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    return os.pathsep.join((str(directory), os.environ["PATH"], "/usr/sbin", "/sbin"))


def test_a_processor_that_it_cannot_run_on_is_told_by_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_SEARCH_PATH", path_to(tmp_path, f"echo >>{tmp_path}/runs\n{UNFIT}"))
    reason = "User-Mode Linux cannot run on this processor: ptrace set fp regs failed, errno = 14"
    assert [machine.unfit_processor() for _ in range(3)] == [reason] * 3
    assert (tmp_path / "runs").read_text() == "\n"


def test_one_that_fails_otherwise_is_no_reason_to_skip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_SEARCH_PATH", path_to(tmp_path, BROKEN))
    assert machine.unfit_processor() is None


def outcome(directory: Path, script: str, *tests: str) -> tuple[int, str]:
    """Of tests that need a machine: pytest's status, and what it says."""
    names = [f"tests/uml/{name}" for name in tests]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *names],
        cwd=CHECKOUT,
        env={**os.environ, "PATH": path_to(directory, script)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_the_tests_are_skipped_for_one_reason_in_the_closing_lines(tmp_path: Path) -> None:
    status, output = outcome(tmp_path, UNFIT, ONE, "samples/outcomes.py::test_passes_with_one_parameter")
    closing = output.splitlines()[-2:]
    assert closing[0].startswith("SKIPPED [3] tests/uml/conftest.py:")
    assert closing[0].endswith("User-Mode Linux cannot run on this processor: ptrace set fp regs failed, errno = 14")
    assert "3 skipped" in closing[1]
    assert status == 0


def test_the_tests_fail_where_it_is_broken(tmp_path: Path) -> None:
    status, output = outcome(tmp_path, BROKEN, ONE)
    assert "1 failed" in output.splitlines()[-1]
    assert "Unable to mount root fs" in output
    assert status == 1
