"""Disk limits in an XFS pool: Debian's kernels have quotas for XFS, the one the other tests run on need not."""

from collections.abc import Iterator

import pytest

from sandboxd.kernel.loop import attached
from tests.support import pool
from tests.support.daemon import Daemon
from tests.support.sandbox import Box
from tests.support.waiting import wait_until


@pytest.fixture
def pooled(own_root_daemon: Daemon) -> Iterator[Daemon]:
    """A daemon on an XFS pool; afterwards its loop device has to be gone."""
    pool.init(own_root_daemon, "xfs")
    yield own_root_daemon.start()
    own_root_daemon.delete_all()
    own_root_daemon.stop()
    wait_until(lambda: attached(pool.pool_file(own_root_daemon)) == [])


def test_a_disk_limit_holds_and_harms_nobody_else(pooled: Daemon) -> None:
    pool.a_disk_limit_holds_and_harms_nobody_else(pooled)


def test_a_limit_outlives_the_daemon_and_the_pool_s_mount(pooled: Daemon) -> None:
    box = Box(pooled, pooled.create(limits={"disk_bytes": pool.LIMIT}))
    pooled.kill()
    pooled.start()
    pool.overfill(box)
    assert box.answer("stop", None).status == 200
    pooled.stop()
    wait_until(lambda: attached(pool.pool_file(pooled)) == [])
    pooled.start()
    assert box.answer("start", None).status == 200
    pool.overfill(box)


def test_a_new_sandbox_does_not_inherit_the_limit_of_one_that_went(pooled: Daemon) -> None:
    """Projects are named by inode numbers, which come again."""
    for _ in range(3):
        pooled.delete(pooled.create(limits={"disk_bytes": pool.LIMIT}))
    boxes = [Box(pooled, pooled.create()) for _ in range(3)]
    for box in boxes:
        assert box.shell(pool.OVERFILL + " && rm ~/big && echo well", user="root")["stdout"] == "well\n"
