"""The files of sandboxes on the host: made, thrown away whatever is in them, and never more than them."""

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest
import trio

from sandboxd.service.storage.disk import Disk, no_space, sweep_away
from sandboxd.service.storage.volume import PlainVolume
from tests.support.waiting import wait_until


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(volume=PlainVolume(tmp_path / "state", userxattr=False), runtime_dir=tmp_path / "run", root_id=0)


def test_a_sandboxs_directories_are_the_daemons_alone(disk: Disk) -> None:
    paths = disk.make("s1")
    for directory in (paths.writable, paths.runtime):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert sorted(os.listdir(paths.writable)) == ["upper", "work"]
    assert disk.known() == {"s1"}
    assert disk.paths("s1") == paths


def test_two_of_one_id_cannot_be(disk: Disk) -> None:
    disk.make("s1")
    with pytest.raises(FileExistsError):
        disk.make("s1")


def test_what_is_discarded_is_out_of_the_way_at_once_and_gone_after_the_purge(disk: Disk, tmp_path: Path) -> None:
    paths = disk.make("s1")
    (paths.writable / "upper" / "file").write_text("x")
    disk.discard("s1")
    assert disk.known() == frozenset()
    assert len(os.listdir(tmp_path / "state" / "trash")) == 1
    disk.make("s1")  # the id is free again
    disk.purge()
    assert os.listdir(tmp_path / "state" / "trash") == []
    assert disk.known() == {"s1"}


def test_discarding_may_be_repeated_and_may_find_half_of_it(disk: Disk) -> None:
    paths = disk.make("s1")
    subprocess.run(["rm", "-r", paths.runtime], check=True)
    disk.discard("s1")
    disk.discard("s1")
    disk.discard("never-was")
    assert disk.known() == frozenset()


def test_a_hostile_tree_is_removed_and_nothing_beside_it(disk: Disk, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    upper = disk.make("s1").writable / "upper"
    (upper / "link").symlink_to(outside)
    (upper / "locked").mkdir(mode=0)
    (upper / "-rf").write_text("")
    (upper / b"\xff\n".decode("utf-8", "surrogateescape")).write_text("")
    os.mkfifo(upper / "fifo")
    deep = upper
    for _ in range(60):
        deep = deep / ("d" * 50)
    subprocess.run(["mkdir", "-p", "--", deep], check=True)
    disk.discard("s1")
    disk.purge()
    assert os.listdir(tmp_path / "state" / "trash") == []
    assert (outside / "file").read_text() == "kept"


def test_a_tree_deeper_than_any_path_is_removed(disk: Disk, tmp_path: Path) -> None:
    upper = disk.make("s1").writable / "upper"
    script = "import os\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')\n"
    subprocess.run(["python3", "-c", script], cwd=upper, check=True)
    disk.discard("s1")
    disk.purge()
    assert os.listdir(tmp_path / "state" / "trash") == []


def test_a_purge_with_nothing_to_do_does_nothing(disk: Disk) -> None:
    disk.purge()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_want_of_room_is_answered_with_what_makes_some(number: int) -> None:
    answer = no_space("start", number)
    assert answer is not None
    assert (answer.status, answer.kind) == (503, "no_space")
    assert answer.message.startswith("cannot start the sandbox: no space left in the state directory; delete ")
    assert no_space("start", errno.EIO) is no_space("start", None) is None


def test_what_cannot_be_swept_is_told_by_name(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    disk.make("s1")
    disk.purge()
    os.rmdir(disk.volume.root / "trash")
    sweep_away(disk.discard, "s1")
    assert caplog.messages[0].startswith("cannot sweep s1: ")
    assert disk.known() == {"s1"}


async def test_what_any_thread_throws_away_is_removed_for_good_soon_after(disk: Disk, tmp_path: Path) -> None:
    trash = tmp_path / "state" / "trash"
    disk.make("before")
    disk.discard("before")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.keep_purged)
        for sandbox in ("s1", "s2"):
            disk.make(sandbox)
            await trio.to_thread.run_sync(disk.discard, sandbox)
        await trio.to_thread.run_sync(wait_until, lambda: os.listdir(trash) == [])
        nursery.cancel_scope.cancel()
    disk.make("s3")
    disk.discard("s3")  # with nobody there to remove it
    assert len(os.listdir(trash)) == 1
