"""Background commands under daemons that die: they are found again, with all they wrote, and their ends are known."""

import contextlib
import http.client
import os
import signal
import sqlite3
from pathlib import Path

import pytest

from sandboxd.crashpoints import POINTS
from tests.support import witnesses
from tests.support.background import Background
from tests.support.daemon import Daemon
from tests.support.sse import stream
from tests.support.waiting import wait_until

MIB = 1024 * 1024
START_POINTS = ("command:recorded", "command:spawned", "command:confirmed")
END_POINTS = ("command:logged", "command:ended", "command:released")


@pytest.fixture
def background(own_daemon: Daemon) -> Background:
    own_daemon.start()
    return Background(own_daemon, own_daemon.create())


def restart(daemon: Daemon, *, point: str | None = None) -> None:
    """Start another daemon, which dies at that point."""
    daemon.die_at(point)
    daemon.start()


def settled(background: Background) -> list[dict[str, object]]:
    """The commands, once the daemon has looked after all of them."""
    wait_until(lambda: all(view["status"] != "starting" for view in background.views()))
    return background.views()


def test_every_point_is_tried() -> None:
    assert {point for point in POINTS if point.startswith("command:")} == {*START_POINTS, *END_POINTS}


@pytest.mark.parametrize("point", START_POINTS)
def test_a_crash_while_a_command_is_started(background: Background, point: str) -> None:
    """Started and nobody was told, or not started: the list says what is true, and the log has every byte."""
    daemon = background.daemon
    daemon.die_at(point)
    with contextlib.suppress(http.client.HTTPException, OSError):  # at the last point it has been answered
        background.start("echo begun; read line; echo got $line; exit 3", stdin=True)
    assert daemon.wait() == -signal.SIGKILL
    restart(daemon)
    views = settled(background)
    if point == "command:recorded":
        assert views == []
        return
    assert [view["status"] for view in views] == ["running"]
    command = str(views[0]["command_id"])
    wait_until(lambda: background.stdout(command) == "begun\n")
    background.post(command, "stdin", {"data": "it\n"})
    assert background.ended(command)["exit_code"] == 3
    assert background.stdout(command) == "begun\ngot it\n"


@pytest.mark.parametrize("point", END_POINTS)
def test_a_crash_while_a_command_ends(background: Background, point: str) -> None:
    daemon = background.daemon
    command = background.start("read line; printf out; printf err >&2; exit 7", stdin=True)
    daemon.kill()
    restart(daemon, point=point)
    background.answer_and_die(command, "stdin", {"data": "\n"})
    restart(daemon)
    assert background.ended(command)["exit_code"] == 7
    logs = background.logs(command)
    assert (logs["stdout"], logs["stderr"], logs["lost_bytes"]) == ("out", "err", 0)
    before = background.views()
    daemon.kill()
    restart(daemon)
    assert background.views() == before


def test_a_command_runs_on_while_no_daemon_is_there(background: Background) -> None:
    daemon = background.daemon
    command = background.start(
        "echo before; read line; for i in $(seq 1000); do echo line $i; done; sleep 600", stdin=True
    )
    wait_until(lambda: background.stdout(command) == "before\n")
    pid = background.view(command)["pid"]
    background.post(command, "stdin", {"data": "\n"})
    daemon.kill()
    restart(daemon)
    expected = "before\n" + "".join(f"line {number}\n" for number in range(1, 1001))
    wait_until(lambda: background.stdout(command) == expected)
    assert (background.view(command)["pid"], background.view(command)["status"]) == (pid, "running")
    assert background.post(command, "kill")["status"] == "killed"
    assert witnesses.disagreement(daemon) == {}


def test_what_ended_while_no_daemon_was_there_is_known_with_its_output(background: Background) -> None:
    """More of them than sandbox-init keeps whole: their ends all the same."""
    daemon = background.daemon
    daemon.shell(background.sandbox, "mkfifo /tmp/gate")
    commands = [background.start(f"read line < /tmp/gate; echo {number}; exit {number}") for number in range(80)]
    other = background.start("sleep 600")
    init = witnesses.init_of(background.sandbox)
    daemon.kill()
    # Read and write: opening waits for no reader, and no reader comes too late for its line.
    with open(f"/proc/{init}/root/tmp/gate", "r+b", buffering=0) as gate:
        gate.write(b"\n" * len(commands))
        wait_until(lambda: _children_running(init) == 1)
    restart(daemon)
    assert [background.ended(command)["exit_code"] for command in commands] == list(range(80))
    for number, command in enumerate(commands):
        logs = background.logs(command)
        assert logs["stdout"] == f"{number}\n" or background.view(command)["unlogged_bytes"] == len(f"{number}\n")
    assert sum(background.view(command)["unlogged_bytes"] == 0 for command in commands) >= 60
    assert background.view(other)["status"] == "running"


def _children_running(init: int) -> int:
    """How many commands' keepers sandbox-init has."""
    return len(Path(f"/proc/{init}/task/{init}/children").read_text().split())


def test_output_beyond_the_ring_is_counted_as_lost_and_the_rest_goes_on(background: Background) -> None:
    daemon = background.daemon
    command = background.start(
        f"echo first; read line; head -c {8 * MIB} /dev/zero | tr '\\0' x; touch /tmp/done; read line; echo last",
        stdin=True,
    )
    wait_until(lambda: background.stdout(command) == "first\n")
    root = f"/proc/{witnesses.init_of(background.sandbox)}/root"
    # Nobody is there to type: the daemon is killed when the answer is under way.
    background.post(command, "stdin", {"data": "\n"})
    daemon.kill()
    wait_until(lambda: os.path.exists(f"{root}/tmp/done"))
    restart(daemon)
    background.post(command, "stdin", {"data": "\n"})
    view = background.ended(command)
    logs = background.logs(command)
    assert logs["stdout"].startswith("first\n")
    assert logs["stdout"].endswith("xlast\n")
    assert logs["lost_bytes"] + len(logs["stdout"]) == 6 + 8 * MIB + 5
    assert view["unlogged_bytes"] == logs["lost_bytes"]


def test_a_time_limit_goes_on_over_a_restart(background: Background) -> None:
    command = background.start("sleep 600", timeout_ms=2000)
    background.daemon.kill()
    restart(background.daemon)
    view = background.ended(command)
    assert (view["status"], view["timed_out"]) == ("killed", True)


def test_a_graceful_restart_loses_nothing_either(background: Background) -> None:
    command = background.start("echo one; read line; echo two", stdin=True)
    with stream(background.daemon, "GET", f"{background.path}/{command}/logs/stream") as events:
        assert events.take(1)[0].data["text"] == "one\n"
        assert background.daemon.stop() == 0
        assert list(events) == []  # above all no exit that never was
    restart(background.daemon)
    background.post(command, "stdin", {"data": "\n"})
    background.ended(command)
    assert background.stdout(command) == "one\ntwo\n"


def test_commands_of_a_machine_that_ended_are_lost_and_their_logs_stay(background: Background) -> None:
    daemon = background.daemon
    command = background.start("echo up; sleep 600")
    ended = background.start("echo well; exit 2")
    background.ended(ended)
    wait_until(lambda: background.stdout(command) == "up\n")
    os.kill(witnesses.init_of(background.sandbox), signal.SIGKILL)
    view = background.ended(command)
    assert (view["status"], view["exit_code"]) == ("lost", None)
    assert view["ended_at"] is not None
    for _ in range(2):
        assert background.stdout(command) == "up\n"
        assert (background.view(command)["status"], background.view(ended)["exit_code"]) == ("lost", 2)
        assert background.answer(command, "signal", {"signal": "SIGTERM"}).status == 409
        assert background.answer(command, "kill").json["status"] == "lost"
        daemon.kill()
        restart(daemon)
        wait_until(lambda: daemon.view(background.sandbox)["status"] == "exited")


def test_a_machine_that_ended_while_no_daemon_was_there_leaves_its_commands_lost(background: Background) -> None:
    command = background.start("echo up; sleep 600")
    wait_until(lambda: background.stdout(command) == "up\n")
    background.daemon.kill()
    os.kill(witnesses.init_of(background.sandbox), signal.SIGKILL)
    restart(background.daemon)
    assert background.ended(command)["status"] == "lost"
    assert background.stdout(command) == "up\n"


def test_a_deleted_sandbox_takes_its_commands_along(background: Background) -> None:
    daemon = background.daemon
    background.ended(background.start("echo x"))
    background.start("sleep 600")
    daemon.delete(background.sandbox)
    assert witnesses.disagreement(daemon) == {}
    daemon.stop()
    database = sqlite3.connect(daemon.state / "state.db")
    assert database.execute("SELECT count(*) FROM commands").fetchone() == (0,)
    database.close()
    restart(daemon)


# -- and machines that are paused, stopped and started ------------------------------------------------------------


def change(background: Background, operation: str, **body: object) -> None:
    answer = background.daemon.call("POST", f"/v1/sandboxes/{background.sandbox}/{operation}", body or None)
    if answer.status == 422 and operation == "pause":
        pytest.skip("this host cannot freeze a sandbox")
    assert answer.status == 200, answer.data


@pytest.mark.parametrize("restarted", [False, True], ids=["with the same daemon", "with another daemon"])
def test_a_command_goes_on_after_a_pause(background: Background, restarted: bool) -> None:
    command = background.start("echo before; read line; echo after; exit 3", stdin=True)
    wait_until(lambda: background.stdout(command) == "before\n")
    change(background, "pause")
    if restarted:
        background.daemon.kill()
        restart(background.daemon)
    assert background.view(command)["status"] == "running"
    assert background.stdout(command) == "before\n"
    assert background.answer(command, "stdin", {"data": "\n"}).status == 409
    change(background, "resume")
    background.post(command, "stdin", {"data": "\n"})
    assert background.ended(command)["exit_code"] == 3
    assert background.stdout(command) == "before\nafter\n"


@pytest.mark.parametrize("restarted", [False, True], ids=["with the same daemon", "with another daemon"])
def test_stopping_ends_commands_and_starting_leaves_them_ended(background: Background, restarted: bool) -> None:
    command = background.start("echo up; sleep 600")
    wait_until(lambda: background.stdout(command) == "up\n")
    change(background, "stop")
    assert background.ended(command)["status"] in {"killed", "lost"}
    if restarted:
        background.daemon.kill()
        restart(background.daemon)
    change(background, "start")
    assert background.view(command)["status"] in {"killed", "lost"}
    assert background.stdout(command) == "up\n"
    assert background.answer(command, "kill").status == 200
    later = background.start("echo again; exit 5")
    assert background.ended(later)["exit_code"] == 5
    assert [view["command_id"] for view in background.views()] == [command, later]
