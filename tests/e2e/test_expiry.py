"""Lifetimes, idle times and waking on demand, through the API of a real daemon. Times are short; only ends matter."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest

from tests.e2e.test_lifecycle import SANDBOXES, at_once
from tests.e2e.test_sleep import TICKS, change, changed, refused, ticks_of
from tests.support import witnesses
from tests.support.daemon import Daemon
from tests.support.sse import stream
from tests.support.waiting import wait_until

pytestmark = pytest.mark.any_user


def wait_for(daemon: Daemon, sandbox: str, status: str) -> None:
    wait_until(lambda: daemon.view(sandbox)["status"] == status)


def expiry_of(daemon: Daemon, sandbox: str) -> list[tuple[str, str]]:
    """Why its time was over, and what then happened, each time."""
    events = daemon.call("GET", f"/v1/events?after=0&limit=1000&sandbox={sandbox}").json["events"]
    return [(each["details"]["reason"], each["details"]["action"]) for each in events if each["kind"] == "expired"]


def test_a_lifetime_may_end_in_a_pause_and_begins_anew_with_the_resume(daemon: Daemon) -> None:
    sandbox = daemon.create(timeout_ms=3_600_000, on_timeout="pause")
    daemon.shell(sandbox, "echo kept > /dev/shm/memory")
    assert change(daemon, sandbox, "timeout", {"timeout_ms": 1}).status == 200
    wait_for(daemon, sandbox, "paused")
    assert daemon.view(sandbox)["end_at"] is None
    assert change(daemon, sandbox, "timeout", {"timeout_ms": 3_600_000}).json["end_at"] is not None
    assert changed(daemon, sandbox, "resume") == "running"
    assert daemon.shell(sandbox, "cat /dev/shm/memory")["stdout"] == "kept\n"
    assert daemon.events(sandbox) == ["created", "started", "expired", "paused", "resumed"]
    assert expiry_of(daemon, sandbox) == [("lifetime", "pause")]


def test_a_lifetime_that_was_used_up_is_given_again(daemon: Daemon) -> None:
    sandbox = daemon.create(timeout_ms=500, on_timeout="stop")
    for _ in range(2):
        wait_for(daemon, sandbox, "stopped")
        assert daemon.view(sandbox)["end_at"] is None
        started = change(daemon, sandbox, "start")  # looked at later, it may have stopped again
        assert (started.status, started.json["end_at"] is None) == (200, False)
    wait_for(daemon, sandbox, "stopped")
    assert expiry_of(daemon, sandbox) == [("lifetime", "stop")] * 3


def test_a_lifetime_that_ends_while_the_sandbox_is_started_stands_in_nobodys_way(daemon: Daemon) -> None:
    """Whenever in between: the start is done, or refused since the end of its lifetime is just being recorded."""
    sandbox = daemon.create(timeout_ms=3_600_000, on_timeout="stop")
    for milliseconds in range(1, 25, 2):
        changed(daemon, sandbox, "stop")
        assert change(daemon, sandbox, "timeout", {"timeout_ms": milliseconds}).status == 200
        answer = change(daemon, sandbox, "start")
        assert answer.status in {200, 409}, answer.data
        # A start gives it as much time again, which is soon over; whatever has come of it, it can be had back.
        change(daemon, sandbox, "timeout", {"timeout_ms": 3_600_000})
        wait_until(lambda: 200 in {change(daemon, sandbox, verb).status for verb in ("start", "pause")})


def test_a_paused_sandbox_whose_lifetime_ends_is_killed_or_stopped_as_was_said(daemon: Daemon) -> None:
    doomed, stopped, paused = (
        daemon.create(timeout_ms=3_600_000, on_timeout=action) for action in ("kill", "stop", "pause")
    )
    for sandbox in (doomed, stopped, paused):
        changed(daemon, sandbox, "pause")
        change(daemon, sandbox, "timeout", {"timeout_ms": 1})
    wait_until(lambda: daemon.call("GET", f"{SANDBOXES}/{doomed}").status == 404)
    wait_for(daemon, stopped, "stopped")
    wait_until(lambda: daemon.view(paused)["end_at"] is None)
    assert daemon.view(paused)["status"] == "paused"
    assert expiry_of(daemon, doomed) == [("lifetime", "kill")]


def test_a_lifetime_can_be_extended_without_ever_being_shortened(daemon: Daemon) -> None:
    sandbox = daemon.create(timeout_ms=3_600_000)
    before = daemon.view(sandbox)["end_at"]
    assert change(daemon, sandbox, "timeout", {"timeout_ms": 1000, "only_extend": True}).json["end_at"] == before
    longer = change(daemon, sandbox, "timeout", {"timeout_ms": 7_200_000, "only_extend": True}).json["end_at"]
    assert (datetime.fromisoformat(longer) - datetime.fromisoformat(before)).total_seconds() > 3500
    view = change(daemon, sandbox, "timeout", {"timeout_ms": None, "on_timeout": "pause"}).json
    assert (view["end_at"], view["on_timeout"]) == (None, "pause")
    assert change(daemon, sandbox, "timeout", {"timeout_ms": 1000, "only_extend": True}).json["end_at"] is None
    assert change(daemon, sandbox, "timeout", {}).status == 422


def test_an_idle_sandbox_is_paused_and_one_in_use_is_not(daemon: Daemon) -> None:
    sandbox = daemon.create(on_idle="pause")
    body = {"cmd": "echo up; read never < <(sleep 600)"}
    with stream(daemon, "POST", f"{SANDBOXES}/{sandbox}/shell/stream", body) as events:
        assert [event.kind for event in events.take(2)] == ["started", "stdout"]
        assert change(daemon, sandbox, "timeout", {"idle_timeout_ms": 400}).status == 200
        time.sleep(1.0)  # not for order: it is more than the idle time
        assert daemon.view(sandbox)["status"] == "running"
    wait_for(daemon, sandbox, "paused")
    assert expiry_of(daemon, sandbox) == [("idle", "pause")]
    assert change(daemon, sandbox, "resume").status == 200
    wait_for(daemon, sandbox, "paused")


def test_touching_keeps_it_awake_and_looking_does_not(daemon: Daemon) -> None:
    # What is touched has time enough for the test itself to be held up for a while, now and then.
    touched, looked_at = (daemon.create(idle_timeout_ms=idle, on_timeout="stop") for idle in (2000, 700))
    deadline = time.monotonic() + 2.5
    while time.monotonic() < deadline:
        assert change(daemon, touched, "touch").status == 200
        daemon.view(looked_at)
        daemon.call("GET", f"{SANDBOXES}/{looked_at}/metrics")
        time.sleep(0.05)
    wait_for(daemon, looked_at, "stopped")
    assert change(daemon, touched, "timeout", {"idle_timeout_ms": None}).json["idle_timeout_ms"] is None
    assert refused(change(daemon, looked_at, "touch")) == (409, "stopped")


def test_a_sandbox_that_was_made_so_wakes_when_it_is_needed(daemon: Daemon) -> None:
    sandbox = daemon.create(auto_resume=True)
    daemon.shell(sandbox, TICKS)
    wait_until(lambda: ticks_of(sandbox) > 0)
    for verb, event in (("pause", "resumed"), ("stop", "started")):
        changed(daemon, sandbox, verb)
        assert daemon.shell(sandbox, "test -s ~/ticks && echo well")["stdout"] == "well\n"
        assert daemon.view(sandbox)["status"] == "running"
        assert daemon.events(sandbox)[-1] == event
    changed(daemon, sandbox, "stop")
    assert daemon.call("GET", f"{SANDBOXES}/{sandbox}/files?path=/etc/hostname").data == b"sandbox\n"
    changed(daemon, sandbox, "pause")
    put = daemon.call("PUT", f"{SANDBOXES}/{sandbox}/files?path=/tmp/x", data=b"y")
    assert put.status == 200
    changed(daemon, sandbox, "pause")
    with stream(daemon, "POST", f"{SANDBOXES}/{sandbox}/shell/stream", {"cmd": "true"}) as events:
        assert [event.kind for event in events] == ["started", "exit"]


def test_many_that_need_it_at_once_wake_it_once(daemon: Daemon) -> None:
    sandbox = daemon.create(auto_resume=True)
    changed(daemon, sandbox, "stop")
    answers = at_once(*[lambda: change(daemon, sandbox, "shell", {"cmd": "echo well"})] * 6)
    assert [(answer.status, answer.json["stdout"]) for answer in answers] == [(200, "well\n")] * 6
    assert daemon.events(sandbox) == ["created", "started", "stopped", "started"]


def test_pausing_and_needing_it_at_the_same_time_loses_no_request(daemon: Daemon) -> None:
    sandbox = daemon.create(auto_resume=True)

    def need(number: int) -> str:
        answer = change(daemon, sandbox, "shell", {"cmd": f"echo {number}"})
        return str(answer.json.get("stdout"))

    def pause() -> None:
        for _ in range(10):
            assert change(daemon, sandbox, "pause").status in {200, 409}
        daemon.shell(sandbox, "true")  # a command that was caught by a pause goes on when another wakes the sandbox

    with ThreadPoolExecutor(4) as pool:
        pausing = pool.submit(pause)
        said = list(pool.map(need, range(30)))
        pausing.result()
    assert said == [f"{number}\n" for number in range(30)]
    assert witnesses.disagreement(daemon) == {}


def test_idle_time_begins_anew_with_the_daemon_and_a_lifetime_goes_on(own_daemon: Daemon) -> None:
    own_daemon.start()
    sleepy = own_daemon.create(idle_timeout_ms=300, on_timeout="pause")
    wait_for(own_daemon, sleepy, "paused")
    limited = own_daemon.create(timeout_ms=3_600_000, on_timeout="stop")
    end = own_daemon.view(limited)["end_at"]
    own_daemon.kill()
    own_daemon.start()
    assert own_daemon.view(sleepy)["status"] == "paused"
    assert own_daemon.view(limited)["end_at"] == end
    assert change(own_daemon, sleepy, "resume").status == 200
    wait_for(own_daemon, sleepy, "paused")
