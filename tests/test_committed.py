"""What is committed, checked by a program so that nobody has to remember it. `make lint` runs the linters."""

import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


def test_nothing_committed_names_this_machine() -> None:
    """No home directory, no work directory: what is committed must work anywhere."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        path = CHECKOUT / name
        if path.is_file():
            assert str(CHECKOUT).encode() not in path.read_bytes(), name
