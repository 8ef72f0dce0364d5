"""A daemon that dies at the worst moments, and the next one that finds what it left.

After each restart every witness (API, processes, cgroups, files) has to agree, nobody's work may be lost that was
promised, and nothing may be left over.
"""

import contextlib
import http.client
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandboxd.service.sandboxes.slots import READY
from tests.support import census, witnesses
from tests.support.crashing import points_of
from tests.support.daemon import Daemon
from tests.support.sandbox import Box
from tests.support.sse import Event, stream
from tests.support.waiting import PATIENCE, kill_all, wait_until

SLOT_POINTS = points_of("slot")
CREATE_POINTS = points_of("create")
UNCONFIRMED = CREATE_POINTS[: CREATE_POINTS.index("create:confirmed")]
SWEEP_POINTS = points_of("sweep")
DELETE_POINTS = [point for point in points_of("delete") if point != "delete:asked"]
SANDBOXES = "/v1/sandboxes"


@pytest.fixture
def survivor(own_daemon: Daemon) -> Box:
    """A sandbox that runs through it all, with a command in the background and something written."""
    own_daemon.start()
    box = Box(own_daemon, own_daemon.create(name="survivor", metadata={"kept": "yes"}, timeout_ms=3_600_000))
    box.shell("echo written > ~/file; setsid sleep 600 > /dev/null 2>&1 &")
    return box


def assert_survived(box: Box) -> None:
    """It is the same sandbox, and still at work."""
    view = box.daemon.view("survivor")
    assert (view["id"], view["status"], view["metadata"]) == (box.id, "running", {"kept": "yes"})
    assert box.shell("cat ~/file")["stdout"] == "written\n"
    wait_until(lambda: box.processes() == ["sleep 600"])  # right after its start it is a shell yet


def start_to_die_at(daemon: Daemon, point: str) -> None:
    """A daemon, the one that runs if there is one, will kill itself on reaching that point."""
    daemon.die_at(point)
    if not daemon.alive:
        daemon.start()


def dies_of(daemon: Daemon, method: str, path: str, body: object = None) -> None:
    """Make the request that the daemon does not survive."""
    with pytest.raises((http.client.HTTPException, OSError)):
        daemon.call(method, path, body)
    assert daemon.wait() == -signal.SIGKILL


def restart(daemon: Daemon) -> None:
    daemon.die_at(None)
    daemon.start()


def test_a_crash_at_every_point_of_making_a_slot(survivor: Box) -> None:
    """Nobody asks for it: each daemon dies of what it does by itself, and leaves a slot made in part."""
    daemon = survivor.daemon
    assert daemon.stop() == 0
    for point in SLOT_POINTS:
        daemon.die_at(point)
        daemon.launch()
        assert daemon.wait() == -signal.SIGKILL, point
    restart(daemon)
    assert witnesses.disagreement(daemon) == {}
    assert_survived(survivor)


def test_slots_do_not_outlive_their_daemon(survivor: Box) -> None:
    """Not even where no daemon comes to sweep them; and a graceful one takes all of them along."""
    daemon = survivor.daemon
    wait_until(lambda: len(witnesses.slots(daemon)) == READY)
    daemon.kill()
    wait_until(lambda: witnesses.ask(daemon)["monitors"] == {survivor.id})
    restart(daemon)
    wait_until(lambda: len(witnesses.slots(daemon)) == READY)
    assert daemon.stop() == 0
    wait_until(lambda: witnesses.ask(daemon)["monitors"] == {survivor.id})
    seen = witnesses.ask(daemon)
    assert seen["monitors"] == seen["files"] == seen["runtime"] == {survivor.id}
    assert seen["cgroups"] <= {survivor.id}
    restart(daemon)
    assert_survived(survivor)


def test_a_slot_that_was_killed_is_not_given_to_anybody(survivor: Box) -> None:
    daemon = survivor.daemon
    wait_until(lambda: len(witnesses.slots(daemon)) == READY)
    doomed = witnesses.slots(daemon)
    kill_all(each.pid for each in census.processes() if each.sandbox in doomed)
    made = [daemon.create() for _ in range(READY)]
    assert doomed.isdisjoint(made)
    assert daemon.shell(made[0], "echo well")["stdout"] == "well\n"
    assert witnesses.disagreement(daemon) == {}


def test_a_crash_at_every_point_of_a_creation(survivor: Box) -> None:
    """Each daemon finds what the one before it left half made, and then dies a step further on."""
    daemon = survivor.daemon
    for point in UNCONFIRMED:
        start_to_die_at(daemon, point)
        wait_until(lambda: [view["id"] for view in daemon.views()] == [survivor.id])
        assert witnesses.disagreement(daemon) == {}, point
        dies_of(daemon, "POST", SANDBOXES, {"name": "half-made"})
    restart(daemon)
    assert witnesses.disagreement(daemon) == {}
    assert_survived(survivor)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """It stands still during the block, if it lives so long."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_a_sandbox_that_is_being_created_has_no_record_that_anybody_could_change(survivor: Box) -> None:
    """It can be found by its name; a record in that state is one that no start-up would know what to do with."""
    daemon = survivor.daemon
    fork_server = witnesses.fork_server_of(daemon)
    with ThreadPoolExecutor(1) as pool, stopped(fork_server):  # so that a creation takes as long as we like
        creation = pool.submit(dies_of, daemon, "POST", SANDBOXES, {"name": "slow"})
        wait_until(lambda: daemon.call("GET", f"{SANDBOXES}/slow").status == 200)
        assert daemon.view("slow")["status"] == "creating"
        for change in ({"timeout_ms": 60_000}, {"idle_timeout_ms": 60_000}):
            answer = daemon.call("POST", f"{SANDBOXES}/slow/timeout", change)
            assert (answer.status, answer.json["details"]) == (409, {"state": "creating"})
        daemon.signal(signal.SIGKILL)
        creation.result()
    wait_until(lambda: not os.path.exists(f"/proc/{fork_server}"))
    restart(daemon)
    assert [view["id"] for view in daemon.views()] == [survivor.id]
    assert witnesses.disagreement(daemon) == {}
    assert_survived(survivor)


@pytest.mark.parametrize("point", [point for point in CREATE_POINTS if point not in UNCONFIRMED])
def test_a_crash_when_a_creation_is_complete_but_nobody_was_told(survivor: Box, point: str) -> None:
    """The client can find it by its name."""
    daemon = survivor.daemon
    start_to_die_at(daemon, point)
    dies_of(daemon, "POST", SANDBOXES, {"name": "complete"})
    restart(daemon)
    assert daemon.shell("complete", "echo well")["stdout"] == "well\n"
    assert witnesses.disagreement(daemon) == {}
    assert_survived(survivor)


def test_a_crash_before_a_deletion_is_recorded_leaves_the_sandbox_as_it_was(survivor: Box) -> None:
    """Not dead under a record that says otherwise: nothing is killed before the record is gone."""
    start_to_die_at(survivor.daemon, "delete:asked")
    dies_of(survivor.daemon, "DELETE", f"{SANDBOXES}/{survivor.id}")
    restart(survivor.daemon)
    assert_survived(survivor)
    assert witnesses.disagreement(survivor.daemon) == {}


def test_a_crash_at_every_point_of_a_deletion(survivor: Box) -> None:
    """What was asked for is done, though nobody asks again."""
    daemon = survivor.daemon
    for point in DELETE_POINTS:
        doomed = daemon.create(name="doomed")
        daemon.shell(doomed, "mkdir -p /tmp/a/b; echo x > /tmp/a/b/c; setsid sleep 600 > /dev/null 2>&1 &")
        start_to_die_at(daemon, point)
        with contextlib.suppress(http.client.HTTPException, OSError):  # the last of it comes after the answer
            daemon.call("DELETE", f"{SANDBOXES}/{doomed}")
        assert daemon.wait() == -signal.SIGKILL, point
        restart(daemon)
        assert_deleted(daemon, doomed)
    assert_survived(survivor)


def assert_deleted(daemon: Daemon, sandbox: str) -> None:
    wait_until(lambda: daemon.call("GET", f"{SANDBOXES}/{sandbox}").status == 404)
    assert daemon.events(sandbox) == ["created", "started", "deleted"]
    assert witnesses.disagreement(daemon) == {}


def test_a_crash_while_creating_many_and_deleting_many(survivor: Box) -> None:
    """No point chosen: wherever the daemon is with sixteen of them, each ends whole or gone."""
    daemon = survivor.daemon
    old = [daemon.create() for _ in range(6)]

    def try_to(method: str, path: str) -> None:
        with contextlib.suppress(http.client.HTTPException, OSError):
            daemon.call(method, path)

    with ThreadPoolExecutor(16) as pool:
        for _ in range(10):
            pool.submit(try_to, "POST", SANDBOXES)
        for sandbox in old:
            pool.submit(try_to, "DELETE", f"{SANDBOXES}/{sandbox}")
        wait_until(lambda: len(witnesses.ask(daemon)["inits"]) != 7)  # neither all nor nothing has happened
        daemon.kill()
    restart(daemon)
    wait_until(lambda: {view["status"] for view in daemon.views()} == {"running"})
    assert witnesses.disagreement(daemon) == {}
    for view in daemon.views():
        assert daemon.shell(view["id"], "echo well")["stdout"] == "well\n"
    assert_survived(survivor)


def test_a_crash_while_the_crash_before_is_cleaned_up(survivor: Box) -> None:
    daemon = survivor.daemon
    for point in SWEEP_POINTS:  # each with a sandbox of its own: what was swept before the crash is no stray any more
        deleted = daemon.create()
        start_to_die_at(daemon, "delete:forgotten")
        dies_of(daemon, "DELETE", f"{SANDBOXES}/{deleted}")
        daemon.die_at(point)
        daemon.launch()
        assert daemon.wait() == -signal.SIGKILL, point
        restart(daemon)
        assert_deleted(daemon, deleted)
    assert_survived(survivor)


def test_sigkill_while_commands_run(survivor: Box) -> None:
    """What runs in the background goes on; a client in the middle of a command learns that it is cut off."""
    daemon = survivor.daemon
    survivor.shell("touch ~/ticks; (while echo tick; do sleep 0.05; done) > ~/ticks 2>&1 &")
    with stream(daemon, "POST", f"{SANDBOXES}/{survivor.id}/shell/stream", {"cmd": "echo up; sleep 600"}) as events:
        assert [event.kind for event in events.take(2)] == ["started", "stdout"]
        daemon.kill()
        rest: list[Event] = []
        with contextlib.suppress(http.client.HTTPException, OSError):
            rest = list(events)
        assert rest == []  # above all no exit that never was
    ticks = _ticks(survivor)
    wait_until(lambda: _ticks(survivor) > ticks)  # the clock inside does not need a daemon
    restart(daemon)
    assert survivor.shell("tail -c 5 ~/ticks")["stdout"] == "tick\n"
    assert daemon.view("survivor")["status"] == "running"
    assert witnesses.disagreement(daemon) == {}


def _ticks(box: Box) -> int:
    """Size of the file that grows inside, seen from the host while no daemon is there to ask."""
    return os.stat(f"/proc/{witnesses.init_of(box.id)}/root/home/user/ticks").st_size


def test_a_graceful_restart_keeps_everything(survivor: Box) -> None:
    daemon = survivor.daemon
    before = daemon.view("survivor")
    init = witnesses.init_of(survivor.id)
    assert daemon.stop() == 0
    assert witnesses.init_of(survivor.id) == init
    restart(daemon)
    assert daemon.view("survivor") == before
    assert_survived(survivor)
    assert witnesses.disagreement(daemon) == {}


def test_twenty_live_sandboxes_are_all_attached_again(survivor: Box) -> None:
    daemon = survivor.daemon
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: daemon.create(), range(19)))
    daemon.kill()
    began = time.monotonic()
    restart(daemon)
    assert time.monotonic() - began < PATIENCE
    assert {view["id"] for view in daemon.views("status=running&limit=100")} == {survivor.id, *made}
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda each: daemon.shell(each, "echo well")["stdout"], made)) == {"well\n"}
    assert witnesses.disagreement(daemon) == {}
    assert_survived(survivor)


def test_what_ended_while_no_daemon_looked_is_found_to_have_ended(survivor: Box) -> None:
    daemon = survivor.daemon
    daemon.kill()
    os.kill(witnesses.init_of(survivor.id), signal.SIGKILL)
    restart(daemon)
    wait_until(lambda: daemon.view("survivor")["status"] == "exited")
    assert daemon.events(survivor.id) == ["created", "started", "exited"]
    assert witnesses.disagreement(daemon) == {}


def test_a_lifetime_that_ran_out_while_no_daemon_looked_ends_the_sandbox(own_daemon: Daemon) -> None:
    own_daemon.start()
    sandbox = own_daemon.create(timeout_ms=1500)
    own_daemon.kill()
    time.sleep(1.5)  # not for order: it is the lifetime
    own_daemon.start()
    wait_until(lambda: own_daemon.call("GET", f"{SANDBOXES}/{sandbox}").status == 404)
    assert own_daemon.events(sandbox) == ["created", "started", "expired", "deleted"]
    assert witnesses.disagreement(own_daemon) == {}


def test_a_pid_that_means_another_process_by_now_is_left_alone(survivor: Box) -> None:
    daemon = survivor.daemon
    daemon.kill()
    init = witnesses.init_of(survivor.id)
    os.kill(init, signal.SIGKILL)
    with subprocess.Popen(["sleep", "600"]) as bystander:
        with contextlib.closing(sqlite3.connect(daemon.state / "state.db")) as database, database:
            database.execute("UPDATE sandboxes SET body = json_set(body, '$.machine.pid', ?)", (bystander.pid,))
        restart(daemon)
        wait_until(lambda: daemon.view("survivor")["status"] == "exited")
        assert bystander.poll() is None
        bystander.kill()
    assert witnesses.disagreement(daemon) == {}


# -- helpers of the daemon die ------------------------------------------------------------------------------------


def test_sigkill_of_the_fork_server_costs_no_sandbox_and_it_is_made_anew(survivor: Box) -> None:
    daemon = survivor.daemon
    os.kill(witnesses.fork_server_of(daemon), signal.SIGKILL)
    # At most the one creation that finds it dead fails, and says what to do.
    answer = daemon.call("POST", SANDBOXES)
    if answer.status != 201:
        assert (answer.status, answer.json["kind"]) == (503, "fork_server_lost")
    assert daemon.shell(daemon.create(), "echo well")["stdout"] == "well\n"
    assert_survived(survivor)
    assert witnesses.disagreement(daemon) == {}


def test_sigkill_of_the_monitor_leaves_the_sandbox_and_its_deletion_whole(survivor: Box) -> None:
    daemon = survivor.daemon
    os.kill(witnesses.monitor_of(survivor.id), signal.SIGKILL)
    assert_survived(survivor)
    assert daemon.stop() == 0
    restart(daemon)
    assert_survived(survivor)
    daemon.delete(survivor.id)
    assert witnesses.disagreement(daemon) == {}
