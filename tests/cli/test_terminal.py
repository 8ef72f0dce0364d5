"""shell, run and exec in a real terminal: tmux's."""

import shlex
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.cli.support import LIMIT, PROGRAM, Ctl
from tests.support.daemon import Daemon

PROMPT = "local$"


@dataclass(frozen=True)
class Tmux:
    """A terminal of 80×24 with a shell in it, on a server of its own."""

    name: str

    def call(self, *arguments: str) -> str:
        command = ["tmux", "-L", self.name, "-f", "/dev/null", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT).stdout

    def type(self, line: str) -> None:
        self.call("send-keys", "-l", line)
        self.call("send-keys", "Enter")

    def key(self, name: str) -> None:
        self.call("send-keys", name)

    def screen(self) -> str:
        return self.call("capture-pane", "-p", "-J").rstrip()

    def wait_for(self, text: str, *, times: int = 1) -> None:
        """Until a line of the screen begins with `text`, so often."""
        deadline = time.monotonic() + LIMIT
        while sum(line.startswith(text) for line in self.screen().splitlines()) < times:
            assert time.monotonic() < deadline, f"{text!r} did not appear on the screen:\n{self.screen()}"
            time.sleep(0.02)


@pytest.fixture
def terminal(ctl: Ctl) -> Iterator[Tmux]:
    tmux = Tmux(f"sandboxctl-{uuid.uuid4().hex[:8]}")
    environment = {**ctl.env(), "PS1": PROMPT + " ", "TERM": "vt220"}
    variables = [f"{name}={value}" for name, value in environment.items() if name != "TMUX"]
    shell = shlex.join(["env", *variables, "bash", "--noprofile", "--norc"])
    tmux.call("new-session", "-d", "-x", "80", "-y", "24", shell)
    try:
        tmux.type("sandboxctl() { " + shlex.join(PROGRAM) + ' "$@"; }; clear')
        tmux.wait_for(PROMPT)
        yield tmux
    finally:
        tmux.call("kill-server")


def assert_restored(terminal: Tmux) -> None:
    """The terminal edits lines and echoes again."""
    terminal.type("stty -a | grep -qE ' icanon .* echo ' && echo restored")
    terminal.wait_for("restored")


def test_a_shell_feels_like_one(terminal: Tmux, sandbox: str) -> None:
    terminal.type(f"sandboxctl shell {sandbox}")
    terminal.wait_for("user@sandbox")
    terminal.type("stty size; echo term=$TERM; tty")
    terminal.wait_for("24 80")
    terminal.wait_for("term=vt220")
    terminal.wait_for("/dev/pts/")

    terminal.type("trap 'echo; echo resized' WINCH")
    terminal.call("resize-window", "-x", "100", "-y", "30")
    terminal.wait_for("resized")
    terminal.type("stty size")
    terminal.wait_for("30 100")

    terminal.type("echo waiting; sleep 600")
    terminal.wait_for("waiting")
    terminal.key("C-c")
    terminal.wait_for("^C")
    terminal.type("echo alive; exit 7")
    terminal.wait_for("alive")
    terminal.type("echo status=$?")
    terminal.wait_for("status=7")
    assert_restored(terminal)


def test_run_uses_the_terminal_by_itself(terminal: Tmux, root_daemon: Daemon) -> None:
    terminal.type("sandboxctl run sh -c 'test -t 0 && test -t 1 && echo both; exec cat'")
    terminal.wait_for("both")
    terminal.type("typed")
    terminal.wait_for("typed", times=2)  # the terminal's echo, and cat's
    terminal.key("C-d")
    terminal.wait_for(PROMPT)
    assert_restored(terminal)
    assert root_daemon.call("GET", "/v1/sandboxes").json["sandboxes"] == []


def test_ctrl_c_goes_to_the_command_and_the_sandbox_is_gone(terminal: Tmux, root_daemon: Daemon) -> None:
    terminal.type("sandboxctl run sh -c 'echo ready; exec sleep 600'; echo status=$?")
    terminal.wait_for("ready")
    terminal.key("C-c")
    terminal.wait_for("^Cstatus=130")
    assert_restored(terminal)
    assert root_daemon.call("GET", "/v1/sandboxes").json["sandboxes"] == []


def test_the_keyboard_is_left_to_the_rest_of_a_pipeline(terminal: Tmux) -> None:
    terminal.type("sandboxctl run sh -c 'cat; test -t 1 || echo piped' | sed s/^/got:/")
    terminal.wait_for("got:piped")


def test_the_terminal_is_restored_when_the_sandbox_is_deleted(
    terminal: Tmux, sandbox: str, root_daemon: Daemon
) -> None:
    terminal.type(f"sandboxctl shell {sandbox}; echo status=$?")
    terminal.wait_for("user@sandbox")
    root_daemon.call("DELETE", f"/v1/sandboxes/{sandbox}")
    terminal.wait_for("status=")
    assert_restored(terminal)


def test_the_terminal_is_restored_when_sandboxctl_is_ended(terminal: Tmux, sandbox: str) -> None:
    terminal.type(f"sandboxctl shell {sandbox}; echo status=$?")
    terminal.wait_for("user@sandbox")
    pid = terminal.call("display-message", "-p", "#{pane_pid}").strip()
    (child,) = subprocess.run(["pgrep", "-P", pid], check=True, capture_output=True, text=True).stdout.split()
    subprocess.run(["kill", "-HUP", child], check=True)
    terminal.wait_for("status=129")
    assert_restored(terminal)


def test_top_refreshes_until_ctrl_c(terminal: Tmux, sandbox: str, root_daemon: Daemon) -> None:
    terminal.type("sandboxctl top --delay 100ms")
    terminal.wait_for(sandbox)
    later = root_daemon.create()
    terminal.wait_for(later)
    terminal.key("C-c")
    terminal.wait_for(PROMPT)
    assert_restored(terminal)


def test_tables_fit_the_terminal(terminal: Tmux, root_daemon: Daemon) -> None:
    sandbox = root_daemon.create(metadata={"long": "x" * 100})
    terminal.type("sandboxctl ls")
    terminal.wait_for(sandbox)
