"""run, exec: exit statuses, exact bytes, signals, and that a throw-away sandbox is thrown away."""

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.cli.support import LIMIT, PROGRAM, Ctl
from tests.support.daemon import Daemon

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def thrown_away(root_daemon: Daemon) -> Iterator[None]:
    """Whatever a test does with `run`, no sandbox is left by the time sandboxctl has ended."""
    yield
    left = root_daemon.call("GET", "/v1/sandboxes").json["sandboxes"]
    assert [item for item in left if item["name"] != "kept"] == []


@pytest.fixture
def kept(ctl: Ctl, root_daemon: Daemon) -> str:
    return root_daemon.create(name="kept")


# -- exit statuses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 7, 255])
def test_the_commands_exit_status_is_ours(ctl: Ctl, status: int) -> None:
    assert ctl.run("run", "sh", "-c", f"exit {status}").returncode == status


def test_a_signal_is_told_as_a_shell_tells_it(ctl: Ctl) -> None:
    assert ctl.run("run", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--image", "nonesuch", "true"], 125, b"nonesuch"),
        (["--user", "nonesuch", "true"], 125, b"nonesuch"),
        (["--", "/etc/passwd"], 126, b"Permission denied"),
        (["--", "nonesuch"], 127, b"nonesuch"),
    ],
)
def test_what_cannot_be_run_has_a_status_and_a_sentence(
    ctl: Ctl, arguments: list[str], status: int, words: bytes
) -> None:
    done = ctl.run("run", *arguments)
    assert done.returncode == status
    assert done.stderr.startswith(b"sandboxctl: cannot ")
    assert words in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_a_time_limit_kills_the_command_and_has_a_status(ctl: Ctl) -> None:
    done = ctl.run("run", "--timeout", "200ms", "sleep", "600")
    assert done.returncode == 124
    assert b"time limit" in done.stderr


@pytest.mark.parametrize("arguments", [["--memory", "much", "true"], ["--nonesuch", "true"], ["--env", "=x", "true"]])
def test_wrong_use_is_status_2(ctl: Ctl, arguments: list[str]) -> None:
    assert ctl.run("run", *arguments).returncode == 2


# -- bytes --------------------------------------------------------------------------------------------------------


def test_stdin_and_stdout_are_exact(ctl: Ctl) -> None:
    data = os.urandom(20 * MIB)
    done = ctl.run("run", "cat", stdin=data)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    assert (done.returncode, done.stderr) == (0, b"")


def test_stdout_and_stderr_stay_apart(ctl: Ctl) -> None:
    done = ctl.run("run", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


def test_a_regular_file_can_be_stdin(ctl: Ctl, tmp_path) -> None:
    (tmp_path / "input").write_bytes(b"from a file")
    with open(tmp_path / "input", "rb") as file:
        assert ctl.run("run", "cat", stdin=file).stdout == b"from a file"


def test_without_stdin_the_command_sees_its_end_at_once(ctl: Ctl) -> None:
    # Nobody writes to this pipe, and nobody closes it.
    reading, writing = os.pipe()
    try:
        assert ctl.run("run", "--no-stdin", "cat", stdin=reading).returncode == 0
    finally:
        os.close(reading)
        os.close(writing)


def test_a_closed_stdin_is_an_empty_one(ctl: Ctl) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *PROGRAM, "run", "cat"], env=ctl.env(), timeout=LIMIT, check=False
    )
    assert done.returncode == 0


def test_a_command_may_leave_its_stdin_unread(ctl: Ctl) -> None:
    assert ctl.run("run", "true", stdin=bytes(8 * MIB)).returncode == 0


def test_stdin_stays_in_blocking_mode(ctl: Ctl) -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, b"x")
        ctl.run("run", "head", "-c1", stdin=reading)
        assert os.get_blocking(reading)
    finally:
        os.close(reading)
        os.close(writing)


def test_nothing_is_lost_to_a_reader_that_pauses(ctl: Ctl) -> None:
    with ctl.start("run", "sh", "-c", "head -c 16M /dev/zero; echo done >&2") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        # The command cannot be done: it has written more than all pipes and rings on the way hold.
        first = process.stdout.read(1)
        rest = process.stdout.read()
        assert len(first + rest) == 16 * MIB
        assert process.stderr.read() == b"done\n"


# -- what the sandbox is like -------------------------------------------------------------------------------------


def test_options_shape_the_sandbox(ctl: Ctl) -> None:
    ctl.environment["PASSED_ON"] = "yes"
    options = ["-e", "A=1", "-e", "PASSED_ON", "-u", "root", "-w", "/tmp", "--hostname", "box"]
    shown = ctl.text("run", *options, "sh", "-c", "echo $A $PASSED_ON $(id -un) $PWD $(hostname)")
    assert shown == "1 yes root /tmp box\n"


def test_without_a_command_there_is_a_shell(ctl: Ctl) -> None:
    assert ctl.text("run", stdin=b"shopt -q login_shell && echo login\n") == "login\n"


def test_a_terminal_can_be_asked_for(ctl: Ctl) -> None:
    assert ctl.text("run", "--terminal", "sh", "-c", "test -t 0 && stty size") == "24 80\r\n"
    assert ctl.text("run", "--no-terminal", "sh", "-c", "test -t 0 || echo none") == "none\n"


# -- ending -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_goes_to_the_command(ctl: Ctl, number: signal.Signals) -> None:
    script = f"trap 'echo bye; exit 3' {number.name[3:]}; echo ready; while :; do sleep 0.01; done"
    with ctl.start("run", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.read() == b"bye\n"
        assert process.wait(LIMIT) == 3


def test_a_second_signal_ends_it_at_once(ctl: Ctl) -> None:
    with ctl.start("run", "sh", "-c", "trap 'echo no' INT; echo ready; while :; do sleep 0.01; done") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"no\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 128 + signal.SIGINT


def test_a_signal_the_command_ignores_ends_it_after_a_while(ctl: Ctl) -> None:
    with ctl.start("run", "sh", "-c", "trap '' TERM; echo ready; exec sleep 600") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 128 + signal.SIGTERM


def test_it_ends_when_nobody_reads_its_output(ctl: Ctl) -> None:
    with ctl.start("run", "yes") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(LIMIT) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""


def test_a_sandbox_whose_sandboxctl_was_killed_ends_by_itself(ctl: Ctl, root_daemon: Daemon) -> None:
    with ctl.start("run", "sh", "-c", "echo ready; exec sleep 600") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
    (left,) = root_daemon.call("GET", "/v1/sandboxes").json["sandboxes"]
    assert left["end_at"] is not None
    root_daemon.delete_all()


def test_the_daemon_may_die_under_it(own_root_daemon: Daemon) -> None:
    own_root_daemon.start()
    with Ctl.of(own_root_daemon).start("run", "sh", "-c", "echo ready; exec sleep 600") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        own_root_daemon.kill()
        assert process.wait(LIMIT) == 125
        assert b"cannot follow the command any more" in process.stderr.read()


# -- exec ---------------------------------------------------------------------------------------------------------


def test_exec_uses_a_sandbox_that_is_there(ctl: Ctl, kept: str) -> None:
    ctl.text("exec", "kept", "--", "touch", "/tmp/mark")
    assert ctl.text("exec", kept, "ls", "/tmp/mark") == "/tmp/mark\n"
    assert ctl.run("exec", "kept", "sh", "-c", "exit 9").returncode == 9


def test_exec_reads_stdin_only_when_told(ctl: Ctl, kept: str) -> None:
    assert ctl.text("exec", "kept", "cat", stdin=b"data") == ""
    assert ctl.text("exec", "-i", "kept", "cat", stdin=b"data") == "data"


def test_exec_takes_options_of_its_own(ctl: Ctl, kept: str) -> None:
    shown = ctl.text("exec", "-e", "A=1", "-u", "root", "-w", "/", "kept", "sh", "-c", "echo $A $(id -un) $PWD")
    assert shown == "1 root /\n"


def test_exec_in_no_sandbox_fails_in_a_sentence(ctl: Ctl) -> None:
    done = ctl.run("exec", "nonesuch", "true")
    assert done.returncode == 125
    assert done.stderr.startswith(b"sandboxctl: cannot find")


def test_a_command_ends_with_its_exec(ctl: Ctl, kept: str, root_daemon: Daemon) -> None:
    with ctl.start("exec", "kept", "sh", "-c", "echo ready; exec sleep 600") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
    found = root_daemon.shell(
        kept, "for i in $(seq 3000); do pgrep sleep >/dev/null || exit 0; sleep 0.01; done; exit 1"
    )
    assert found["exit_code"] == 0


def test_a_shell_needs_a_terminal(ctl: Ctl, kept: str) -> None:
    done = ctl.run("shell", "kept")
    assert done.returncode == 125
    assert b"not a terminal" in done.stderr
