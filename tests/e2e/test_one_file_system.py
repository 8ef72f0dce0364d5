"""A sandbox's root looks like one file system, whatever lies beneath it: layers, an identity on a tmpfs, a pool."""

import json

from tests.support import pool
from tests.support.daemon import Daemon
from tests.support.sandbox import Box

# Runs inside: every file of the root's that does not lie below a mount point, looked at in both ways.
LOOK = """
import json, os
top = os.lstat("/").st_dev
mounts = {line.split()[4] for line in open("/proc/self/mountinfo")}
devices, strange, seen = set(), [], 0
stack = ["/"]
while stack:
    for entry in os.scandir(stack.pop()):
        if entry.path in mounts:
            continue
        status = os.lstat(entry.path)
        seen += 1
        devices.add(status.st_dev)
        if entry.inode() != status.st_ino:
            strange.append(entry.path)
        if entry.is_dir(follow_symlinks=False):
            stack.append(entry.path)
print(json.dumps({"seen": seen, "foreign": len(devices - {top}), "strange": strange[:5]}))
"""
WRITE = "mkdir -p /opt/mine && echo one >/opt/mine/file && echo two >>/etc/hostname && chmod 0700 /usr/bin/env"


def look(box: Box) -> None:
    found = json.loads(box.shell("python3 -", stdin=LOOK, user="root")["stdout"])
    assert found["seen"] > 1000
    assert found["foreign"] == 0
    assert found["strange"] == []


def as_one_file_system(daemon: Daemon) -> None:
    box = Box(daemon, daemon.create())
    look(box)
    assert box.shell(WRITE, user="root")["exit_code"] == 0
    look(box)
    clone = Box(daemon, box.answer("clone", None).json["id"])
    look(clone)


def test_every_file_has_one_device_and_one_number(daemon: Daemon) -> None:
    as_one_file_system(daemon)


def test_so_it_is_where_layers_and_images_lie_on_different_file_systems(own_root_daemon: Daemon) -> None:
    own_root_daemon.state.mkdir(exist_ok=True)
    pool.init(own_root_daemon)
    own_root_daemon.start()
    as_one_file_system(own_root_daemon)
