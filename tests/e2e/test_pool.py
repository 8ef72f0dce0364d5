"""The pool: made, used, limited, filled, grown, lost; and no loop device left behind by any of it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.kernel.loop import attached
from tests.support import quotas, witnesses
from tests.support.daemon import Daemon
from tests.support.pool import (
    FILE_SYSTEMS,
    LIMIT,
    MIB,
    a_disk_limit_holds_and_harms_nobody_else,
    init,
    pool_file,
    storage,
)
from tests.support.sandbox import Box
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a pool takes root")

SANDBOXES = "/v1/sandboxes"


@pytest.fixture
def host(own_root_daemon: Daemon) -> Iterator[Daemon]:
    """A daemon that has not been started; afterwards its loop device has to be gone."""
    yield own_root_daemon
    if own_root_daemon.alive:
        own_root_daemon.delete_all()
        own_root_daemon.stop()
    wait_until(lambda: attached(pool_file(own_root_daemon)) == [])


@pytest.fixture(params=FILE_SYSTEMS)
def file_system(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pooled(host: Daemon, file_system: str) -> Daemon:
    """A daemon with a pool, running."""
    init(host, file_system)
    return host.start()


def test_a_daemon_with_a_pool_says_so_and_shows_its_mount_to_nobody(pooled: Daemon, file_system: str) -> None:
    assert pooled.call("GET", "/v1/capabilities").json["volume"] == file_system
    assert str(pooled.root) not in Path("/proc/self/mountinfo").read_text()
    assert len(attached(pool_file(pooled))) == 1


def test_snapshots_clones_and_restores_copy_nothing(pooled: Daemon) -> None:
    box = Box(pooled, pooled.create(name="origin"))
    box.shell("head -c 50000000 /dev/urandom > ~/big; sync; echo one > ~/file")
    before = box.shell("md5sum ~/big")["stdout"]
    answer = box.answer("snapshot", {"name": "good"})
    assert answer.status == 201, answer.data
    assert answer.json["cost"]["copied_bytes"] == 0
    free = pooled.call("GET", "/v1/storage").json["available_bytes"]
    clones = box.answer("clone", {"count": 3}).json["sandboxes"]
    for view in clones:
        assert pooled.shell(view["id"], "md5sum ~/big")["stdout"] == before
    assert free - pooled.call("GET", "/v1/storage").json["available_bytes"] < 20 * MIB
    box.shell("rm ~/big; echo two > ~/file")
    assert box.answer("restore", {"snapshot": "good"}).status == 200
    assert box.shell("cat ~/file; md5sum ~/big")["stdout"] == "one\n" + before


def test_a_snapshot_is_on_the_disk_when_it_is_answered(host: Daemon, tmp_path: Path) -> None:
    """The pool's file has what a power cut leaves: what the kernel has not written to the device yet is not in it.

    On XFS, which can be asked to mount what it takes for the same file system twice.
    """
    init(host, "xfs")
    box = Box(host.start(), host.create())
    box.shell("echo kept > ~/file")
    assert box.answer("snapshot", None).status == 201
    subprocess.run(["cp", "--sparse=always", pool_file(host), tmp_path / "copy"], check=True)
    (tmp_path / "point").mkdir()
    script = "mount -o loop,nouuid copy point && cat point/layers/*/upper/home/user/file; umount point"
    seen = subprocess.run(["unshare", "--mount", "sh", "-c", script], cwd=tmp_path, capture_output=True, check=False)
    assert (seen.stdout, seen.stderr) == (b"kept\n", b"")


def test_a_long_chain_in_a_pool_is_squashed_too(pooled: Daemon) -> None:
    current = pooled.create()
    for number in range(11):
        pooled.shell(current, f"echo {number} > ~/{number}; rm -f ~/{number - 2}")
        snapshot = pooled.call("POST", f"{SANDBOXES}/{current}/snapshot").json
        assert snapshot["layers"] <= 8
        following = pooled.create(snapshot=snapshot["id"])
        pooled.delete(current)
        current = following
    assert pooled.shell(current, "ls ~")["stdout"].split() == ["10", "9"]


def test_everything_goes_when_nobody_needs_it(pooled: Daemon) -> None:
    box = Box(pooled, pooled.create())
    assert box.answer("snapshot", None).status == 201
    assert box.answer("clone", None).status == 201
    assert box.answer("stop", None).status == 200
    assert box.answer("snapshot", None).status == 201
    pooled.delete_all()
    assert witnesses.disagreement(pooled) == {}
    assert os.listdir(pooled.volume / "layers") == []


def test_sandboxes_in_a_pool_survive_their_daemon(pooled: Daemon) -> None:
    box = Box(pooled, pooled.create(name="survivor"))
    box.shell("echo kept > ~/file; setsid sleep 600 > /dev/null 2>&1 &")
    wait_until(lambda: box.processes() == ["sleep 600"])
    pooled.kill()
    pooled.start()
    assert box.shell("cat ~/file")["stdout"] == "kept\n"
    assert box.processes() == ["sleep 600"]
    assert len(attached(pool_file(pooled))) == 1
    assert witnesses.disagreement(pooled) == {}


def test_a_disk_limit_holds_or_is_refused(pooled: Daemon) -> None:
    """This kernel may have no quotas for XFS; tests/uml/inside/test_disk_limits.py has one that does."""
    told = pooled.call("GET", "/v1/capabilities").json
    if told["limits"]["disk"]:
        a_disk_limit_holds_and_harms_nobody_else(pooled)
        return
    answer = pooled.call("POST", SANDBOXES, {"limits": {"disk_bytes": LIMIT}})
    assert (answer.status, told["volume"]) == (422, "xfs")
    assert "no quotas for XFS" in answer.json["error"]


def test_a_bound_on_disk_is_kept(host: Daemon) -> None:
    init(host)
    port = quotas.listen_with_bound(host, "disk", 3 * LIMIT)
    quotas.a_bound_is_kept(host.start(), port, "disk", LIMIT)


def test_a_full_pool_is_told_and_nothing_is_half_made(pooled: Daemon) -> None:
    box = Box(pooled, pooled.create())
    box.shell("head -c 2000000000 /dev/zero | tr '\\0' x > /var/big; sync", user="root")
    for path in ("snapshot", "clone"):
        answer = box.answer(path, None)
        assert answer.status in {201, 503}, answer.data
    assert box.shell("rm /var/big && sync; echo well", user="root")["stdout"] == "well\n"
    pooled.delete_all()
    assert witnesses.disagreement(pooled) == {}
    assert pooled.shell(pooled.create(), "echo well")["stdout"] == "well\n"


# -- making, growing, removing ------------------------------------------------------------------------------------


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1
    assert done.stderr.startswith("sandboxd: cannot "), done.stderr
    for word in words:
        assert word in done.stderr


def test_a_pool_is_made_once_and_only_where_it_fits(host: Daemon, file_system: str) -> None:
    refused(storage(host, "init", "--size", "100M", "--fs", file_system), "at least")
    refused(storage(host, "init", "--size", "9000T", "--fs", file_system), "left")
    refused(storage(host, "status"), "sandboxd storage init")
    init(host, file_system)
    refused(storage(host, "init", "--size", "700M", "--fs", file_system), "there is one")
    assert storage(host, "status").stdout.startswith(f"{file_system}, 700 MiB")
    assert storage(host, "destroy").returncode == 0
    assert not pool_file(host).exists()


def test_nothing_is_done_under_a_running_daemon_or_its_sandboxes(pooled: Daemon) -> None:
    host = pooled
    host.create()
    for arguments in (("grow", "--size", "1G"), ("destroy",), ("init", "--size", "700M")):
        refused(storage(host, *arguments), "uses it already")
    host.stop()
    refused(storage(host, "destroy", "--force"), "sandboxes run on it")
    host.start()


def test_sandboxes_outside_forbid_a_pool(host: Daemon) -> None:
    host.start()
    sandbox = host.create()
    host.stop()
    refused(storage(host, "init", "--size", "700M"), "delete sandboxes")
    host.start()
    host.delete(sandbox)


def test_a_pool_grows(host: Daemon, file_system: str) -> None:
    init(host, file_system)
    refused(storage(host, "grow", "--size", "600M"), "smaller")
    done = storage(host, "grow", "--size", "1200M")
    assert done.returncode == 0, done.stderr
    host.start()
    assert host.call("GET", "/v1/storage").json["size_bytes"] > 1000 * MIB


@pytest.mark.parametrize(
    "point", ["storage:allocated", "storage:formatted", "storage:named", "storage:enlarged", "storage:removed"]
)
def test_a_crash_in_the_middle_leaves_a_pool_or_none(host: Daemon, file_system: str, point: str) -> None:
    host.state.mkdir()
    host.die_at(point)
    storage(host, "init", "--size", "700M", "--fs", file_system)
    if point in {"storage:enlarged", "storage:removed"}:
        done = storage(host, "grow", "--size", "800M") if point == "storage:enlarged" else storage(host, "destroy")
        assert done.returncode == -9
    host.die_at(None)
    if point == "storage:removed":
        refused_to_start(host, "storage destroy")
        assert storage(host, "destroy").returncode == 0
    host.start()
    assert host.shell(host.create(), "echo well")["stdout"] == "well\n"
    assert not (host.state / ".pool.img.new").exists()
    pooled = point in {"storage:named", "storage:enlarged"}
    assert (host.call("GET", "/v1/capabilities").json["volume"] == file_system) is pooled


def refused_to_start(daemon: Daemon, word: str) -> None:
    daemon.launch()
    assert daemon.wait() == 1
    last = daemon.log.splitlines()[-1]
    assert last.startswith("sandboxd: cannot ")
    assert word in last


def test_a_lost_pool_is_told_and_can_be_given_up(pooled: Daemon) -> None:
    host = pooled
    host.delete(host.create())
    host.stop()
    wait_until(lambda: attached(pool_file(host)) == [])
    pool_file(host).rename(host.root / "elsewhere")
    refused_to_start(host, "pool.img")
    (host.root / "elsewhere").rename(pool_file(host))
    host.start()
    host.stop()
    wait_until(lambda: attached(pool_file(host)) == [])
    with open(pool_file(host), "r+b") as file:
        file.truncate(0)
        file.truncate(700 * MIB)
    refused_to_start(host, "storage destroy --force")
    assert storage(host, "destroy", "--force").returncode == 0
    host.start()


@pytest.mark.parametrize(
    ("damaged", "place", "word"), [("btrfs", 0x10060, "btrfs check"), ("xfs", 0x20, "xfs_repair")]
)
def test_a_damaged_pool_is_told(host: Daemon, damaged: str, place: int, word: str) -> None:
    init(host, damaged)
    with open(pool_file(host), "r+b") as file:
        os.pwrite(file.fileno(), b"\xff" * 400, place)
    refused_to_start(host, word)
    wait_until(lambda: attached(pool_file(host)) == [])  # others look at all devices, and hold each for a moment
    assert storage(host, "destroy", "--force").returncode == 0
    host.start()


def test_without_root_there_is_no_pool(user_image_dir: Path) -> None:
    from tests.conftest import daemon_as_user

    daemon = daemon_as_user(user_image_dir)
    try:
        refused(storage(daemon, "init", "--size", "700M"), "takes root")
        daemon.start()
        told = daemon.call("GET", "/v1/capabilities").json
        assert (told["volume"], told["limits"]["disk"]) == ("plain", False)
        assert "root" in told["disk_reason"]
    finally:
        daemon.sweep()
