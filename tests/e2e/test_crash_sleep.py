"""A daemon that dies while it pauses, resumes, stops or starts a sandbox: the next one brings that to an end."""

import contextlib
import http.client
import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.test_crash import dies_of, restart, start_to_die_at
from tests.e2e.test_lifecycle import SANDBOXES
from tests.e2e.test_sleep import TICKS, changed, ticks_of
from tests.support import witnesses
from tests.support.crashing import points_of
from tests.support.daemon import Daemon
from tests.support.waiting import wait_until

# What has been recorded as begun ends as it was meant to; only a start that nobody was told of is undone.
ENDS = {"pause": "paused", "resume": "running", "stop": "stopped", "start": "stopped"}


@pytest.fixture
def box(own_daemon: Daemon) -> str:
    own_daemon.start()
    sandbox = own_daemon.create(timeout_ms=3_600_000)
    own_daemon.shell(sandbox, f"echo kept > ~/file; {TICKS}")
    return sandbox


def assert_runs(sandbox: str) -> None:
    """The clock inside goes on."""
    ticks = ticks_of(sandbox)
    wait_until(lambda: ticks_of(sandbox) > ticks)


def stands_still(sandbox: str) -> bool:
    """For as long as the clock inside would tick some twenty times."""
    ticks = ticks_of(sandbox)
    time.sleep(0.5)
    return ticks_of(sandbox) == ticks


def bring_to(daemon: Daemon, sandbox: str, status: str) -> None:
    """From wherever the last crash has left it."""
    now = daemon.view(sandbox)["status"]
    if now == "paused" != status:
        now = changed(daemon, sandbox, "resume")
    if now == "running" and status == "paused":
        now = changed(daemon, sandbox, "pause")
    if now == "running" and status == "stopped":
        now = changed(daemon, sandbox, "stop", {"grace_ms": 0})
    if now == "stopped" and status in {"running", "paused"}:
        changed(daemon, sandbox, "start")
        daemon.shell(sandbox, TICKS)
        bring_to(daemon, sandbox, status)


@pytest.mark.parametrize(("verb", "before"), [("pause", "running"), ("resume", "paused")])
def test_a_crash_at_every_point_of_a_pause_and_of_a_resume(
    own_daemon: Daemon, box: str, verb: str, before: str
) -> None:
    for point in points_of(verb):
        bring_to(own_daemon, box, before)
        start_to_die_at(own_daemon, point)
        dies_of(own_daemon, "POST", f"{SANDBOXES}/{box}/{verb}")
        restart(own_daemon)
        wait_until(lambda: own_daemon.view(box)["status"] == ENDS[verb])
        if verb == "resume":
            assert_runs(box)
        else:
            assert stands_still(box), point
        assert own_daemon.events(box)[-1] == f"{verb}d", point
        assert witnesses.disagreement(own_daemon) == {}, point
    bring_to(own_daemon, box, "running")
    assert own_daemon.shell(box, "cat ~/file")["stdout"] == "kept\n"


@pytest.mark.parametrize(("verb", "before"), [("stop", "running"), ("stop", "paused"), ("start", "stopped")])
def test_a_crash_at_every_point_of_a_stop_and_of_a_start(
    own_daemon: Daemon, box: str, verb: str, before: str
) -> None:
    for point in points_of(verb, f"{verb}ped"):
        bring_to(own_daemon, box, before)
        start_to_die_at(own_daemon, point)
        dies_of(own_daemon, "POST", f"{SANDBOXES}/{box}/{verb}")
        restart(own_daemon)
        end = "running" if point == "start:confirmed" else ENDS[verb]
        wait_until(lambda end=end: own_daemon.view(box)["status"] == end)  # type: ignore[misc]
        assert witnesses.disagreement(own_daemon) == {}, point
    bring_to(own_daemon, box, "running")
    assert own_daemon.shell(box, "cat ~/file")["stdout"] == "kept\n"
    assert witnesses.disagreement(own_daemon) == {}


# Those that come after the first are met by the start-ups that finish what was begun.
EXPIRIES = {
    "pause": (["pause:recorded", "pause:frozen", "pause:confirmed"], ["expired", "paused"]),
    "stop": (["stop:asked", "stop:killed", "stopped:confirmed"], ["expired", "stopped"]),
    "kill": (["delete:asked", "delete:forgotten"], ["expired", "deleted"]),
}


@pytest.mark.parametrize("action", EXPIRIES)
def test_a_crash_at_every_point_of_an_expiry(own_root_daemon: Daemon, action: str) -> None:
    """Nobody asks for it: each daemon dies of what it does by itself, and it happens once all the same."""
    daemon, (points, events) = own_root_daemon.start(), EXPIRIES[action]
    sandbox = daemon.create(timeout_ms=3_600_000, on_timeout=action)
    daemon.shell(sandbox, f"echo kept > ~/file; {TICKS}")
    start_to_die_at(daemon, points[0])
    with contextlib.suppress(http.client.HTTPException, OSError):  # it may die before it has answered
        daemon.call("POST", f"{SANDBOXES}/{sandbox}/timeout", {"timeout_ms": 1})
    assert daemon.wait() == -signal.SIGKILL
    for point in points[1:]:
        daemon.die_at(point)
        daemon.launch()
        assert daemon.wait() == -signal.SIGKILL, point
    restart(daemon)
    wait_until(lambda: daemon.events(sandbox)[2:] == events)
    assert witnesses.disagreement(daemon) == {}
    if action != "kill":
        view = daemon.view(sandbox)
        assert (view["status"], view["end_at"]) == (events[-1], None)
        assert daemon.call("POST", f"{SANDBOXES}/{sandbox}/timeout", {"timeout_ms": None}).status == 200
        bring_to(daemon, sandbox, "running")
        assert daemon.shell(sandbox, "cat ~/file")["stdout"] == "kept\n"


def test_a_paused_sandbox_is_paused_after_a_restart_and_whoever_thawed_it_has_done_so_for_nothing(
    own_root_daemon: Daemon,
) -> None:
    daemon = own_root_daemon.start()
    sandbox = daemon.create()
    daemon.shell(sandbox, TICKS)
    changed(daemon, sandbox, "pause")
    for end in (daemon.stop, daemon.kill):
        end()
        directory = witnesses.cgroup_directory(daemon)
        if directory is not None:
            (directory / sandbox / "cgroup.freeze").write_text("0")
        restart(daemon)
        wait_until(lambda: stands_still(sandbox))
        assert daemon.view(sandbox)["status"] == "paused"
    changed(daemon, sandbox, "resume")
    assert_runs(sandbox)


def test_a_running_sandbox_that_somebody_left_frozen_runs_after_a_restart(own_root_daemon: Daemon) -> None:
    daemon = own_root_daemon.start()
    sandbox = daemon.create()
    daemon.shell(sandbox, TICKS)
    daemon.kill()
    directory = witnesses.cgroup_directory(daemon)
    if directory is None:
        pytest.skip("takes a cgroup")
    (directory / sandbox / "cgroup.freeze").write_text("1")
    restart(daemon)
    assert_runs(sandbox)


def test_a_paused_sandbox_that_ended_while_no_daemon_looked_has_exited(own_daemon: Daemon, box: str) -> None:
    changed(own_daemon, box, "pause")
    own_daemon.kill()
    os.kill(witnesses.init_of(box), signal.SIGKILL)
    restart(own_daemon)
    wait_until(lambda: own_daemon.view(box)["status"] == "exited")
    assert changed(own_daemon, box, "start") == "running"
    assert own_daemon.shell(box, "cat ~/file")["stdout"] == "kept\n"


def test_stopped_sandboxes_outlive_the_daemon_and_a_reboot_of_the_host(own_daemon: Daemon, box: str) -> None:
    changed(own_daemon, box, "stop")
    for end in (own_daemon.stop, own_daemon.kill):
        end()
        # What a reboot takes: the runtime directory.
        for path in Path(own_daemon.runtime / "sandboxes" / box).iterdir():
            path.unlink()
        os.rmdir(own_daemon.runtime / "sandboxes" / box)
        restart(own_daemon)
        assert own_daemon.view(box)["status"] == "stopped"
        assert changed(own_daemon, box, "start") == "running"
        assert own_daemon.shell(box, "cat ~/file")["stdout"] == "kept\n"
        changed(own_daemon, box, "stop")
    assert witnesses.disagreement(own_daemon) == {}
