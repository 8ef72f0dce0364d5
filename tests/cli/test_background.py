"""ps, logs, kill, and -d of run and exec."""

import subprocess

from tests.cli.support import LIMIT, Ctl
from tests.support.daemon import Daemon
from tests.support.waiting import wait_until


def test_a_command_is_left_to_itself_listed_shown_and_killed(ctl: Ctl, sandbox: str) -> None:
    number = ctl.text("exec", "-d", sandbox, "sh", "-c", "echo out; echo err >&2; exec sleep 600").strip()
    assert ctl.text("ps", "-q").split() == [number]
    wait_until(lambda: ctl.run("logs", sandbox, number).stderr == b"err\n")
    assert ctl.run("logs", sandbox).stdout == b"out\n"
    (listed,) = ctl.json("ps", sandbox)
    assert (listed["sandbox"], listed["command_id"], listed["status"]) == (sandbox, number, "running")
    assert number in ctl.text("ps")
    ctl.text("kill", sandbox, number)
    assert ctl.text("ps", "-q") == ""
    (ended,) = ctl.json("ps", "-a", sandbox)
    assert (ended["status"], ended["exit_code"]) == ("killed", 137)


def test_a_signal_is_named_as_kill_does(ctl: Ctl, sandbox: str) -> None:
    number = ctl.text("exec", "-d", sandbox, "sleep", "600").strip()
    ctl.text("kill", "-s", "term", sandbox, number)
    wait_until(lambda: ctl.json("ps", "-a", sandbox)[0]["signal"] == "SIGTERM")
    late = ctl.run("kill", "-s", "SIGTERM", sandbox, number)
    assert (late.returncode, late.stdout) == (1, b"")
    assert b"it has ended" in late.stderr


def test_logs_follow_to_the_end(ctl: Ctl, sandbox: str, root_daemon: Daemon) -> None:
    wait = "until [ -e /tmp/go ]; do sleep 0.02; done"
    ctl.text("exec", "-d", sandbox, "--", "sh", "-c", rf"printf 'a\377\n'; {wait}; echo end >&2; exit 3")
    with ctl.start("logs", "-f", sandbox) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"a\xff\n"
        root_daemon.shell(sandbox, "touch /tmp/go")
        assert follower.communicate(timeout=LIMIT) == (b"", b"end\n")
        assert follower.returncode == 0
    assert ctl.run("logs", "--tail", "2", sandbox, stdin=b"").stderr == b"d\n"


def test_logs_of_much_output_come_whole_and_say_what_is_missing(ctl: Ctl, sandbox: str) -> None:
    ctl.text("exec", "-d", sandbox, "sh", "-c", "head -c 20000000 /dev/zero | tr '\\0' x")
    wait_until(lambda: ctl.json("ps", "-a", sandbox)[0]["status"] == "exited")
    done = ctl.run("logs", sandbox)
    assert len(done.stdout) > 12_000_000
    assert f"{20_000_000 - len(done.stdout)} bytes of output are not kept".encode() in done.stderr


def test_a_detached_run_leaves_its_sandbox(ctl: Ctl, root_daemon: Daemon) -> None:
    sandbox, number = ctl.text("run", "-d", "--name", "kept", "sh", "-c", "echo up; exec sleep 600").split()
    assert root_daemon.view("kept")["id"] == sandbox
    assert ctl.json("ps", "kept")[0]["command_id"] == number
    refused = ctl.run("run", "-d", "--name", "other", "/no/such/program")
    assert refused.returncode == 127
    assert [view["id"] for view in root_daemon.views()] == [sandbox]


def test_a_detached_terminal_can_be_attached_to(ctl: Ctl, sandbox: str) -> None:
    number = ctl.text("exec", "-d", "-t", sandbox, "sleep", "600").strip()
    (listed,) = ctl.json("ps", sandbox)
    assert (listed["command_id"], listed["terminal"]) == (number, {"cols": 80, "rows": 24})


def test_what_needs_a_terminal_says_so(ctl: Ctl, sandbox: str) -> None:
    for arguments in (("shell", sandbox), ("attach", sandbox)):
        done = ctl.run(*arguments, stdin=subprocess.DEVNULL)
        assert done.returncode == 125
        assert b"stdin is not a terminal" in done.stderr
    assert b"has run no background command" in ctl.run("logs", sandbox).stderr
    assert ctl.run("logs", sandbox, "c0").returncode == 1
    assert ctl.run("attach", "--detach-keys", "nonsense", sandbox).returncode == 2
