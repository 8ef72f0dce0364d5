"""The pool of a test's daemon: made by the program's own commands, and what a disk limit in it has to hold."""

import subprocess
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.sandbox import Box

MIB = 1 << 20
FILE_SYSTEMS = ("btrfs", "xfs")
# Small, because it is User-Mode Linux that has quotas for XFS.
LIMIT = 8 * MIB
# Twice the limit, of data that no file system keeps as a hole. "quota exceeded" is btrfs's word for it.
OVERFILL = "head -c 16000000 /dev/zero | tr '\\0' x > ~/big; sync"
FULL = ("quota exceeded", "No space")


def storage(daemon: Daemon, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`sandboxd storage …` for this daemon's state directory."""
    command, environment = daemon.command("storage", *arguments, "--state-dir", str(daemon.state))
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def init(daemon: Daemon, file_system: str = "btrfs", size: str = "700M") -> None:
    done = storage(daemon, "init", "--size", size, "--fs", file_system)
    assert done.returncode == 0, done.stderr


def pool_file(daemon: Daemon) -> Path:
    return daemon.state / "pool.img"


def overfill(box: Box) -> None:
    """Write beyond the limit, and see that it is refused and that nothing else about the sandbox is."""
    told = box.shell(OVERFILL, user="root")["stderr"]
    assert any(word in told for word in FULL), told
    assert int(box.shell("stat -c %s ~/big", user="root")["stdout"]) <= LIMIT
    assert box.shell("rm ~/big && sync; echo small > ~/small && echo well", user="root")["stdout"] == "well\n"


def a_disk_limit_holds_and_harms_nobody_else(daemon: Daemon) -> None:
    """For a daemon on a pool whose file system has quotas in this kernel."""
    assert daemon.call("GET", "/v1/capabilities").json["limits"]["disk"] is True
    limited = Box(daemon, daemon.create(limits={"disk_bytes": LIMIT}))
    free = Box(daemon, daemon.create())
    overfill(limited)
    assert free.shell("head -c 16000000 /dev/zero | tr '\\0' x > ~/big && echo well")["stdout"] == "well\n"
    clone = Box(daemon, limited.answer("clone", None).json["id"])
    assert daemon.view(clone.id)["limits"]["disk_bytes"] == LIMIT
    overfill(clone)
    snapshot = limited.answer("snapshot", None).json["id"]
    assert limited.answer("restore", {"snapshot": snapshot}).status == 200
    overfill(limited)
