"""The rules that a program can check are tests, so that nobody has to remember them."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
TOOLS = {
    "ruff check": ["-m", "ruff", "check", "--no-cache", "."],
    "ruff format": ["-m", "ruff", "format", "--no-cache", "--check", "."],
    "mypy": ["-m", "mypy", "--no-error-summary"],
}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_linter_has_nothing_to_say(tool: str) -> None:
    done = subprocess.run([sys.executable, *TOOLS[tool]], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_committed_names_this_machine() -> None:
    """No home directory, no work directory: what is committed must work anywhere."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        path = CHECKOUT / name
        if path.is_file():
            assert str(CHECKOUT).encode() not in path.read_bytes(), name
