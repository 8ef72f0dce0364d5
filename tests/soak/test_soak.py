"""The soak itself works, and finds nothing in a few seconds. For longer: make soak."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_few_seconds_of_it_end_well() -> None:
    command = [sys.executable, "-m", "tests.soak", "--minutes", "0.2", "--workers", "2", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is left" in done.stdout
