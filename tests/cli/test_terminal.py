"""shell, run and exec in a real terminal: tmux's."""

import shlex
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

        def shown(screen: str) -> bool:
            return sum(line.startswith(text) for line in screen.splitlines()) >= times

        self._wait_until(shown, text)

    def wait_for_prompt(self) -> None:
        """Until the local shell asks for the next line: what is typed earlier, `sandboxctl` may take."""
        self._wait_until(lambda screen: screen.splitlines()[-1:] == [PROMPT], "the prompt")

    def clear(self) -> None:
        """Have nothing but a prompt on the screen, so that no text of before is waited for."""
        self.type("clear")
        self._wait_until(lambda screen: screen == PROMPT, "only the prompt")

    def _wait_until(self, shown: Callable[[str], bool], what: str) -> None:
        deadline = time.monotonic() + LIMIT
        while not shown(screen := self.screen()):
            assert time.monotonic() < deadline, f"{what!r} did not appear on the screen:\n{screen}"
            time.sleep(0.02)


@pytest.fixture
def terminal(ctl: Ctl) -> Iterator[Tmux]:
    with open_terminal(ctl) as tmux:
        yield tmux


@contextmanager
def open_terminal(ctl: Ctl) -> Iterator[Tmux]:
    tmux = Tmux(f"sandboxctl-{uuid.uuid4().hex[:8]}")
    environment = {**ctl.env(), "PS1": PROMPT + " ", "TERM": "vt220"}
    variables = [f"{name}={value}" for name, value in environment.items() if name != "TMUX"]
    shell = shlex.join(["env", *variables, "bash", "--noprofile", "--norc"])
    tmux.call("new-session", "-d", "-x", "80", "-y", "24", shell)
    try:
        tmux.type("sandboxctl() { " + shlex.join(PROGRAM) + ' "$@"; }; clear')
        tmux.wait_for_prompt()
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

    terminal.type("trap 'echo; echo resized' WINCH; echo set")
    terminal.wait_for("set")
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
    terminal.wait_for_prompt()
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


def pty_of(daemon: Daemon, sandbox: str) -> str:
    (view,) = daemon.call("GET", f"/v1/sandboxes/{sandbox}/pty").json["ptys"]
    return str(view["pty_id"])


def test_a_shell_is_left_and_come_back_to(terminal: Tmux, sandbox: str, root_daemon: Daemon) -> None:
    terminal.type(f"sandboxctl shell {sandbox}; echo status=$?")
    terminal.wait_for("user@sandbox")
    terminal.type("word=kept; echo here")
    terminal.wait_for("here")
    terminal.key("C-p")
    terminal.key("C-q")
    terminal.wait_for("sandboxctl: detached; come back with")
    terminal.wait_for("status=0")
    assert_restored(terminal)
    terminal.clear()
    terminal.type(f"sandboxctl attach {sandbox}; echo status=$?")
    terminal.wait_for("user@sandbox")
    terminal.type("stty size; echo again $word; exit 5")
    terminal.wait_for("24 80")
    terminal.wait_for("again kept")
    terminal.wait_for("status=5")
    assert_restored(terminal)
    terminal.type(f"clear; sandboxctl attach {sandbox}; echo status=$?")
    terminal.wait_for("sandboxctl: cannot attach: no terminal is alive")
    terminal.wait_for("status=125")


def test_what_a_program_asked_its_terminal_is_not_answered_again(terminal: Tmux, sandbox: str) -> None:
    """tmux answers such a question by typing, as every terminal does."""
    terminal.type(f"sandboxctl shell {sandbox}")
    terminal.wait_for("user@sandbox")
    terminal.type(r"printf '\033[c'; read -rs -d c answer; echo asked")
    terminal.wait_for("asked")
    terminal.key("C-p")
    terminal.key("C-q")
    terminal.wait_for("sandboxctl: detached")
    terminal.clear()
    terminal.type(f"sandboxctl attach {sandbox}")
    terminal.wait_for("asked")
    terminal.type("echo 'typed'; exit")  # after what would have been typed before it
    terminal.wait_for("typed")
    terminal.wait_for_prompt()
    assert "?1;2c" not in terminal.screen()


def test_a_shell_survives_its_terminal_and_its_program(terminal: Tmux, sandbox: str, root_daemon: Daemon) -> None:
    terminal.type(f"sandboxctl shell {sandbox}; echo status=$?")
    terminal.wait_for("user@sandbox")
    terminal.type("word=kept; echo here")
    terminal.wait_for("here")
    pid = terminal.call("display-message", "-p", "#{pane_pid}").strip()
    (child,) = subprocess.run(["pgrep", "-P", pid], check=True, capture_output=True, text=True).stdout.split()
    subprocess.run(["kill", "-KILL", child], check=True)
    terminal.wait_for("status=137")
    terminal.type("reset")
    terminal.clear()
    terminal.type(f"sandboxctl attach {sandbox} {pty_of(root_daemon, sandbox)}")
    terminal.wait_for("user@sandbox")
    terminal.type("echo again $word")
    terminal.wait_for("again kept")
    terminal.type("exit")
    terminal.wait_for_prompt()


def test_a_full_screen_program_is_drawn_again(terminal: Tmux, sandbox: str) -> None:
    """less, which draws its screen once, and again when the size changes."""
    terminal.type(f"sandboxctl shell {sandbox}")
    terminal.wait_for("user@sandbox")
    terminal.type("seq 500 | less -X")
    terminal.wait_for(":")
    terminal.type("G")
    terminal.wait_for("500")
    terminal.key("C-p")
    terminal.key("C-q")
    terminal.wait_for("sandboxctl: detached")
    terminal.clear()
    terminal.type(f"sandboxctl attach {sandbox}")
    # It is drawn again by two changes of its size, and a slow less may stay with the first, which is a line shorter.
    terminal.wait_for("490")
    terminal.type("g")
    terminal.wait_for("1")
    terminal.call("resize-window", "-x", "100", "-y", "40")
    terminal.wait_for("39")
    terminal.key("q")
    terminal.wait_for("user@sandbox")
    terminal.type("exit")
    terminal.wait_for_prompt()
    assert_restored(terminal)


def test_utf_8_and_a_paste_arrive_as_they_are(terminal: Tmux, sandbox: str) -> None:
    terminal.type(f"sandboxctl shell {sandbox}")
    terminal.wait_for("user@sandbox")
    terminal.type("echo 'Grüße €'")
    terminal.wait_for("Grüße €")
    terminal.wait_for("user@sandbox", times=2)
    # bash asks for bracketed paste with its prompt: three lines come as one piece, and nothing runs before enter.
    terminal.call("set-buffer", "echo one\necho two\necho 'thrée'")
    terminal.call("paste-buffer", "-p", "-r")
    terminal.wait_for("echo two")
    assert not any(line == "one" for line in terminal.screen().splitlines())
    terminal.key("Enter")
    terminal.wait_for("thrée")
    terminal.type("exit")
    terminal.wait_for_prompt()
    assert_restored(terminal)


def test_another_client_takes_over(terminal: Tmux, sandbox: str, ctl: Ctl) -> None:
    terminal.type(f"sandboxctl shell {sandbox}; echo status=$?")
    terminal.wait_for("user@sandbox")
    with open_terminal(ctl) as other:
        other.type(f"sandboxctl attach --read-only {sandbox}")
        other.wait_for("user@sandbox")
        terminal.type("echo watched")
        other.wait_for("watched")
        other.key("C-p")
        other.key("C-q")
        other.wait_for("sandboxctl: detached")
        other.type(f"clear; sandboxctl attach {sandbox}")
        terminal.wait_for("sandboxctl: another client has taken over")
        terminal.wait_for("status=0")
        assert_restored(terminal)
        other.wait_for("user@sandbox")
        other.type("exit")
        other.wait_for_prompt()


def test_a_restart_of_the_daemon_is_hardly_noticed(own_root_daemon: Daemon) -> None:
    daemon = own_root_daemon.start()
    sandbox = daemon.create()
    with open_terminal(Ctl.of(daemon)) as terminal:
        terminal.type(f"sandboxctl shell {sandbox}; echo status=$?")
        terminal.wait_for("user@sandbox")
        terminal.type("word=kept; echo here")
        terminal.wait_for("here")
        daemon.kill()
        daemon.start()
        terminal.type("echo again $word")
        terminal.wait_for("again kept")
        terminal.type("exit 4")
        terminal.wait_for("status=4")
        assert_restored(terminal)


def test_top_refreshes_until_ctrl_c(terminal: Tmux, sandbox: str, root_daemon: Daemon) -> None:
    terminal.type("sandboxctl top --delay 100ms")
    terminal.wait_for(sandbox)
    later = root_daemon.create()
    terminal.wait_for(later)
    terminal.key("C-c")
    terminal.wait_for_prompt()
    assert_restored(terminal)


def test_tables_fit_the_terminal(terminal: Tmux, root_daemon: Daemon) -> None:
    sandbox = root_daemon.create(metadata={"long": "x" * 100})
    terminal.type("sandboxctl ls")
    terminal.wait_for(sandbox)
