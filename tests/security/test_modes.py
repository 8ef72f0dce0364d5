"""Other users of the host read no keys, databases or files of sandboxes, however the directories came to be."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import daemon_as_root
from tests.support.daemon import Daemon

NOBODY = 65534


@pytest.fixture
def own(image_dir: Any) -> Iterator[Daemon]:
    daemon = daemon_as_root(image_dir)
    try:
        yield daemon
    finally:
        daemon.sweep()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def databases(own: Daemon) -> list[Path]:
    return sorted(own.state.glob("state.db*"))


def test_new_files_are_closed_and_open_ones_are_closed_at_the_next_start(own: Daemon) -> None:
    own.start()
    assert len(databases(own)) == 3  # the journal and its index, too
    assert {mode(path) for path in databases(own)} == {0o600}
    assert mode(own.state) == 0o700
    assert mode(own.runtime / "sandboxes") & 0o077 == 0
    own.kill()

    own.state.chmod(0o755)
    own.runtime.chmod(0o777)
    for path in databases(own):
        path.chmod(0o644)
    assert len(databases(own)) == 3
    own.start()
    assert {mode(path) for path in databases(own)} == {0o600}
    assert (mode(own.state), mode(own.runtime)) == (0o700, 0o755)
    own.stop()


@pytest.mark.parametrize("what", ["state", "run", "state/state.db"])
def test_what_is_somebody_elses_is_refused(own: Daemon, what: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("takes root, to give a file away")
    own.start()  # the control
    own.stop()
    os.chown(own.root / what, NOBODY, NOBODY)
    try:
        own.launch()
        assert own.wait() == 1
        assert f"{own.root / what} is another user's" in own.log
    finally:
        os.chown(own.root / what, os.geteuid(), os.getegid())


def test_a_directory_of_other_things_is_not_closed(own: Daemon) -> None:
    """Somebody wrote /tmp or /var/lib where a directory of the daemon's own belongs."""
    own.state.mkdir(mode=0o755)
    (own.state / "other").touch()
    own.launch()
    assert own.wait() == 1
    assert mode(own.state) == 0o755
    assert f"chmod 0700 {own.state}" in own.log


def test_a_file_system_of_its_own_is_closed_like_any_directory(own: Daemon) -> None:
    """mkfs leaves lost+found in it, and a mode that lets everybody in."""
    (own.state / "lost+found").mkdir(mode=0o700, parents=True)
    own.state.chmod(0o755)
    own.start()
    assert mode(own.state) == 0o700
    own.stop()
