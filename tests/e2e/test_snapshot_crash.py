"""A daemon that dies in the middle of snapshots, clones and restores, and what the next one makes of it."""

import contextlib
import http.client
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import daemon_as_user
from tests.support import census, witnesses
from tests.support.daemon import Daemon, running
from tests.support.sandbox import Box
from tests.support.waiting import wait_until

SANDBOXES = "/v1/sandboxes"
SNAPSHOTS = "/v1/snapshots"


@pytest.fixture
def survivor(own_daemon: Daemon) -> Box:
    """A sandbox that runs through it all."""
    own_daemon.start()
    box = Box(own_daemon, own_daemon.create(name="survivor"))
    box.shell("echo written > ~/file; setsid sleep 600 > /dev/null 2>&1 &")
    wait_until(lambda: box.processes() == ["sleep 600"])
    return box


def crash(daemon: Daemon, point: str, method: str, path: str, body: Any = None, *, data: bytes | None = None) -> None:
    """Have the daemon make the request and die at the point; then start the next one."""
    daemon.die_at(point)
    with contextlib.suppress(http.client.HTTPException, OSError):
        answer = daemon.call(method, path, body, data=data)
        # What is done in the background dies after the answer.
        assert answer.status < 300, answer.data
    assert daemon.wait() == -signal.SIGKILL
    daemon.die_at(None)
    daemon.start()


def assert_true(box: Box) -> None:
    """Every witness agrees; the sandbox runs, and was not left frozen."""
    assert witnesses.disagreement(box.daemon) == {}
    view = box.daemon.view("survivor")
    assert (view["id"], view["status"]) == (box.id, "running")
    assert box.shell("cat ~/file")["stdout"] == "written\n"
    assert box.processes() == ["sleep 600"]


def names(daemon: Daemon) -> list[str]:
    return [each["name"] for each in daemon.snapshots()]


@pytest.mark.parametrize("point", ["snapshot:frozen", "layer:copied", "layer:sealed"])
def test_a_snapshot_that_was_not_confirmed_was_never_taken(survivor: Box, point: str) -> None:
    crash(survivor.daemon, point, "POST", f"{SANDBOXES}/{survivor.id}/snapshot", {"name": "half"})
    assert names(survivor.daemon) == []
    assert_true(survivor)


def test_a_snapshot_that_was_confirmed_is_there_though_nobody_was_told(survivor: Box) -> None:
    daemon = survivor.daemon
    crash(daemon, "snapshot:confirmed", "POST", f"{SANDBOXES}/{survivor.id}/snapshot", {"name": "whole"})
    assert names(daemon) == ["whole"]
    assert daemon.shell(daemon.create(snapshot="whole"), "cat ~/file")["stdout"] == "written\n"
    assert_true(survivor)


@pytest.mark.parametrize("point", ["snapshot:recorded", "layer:moved"])
def test_a_stopped_sandbox_loses_nothing_when_its_tree_is_moved(survivor: Box, point: str) -> None:
    daemon = survivor.daemon
    still = daemon.create(name="still")
    daemon.shell(still, "echo kept > ~/kept; rm -f /etc/motd", user="root")
    assert daemon.call("POST", f"{SANDBOXES}/still/stop").status == 200
    crash(daemon, point, "POST", f"{SANDBOXES}/still/snapshot", {"name": "moved"})
    assert names(daemon) == ["moved"]
    assert daemon.call("POST", f"{SANDBOXES}/still/start").status == 200
    for sandbox in ("still", daemon.create(snapshot="moved")):
        assert daemon.shell(sandbox, "cat /root/kept", user="root")["stdout"] == "kept\n"
    assert_true(survivor)


@pytest.mark.parametrize("point", ["restore:recorded", "restore:replaced", "restore:confirmed"])
def test_a_restore_that_was_begun_is_finished(survivor: Box, point: str) -> None:
    daemon = survivor.daemon
    changed = daemon.create(name="changed")
    daemon.shell(changed, "echo old > ~/file")
    assert daemon.call("POST", f"{SANDBOXES}/changed/snapshot", {"name": "old"}).status == 201
    daemon.shell(changed, "echo new > ~/file; touch ~/newer")
    crash(daemon, point, "POST", f"{SANDBOXES}/changed/restore", {"snapshot": "old"})
    assert daemon.view("changed")["status"] == "stopped"
    assert daemon.call("POST", f"{SANDBOXES}/changed/start").status == 200
    assert daemon.shell("changed", "cat ~/file; ls ~")["stdout"].split() == ["old", "file"]
    assert_true(survivor)


def test_clones_of_a_daemon_that_died_are_whole_or_gone(survivor: Box) -> None:
    daemon = survivor.daemon
    for point in ("clone:sealed", "create:launched"):
        crash(daemon, point, "POST", f"{SANDBOXES}/survivor/clone", {"count": 2})
        for view in daemon.views():
            assert daemon.shell(view["id"], "cat ~/file")["stdout"] == "written\n"
        assert_true(survivor)


def exported_file(box: Box) -> bytes:
    """Of a snapshot `original`, whose two layers an export has to make one."""
    box.answer("snapshot", {"name": "below"})
    above = box.daemon.create(snapshot="below")
    assert box.daemon.call("POST", f"{SANDBOXES}/{above}/snapshot", {"name": "original"}).status == 201
    box.daemon.delete(above)
    answer = box.daemon.call("GET", f"{SNAPSHOTS}/original/export")
    assert answer.status == 200
    return answer.data


def test_an_import_is_whole_or_never_was(survivor: Box) -> None:
    daemon, data = survivor.daemon, exported_file(survivor)
    for point in ("import:unpacking", "layer:sealed"):
        crash(daemon, point, "POST", f"{SNAPSHOTS}/import?name=copy", data=data)
        assert names(daemon) == ["below", "original"]
        assert_true(survivor)
    crash(daemon, "import:confirmed", "POST", f"{SNAPSHOTS}/import?name=copy", data=data)
    assert names(daemon) == ["below", "original", "copy"]
    assert daemon.shell(daemon.create(snapshot="copy"), "cat ~/file")["stdout"] == "written\n"
    assert_true(survivor)


def test_an_export_leaves_nothing_and_its_file_is_not_taken_for_whole(survivor: Box) -> None:
    daemon = survivor.daemon
    survivor.shell("head -c 16M /dev/zero > ~/zeros")  # more than all the pipes on the way hold
    data = exported_file(survivor)
    crash(daemon, "export:staged", "GET", f"{SNAPSHOTS}/original/export")
    assert_true(survivor)
    with contextlib.closing(daemon.connect()) as connection:
        connection.request("GET", f"{SNAPSHOTS}/original/export")
        response = connection.getresponse()
        part = response.read(1 << 20)
        daemon.kill()
        with contextlib.suppress(http.client.HTTPException, OSError):
            part += response.read()
    wait_until(lambda: not [each for each in census.processes() if each.command.startswith("tar ")])
    daemon.start()
    assert len(part) < len(data)
    assert daemon.call("POST", f"{SNAPSHOTS}/import?name=part", data=part).json["kind"] == "bad_archive"
    assert_true(survivor)


def test_deletions_go_on_where_they_stopped(survivor: Box) -> None:
    daemon = survivor.daemon
    for point in ("snapshot:forgotten", "layer:forgotten"):
        assert daemon.call("POST", f"{SANDBOXES}/survivor/snapshot", {"name": "doomed"}).status == 201
        crash(daemon, point, "DELETE", f"{SNAPSHOTS}/doomed")
        assert names(daemon) == []
        assert_true(survivor)
    assert os.listdir(daemon.volume / "layers") == []


def test_what_a_power_cut_leaves_of_unfinished_layers_is_swept(survivor: Box) -> None:
    """Files that had no name yet come back empty, in part or not at all; nothing refers to them."""
    daemon = survivor.daemon
    crash(daemon, "layer:copied", "POST", f"{SANDBOXES}/{survivor.id}/snapshot", {"name": "half"})
    daemon.kill()
    script = "mkdir -p .new-0123456789abcdef/upper l0123456789abcdef0123; touch .new-0123456789abcdef/upper/empty"
    layers = daemon.volume / "layers"
    subprocess.run([*daemon.prefix, "sh", "-c", f"cd {layers} && {script}"], check=True, cwd="/")
    daemon.start()
    assert os.listdir(layers) == []
    assert_true(survivor)


def test_a_stray_that_cannot_be_swept_is_told_and_keeps_nobody_from_working(user_image_dir: Path) -> None:
    with running(daemon_as_user(user_image_dir)) as daemon:
        sandbox = daemon.create()
        daemon.kill()
        strays = [daemon.state / "layers/.new-0123456789abcdef", daemon.state / "sandboxes/s0123456789abcdef0123"]
        for stray in strays:
            stray.mkdir(mode=0o700)  # root's, which the daemon may not move
        daemon.start()
        for stray in strays:
            assert f"cannot sweep {stray.name}: " in daemon.log
            stray.rmdir()
        assert daemon.shell(sandbox, "echo well")["stdout"] == "well\n"
