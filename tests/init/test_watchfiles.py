"""Why watches do not stand on watchfiles, on the host's side of a sandbox: each fault shown there, and absent here.

Should one of these tests fail because watchfiles got better, think again.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError

from tests.init.harness import RunningInit
from tests.init.test_watches import batch
from tests.support.waiting import PATIENCE

LEVELS = 10
LIMIT_MS = int(PATIENCE * 1000)


@pytest.fixture
def place(directory: Path) -> Path:
    path = directory / "watched"
    path.mkdir()
    return path


def notifier(place: Path) -> RustNotify:
    return RustNotify([str(place)], False, False, 0, True, True)


def branching(place: Path, levels: int) -> None:
    """Few directories and links, and twice as many ways through them with each level."""
    for level in range(levels + 1):
        (place / f"l{level}").mkdir()
    for level in range(levels):
        for name in "ab":
            (place / f"l{level}" / name).symlink_to(f"../l{level + 1}")


def paused_and_worked(work: Callable[[], object]) -> tuple[float, float]:
    """For how long this thread got no turn while another one worked, and how long that took."""
    took: list[float] = []

    def timed() -> None:
        begun = time.monotonic()
        work()
        took.append(time.monotonic() - begun)

    thread = threading.Thread(target=timed)
    longest, last = 0.0, time.monotonic()
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    return longest, took[0]


def test_a_branching_tree_of_links_stalls_every_thread_there(place: Path) -> None:
    branching(place, LEVELS)
    pause, work = paused_and_worked(lambda: notifier(place))
    assert pause > 0.8 * work > 0.04


async def test_a_branching_tree_of_links_is_a_few_directories_here(release_init: RunningInit, place: Path) -> None:
    levels = 60  # nobody lives to see all the ways through these
    branching(place, levels)
    with trio.fail_after(PATIENCE):
        async with release_init.client.watch(str(place), recursive=True) as changes:
            (place / f"l{levels}" / "file").touch()
            assert [change.path for change in batch(await anext(changes))][:1] == [f"l{levels}/file"]


def test_a_name_is_that_of_a_link_there(place: Path) -> None:
    (place / "real").mkdir()
    (place / "z").mkdir()
    (place / "z" / "link").symlink_to("../real")
    with notifier(place) as notify:
        (place / "real" / "file").touch()
        assert {path for _, path in notify.watch(50, 5, LIMIT_MS, None)} == {str(place / "z" / "link" / "file")}


async def test_a_name_is_its_own_here(release_init: RunningInit, place: Path) -> None:
    (place / "real").mkdir()
    (place / "z").mkdir()
    (place / "z" / "link").symlink_to("../real")
    async with release_init.client.watch(str(place), recursive=True) as changes:
        (place / "real" / "file").touch()
        assert {change.path for change in batch(await anext(changes))} == {"real/file"}


def test_a_name_that_is_no_utf8_is_the_end_there(place: Path) -> None:
    with notifier(place) as notify:
        (place / os.fsdecode(b"\xff")).touch()
        with pytest.raises(WatchfilesRustInternalError, match="Unable to decode"):
            notify.watch(50, 5, LIMIT_MS, None)


def test_directories_made_quickly_lose_files_there(place: Path) -> None:
    """tests/init/test_watches.py has the same with far more of them, where none is lost."""
    lost = 0
    for number in range(20):
        with notifier(place) as notify:
            (place / f"{number}/b/c/d").mkdir(parents=True)
            (place / f"{number}/b/c/d/file").touch()
            lost += f"{place}/{number}/b/c/d/file" not in {path for _, path in notify.watch(100, 20, LIMIT_MS, None)}
    assert lost > 0
