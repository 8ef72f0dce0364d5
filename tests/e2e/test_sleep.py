"""Sandboxes paused and resumed, stopped and started, through the API of a real daemon."""

import contextlib
import json
import os
import signal
import socket
import time
from datetime import datetime
from typing import Any

from tests.e2e.test_lifecycle import SANDBOXES, at_once
from tests.support import witnesses
from tests.support.daemon import Answer, Daemon
from tests.support.waiting import wait_until

# The file is there at once; the loop may not have run yet when the command that begins it has ended.
TICKS = "touch ~/ticks; (while echo tick >> ~/ticks; do sleep 0.02; done) > /dev/null 2>&1 &"


def change(daemon: Daemon, sandbox: str, verb: str, body: object = None) -> Answer:
    return daemon.call("POST", f"{SANDBOXES}/{sandbox}/{verb}", body)


def changed(daemon: Daemon, sandbox: str, verb: str, body: object = None) -> str:
    """Its status after a change that works."""
    answer = change(daemon, sandbox, verb, body)
    assert answer.status == 200, answer.data
    assert answer.json == daemon.view(sandbox)
    return str(answer.json["status"])


def refused(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json["details"]["state"]


def ticks_of(sandbox: str) -> int:
    """Size of the file that grows inside, seen from the host: nobody needs to answer."""
    return os.stat(f"/proc/{witnesses.init_of(sandbox)}/root/home/user/ticks").st_size


def ticking(daemon: Daemon) -> str:
    sandbox = daemon.create()
    daemon.shell(sandbox, TICKS)
    wait_until(lambda: ticks_of(sandbox) > 0)
    return sandbox


def stubborn(daemon: Daemon) -> str:
    """A sandbox with a process that ignores SIGTERM from its fork on: what is ignored is inherited."""
    sandbox = daemon.create()
    daemon.shell(sandbox, "mkfifo ~/end; trap '' TERM; head -n 1 ~/end > /dev/null 2>&1 &")
    return sandbox


def let_end(daemon: Daemon, sandbox: str) -> None:
    """Give the stubborn process the line that it waits for; return when the sandbox has stopped."""
    # Read and write: opening waits for no reader, and the line is kept for one that is late.
    with open(f"/proc/{witnesses.init_of(sandbox)}/root/home/user/end", "r+b", buffering=0) as fifo:
        fifo.write(b"\n")
        wait_until(lambda: daemon.view(sandbox)["status"] == "stopped")


def test_a_paused_sandbox_stands_still_and_goes_on_where_it_stood(daemon: Daemon) -> None:
    sandbox = ticking(daemon)
    assert changed(daemon, sandbox, "pause") == "paused"
    assert daemon.view(sandbox)["paused_at"] is not None
    ticks = ticks_of(sandbox)
    other = daemon.create()
    for _ in range(10):  # the clock of another sandbox, rather than ours
        daemon.shell(other, "sleep 0.05")
    assert ticks_of(sandbox) == ticks
    assert changed(daemon, sandbox, "resume") == "running"
    wait_until(lambda: ticks_of(sandbox) > ticks)
    assert daemon.view(sandbox)["paused_at"] is None
    assert daemon.events(sandbox) == ["created", "started", "paused", "resumed"]


def test_a_change_that_is_refused_for_the_state_blames_no_operation(daemon: Daemon) -> None:
    answer = change(daemon, daemon.create(), "resume")
    assert (answer.status, answer.json["details"]) == (409, {"state": "running"})


def test_what_needs_the_machine_is_refused_while_it_is_paused(daemon: Daemon) -> None:
    sandbox = daemon.create()
    changed(daemon, sandbox, "pause")
    path = f"{SANDBOXES}/{sandbox}"
    for method, rest, body in (
        ("POST", "/shell", {"cmd": "true"}),
        ("POST", "/shell/stream", {"cmd": "true"}),
        ("GET", "/files?path=/etc/hostname", None),
        ("PUT", "/files?path=/tmp/x", {}),
        ("POST", "/pause", None),
        ("POST", "/start", None),
    ):
        assert refused(daemon.call(method, path + rest, body)) == (409, "paused"), rest
    assert daemon.view(sandbox)["status"] == "paused"
    assert [view["id"] for view in daemon.views("status=paused")] == [sandbox]
    changed(daemon, sandbox, "resume")
    assert refused(change(daemon, sandbox, "resume")) == (409, "running")
    assert daemon.shell(sandbox, "echo well")["stdout"] == "well\n"


def test_a_paused_sandbox_can_be_deleted_and_stopped(daemon: Daemon) -> None:
    doomed, stopped = ticking(daemon), ticking(daemon)
    changed(daemon, doomed, "pause")
    daemon.delete(doomed)
    changed(daemon, stopped, "pause")
    assert changed(daemon, stopped, "stop") == "stopped"
    assert witnesses.disagreement(daemon) == {}
    assert changed(daemon, stopped, "start") == "running"
    assert daemon.shell(stopped, "test -s ~/ticks")["exit_code"] == 0


def test_a_stopped_sandbox_keeps_its_files_and_its_identity(daemon: Daemon) -> None:
    sandbox = daemon.create(name="kept", hostname="box", env={"KEPT": "yes"})
    identity = "cat /etc/machine-id; hostname; echo $KEPT"
    before = daemon.shell(sandbox, identity)["stdout"]
    boot = daemon.shell(sandbox, "cat /proc/sys/kernel/random/boot_id")["stdout"]
    daemon.shell(sandbox, "echo kept > ~/file; ln ~/file ~/link; mkdir ~/gone; rm -r ~/gone; setsid sleep 600 &")
    assert changed(daemon, sandbox, "stop") == "stopped"
    view = daemon.view("kept")
    assert (view["end_reason"], view["ended_at"] is None) == ("stopped", False)
    assert witnesses.disagreement(daemon) == {}
    assert refused(change(daemon, sandbox, "shell", {"cmd": "true"})) == (409, "stopped")
    assert refused(change(daemon, sandbox, "stop")) == (409, "stopped")
    assert changed(daemon, sandbox, "start") == "running"
    assert daemon.view("kept")["ended_at"] is None
    assert daemon.shell(sandbox, identity)["stdout"] == before
    assert daemon.shell(sandbox, "cat /proc/sys/kernel/random/boot_id")["stdout"] != boot
    assert daemon.shell(sandbox, "cat ~/file ~/link; ls ~/gone; pgrep sleep")["stdout"] == "kept\nkept\n"
    assert witnesses.disagreement(daemon) == {}
    assert daemon.events(sandbox) == ["created", "started", "stopped", "started"]


def test_stopping_lets_processes_end_in_good_order_unless_it_is_to_be_at_once(daemon: Daemon) -> None:
    sandbox = daemon.create()
    trap = "trap 'echo bye > ~/bye; exit' TERM; echo up > ~/up; while :; do sleep 0.05; done"
    for grace, said in ((60_000, "bye\n"), (0, "")):
        daemon.shell(
            sandbox, f'rm -f ~/up ~/bye; setsid sh -c "{trap}" > /dev/null 2>&1 & until test -s ~/up; do :; done'
        )
        changed(daemon, sandbox, "stop", {"grace_ms": grace})
        changed(daemon, sandbox, "start")
        assert daemon.shell(sandbox, "cat ~/bye")["stdout"] == said


def test_an_interactive_shell_ends_with_its_terminal_though_it_ignores_sigterm(daemon: Daemon) -> None:
    sandbox = daemon.create()
    pty = daemon.call("POST", f"{SANDBOXES}/{sandbox}/pty", {"cmd": "bash --norc -i"}).json["pty_id"]
    output = f"{SANDBOXES}/{sandbox}/pty/{pty}/output"
    wait_until(lambda: daemon.call("POST", output).json["data_b64"] != "")  # its prompt: it is set up
    # The call, which waits for a minute, does not meet the grace.
    assert changed(daemon, sandbox, "stop", {"grace_ms": 600_000}) == "stopped"


def test_what_ignores_the_request_to_end_is_killed_after_the_grace(daemon: Daemon) -> None:
    sandbox = stubborn(daemon)
    assert changed(daemon, sandbox, "stop", {"grace_ms": 50}) == "stopped"
    assert witnesses.disagreement(daemon) == {}


def test_a_sandbox_whose_init_ended_can_be_started_again(daemon: Daemon) -> None:
    sandbox = daemon.create()
    daemon.shell(sandbox, "echo kept > ~/file")
    for state in ("running", "paused"):
        if state == "paused":
            changed(daemon, sandbox, "pause")
        os.kill(witnesses.init_of(sandbox), signal.SIGKILL)
        wait_until(lambda: daemon.view(sandbox)["status"] == "exited")
        assert changed(daemon, sandbox, "start") == "running"
        assert daemon.shell(sandbox, "cat ~/file")["stdout"] == "kept\n"
    assert witnesses.disagreement(daemon) == {}


def test_of_many_changes_at_once_one_at_a_time_is_done_and_the_rest_refused(daemon: Daemon) -> None:
    sandbox = daemon.create()
    for verb, state in (("pause", "paused"), ("resume", "running"), ("stop", "stopped"), ("start", "running")):
        answers = at_once(*[lambda verb=verb: change(daemon, sandbox, verb)] * 6)
        assert sorted(answer.status for answer in answers) == [200] + [409] * 5, verb
        assert daemon.view(sandbox)["status"] == state


def test_a_deletion_cuts_a_slow_stop_short(daemon: Daemon) -> None:
    sandbox = stubborn(daemon)

    def delete() -> Answer:
        wait_until(lambda: daemon.view(sandbox)["status"] == "stopping")
        return daemon.call("DELETE", f"{SANDBOXES}/{sandbox}")

    stop, deletion = at_once(lambda: change(daemon, sandbox, "stop", {"grace_ms": 600_000}), delete)
    assert refused(stop) == (409, "deleting")
    assert deletion.status == 200


def test_a_client_that_leaves_does_not_undo_what_it_asked_for(daemon: Daemon) -> None:
    sandbox = stubborn(daemon)
    with contextlib.closing(daemon.connect()) as connection:
        connection.request("POST", f"{SANDBOXES}/{sandbox}/stop", b'{"grace_ms": 600000}')
        wait_until(lambda: daemon.view(sandbox)["status"] == "stopping")
        # To leave by halves tells when the daemon has seen it: then it closes the other half.
        connection.sock.shutdown(socket.SHUT_WR)
        assert connection.sock.recv(1) == b""
    assert daemon.view(sandbox)["status"] == "stopping"
    let_end(daemon, sandbox)


def test_a_command_whose_client_left_during_the_pause_is_ended_by_the_resume(daemon: Daemon) -> None:
    sandbox = daemon.create()
    with contextlib.closing(daemon.connect()) as connection:
        connection.request("POST", f"{SANDBOXES}/{sandbox}/shell", b'{"cmd": "sleep 601"}')
        wait_until(lambda: daemon.shell(sandbox, "pgrep -x sleep")["exit_code"] == 0)
        changed(daemon, sandbox, "pause")
    changed(daemon, sandbox, "resume")
    wait_until(lambda: daemon.shell(sandbox, "pgrep -x sleep")["exit_code"] == 1)


def test_a_job_stopped_by_its_shell_is_left_so(daemon: Daemon) -> None:
    sandbox = daemon.create()
    stop = "until pkill -STOP -x sleep; do :; done; until ps -o stat= -C sleep | grep -q T; do :; done"
    daemon.shell(sandbox, f"setsid sleep 602 > /dev/null 2>&1 & {stop}")
    changed(daemon, sandbox, "pause")
    changed(daemon, sandbox, "resume")
    assert daemon.shell(sandbox, "ps -o stat= -C sleep")["stdout"].startswith("T")


def test_commands_in_the_background_stand_still_go_on_and_end_with_their_machine(daemon: Daemon) -> None:
    sandbox = daemon.create()
    trap = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.02; done"
    command = change(daemon, sandbox, "commands", {"cmd": trap}).json["command_id"]
    path = f"{SANDBOXES}/{sandbox}/commands/{command}"
    wait_until(lambda: "up" in daemon.call("POST", f"{path}/logs").json["stdout"])
    changed(daemon, sandbox, "pause")
    assert daemon.call("GET", path).json["status"] == "running"
    assert refused(daemon.call("POST", f"{path}/kill")) == (409, "paused")
    changed(daemon, sandbox, "resume")
    changed(daemon, sandbox, "stop", {"grace_ms": 60_000})
    wait_until(lambda: daemon.call("GET", path).json["status"] == "exited")
    logs = daemon.call("POST", f"{path}/logs").json
    assert (logs["stdout"], logs["exit_code"]) == ("up\nbye\n", 3)
    changed(daemon, sandbox, "start")
    assert daemon.call("POST", f"{path}/logs").json["stdout"] == "up\nbye\n"


def test_whatever_its_processes_are_called_it_can_be_paused_kept_and_cloned(daemon: Daemon) -> None:
    """A name is any bytes; without a cgroup it stands before what is read of each process (proc_pid_stat(5))."""
    sandbox = daemon.create()
    named = r"printf '\377) T (' > /proc/self/comm; exec 3<> <(:); read -r _ <&3"
    daemon.shell(sandbox, f'bash -c "{named}" > /dev/null 2>&1 &')
    wait_until(lambda: "�) T (" in daemon.shell(sandbox, "cat /proc/[0-9]*/comm")["stdout"])
    assert daemon.call("GET", f"{SANDBOXES}/{sandbox}/metrics").status == 200
    assert changed(daemon, sandbox, "pause") == "paused"
    assert changed(daemon, sandbox, "resume") == "running"
    taken = daemon.call("POST", f"{SANDBOXES}/{sandbox}/snapshot", {})
    assert taken.status == 201
    assert daemon.call("DELETE", f"/v1/snapshots/{taken.json['id']}").status == 200
    assert daemon.call("POST", f"{SANDBOXES}/{sandbox}/clone", {}).status == 201


LIMIT_MS = 6000
PAUSE = 6.5


def lasted(command: Any) -> float:
    """Seconds."""
    began, ended = (datetime.fromisoformat(command[name]) for name in ("created_at", "ended_at"))
    return (ended - began).total_seconds()


def test_a_time_limit_stands_still_with_its_sandbox(daemon: Daemon) -> None:
    """Of a command that a client waits for, and of one in the background: each ends later by what the pause took."""
    sandbox = daemon.create()
    command = change(daemon, sandbox, "commands", {"cmd": "sleep 603", "timeout_ms": LIMIT_MS}).json["command_id"]
    with contextlib.closing(daemon.connect()) as connection:
        body = json.dumps({"cmd": "sleep 604", "timeout_ms": LIMIT_MS}).encode()
        connection.request("POST", f"{SANDBOXES}/{sandbox}/shell", body)
        wait_until(lambda: daemon.shell(sandbox, "pgrep -c -x sleep")["stdout"] == "2\n")
        changed(daemon, sandbox, "pause")
        time.sleep(PAUSE)
        changed(daemon, sandbox, "resume")
        result = json.loads(connection.getresponse().read())
    view = change(daemon, sandbox, f"commands/{command}/wait", {"timeout_ms": 60_000}).json
    assert (result["timed_out"], view["timed_out"]) == (True, True)
    for seconds in (result["duration_ms"] / 1000, lasted(view)):
        assert seconds >= LIMIT_MS / 1000 + PAUSE - 0.1


def test_a_time_limit_stands_still_though_another_daemon_ends_the_pause(own_daemon: Daemon) -> None:
    daemon = own_daemon
    daemon.start()
    sandbox = daemon.create()
    command = change(daemon, sandbox, "commands", {"cmd": "sleep 605", "timeout_ms": LIMIT_MS}).json["command_id"]
    changed(daemon, sandbox, "pause")
    daemon.kill()
    time.sleep(PAUSE)
    daemon.start()
    changed(daemon, sandbox, "resume")
    view = change(daemon, sandbox, f"commands/{command}/wait", {"timeout_ms": 60_000}).json
    assert view["timed_out"] is True
    assert lasted(view) >= LIMIT_MS / 1000 + PAUSE - 0.1
