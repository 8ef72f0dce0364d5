"""events and log: the past, its end, and the present."""

import json
import signal

from tests.cli.support import LIMIT, Ctl
from tests.support.daemon import Daemon


def kinds(text: str) -> list[str]:
    return [json.loads(line)["kind"] for line in text.splitlines()]


def test_the_past_of_a_sandbox(ctl: Ctl, root_daemon: Daemon) -> None:
    sandbox = root_daemon.create()
    root_daemon.call("DELETE", f"/v1/sandboxes/{sandbox}")
    assert kinds(ctl.text("events", "--sandbox", sandbox, "--json")) == ["created", "started", "deleted"]
    assert kinds(ctl.text("events", "--sandbox", sandbox, "--json", "--tail", "1")) == ["deleted"]
    assert ctl.text("events", "--tail", "0") == ""
    (line,) = ctl.text("events", "--tail", "1").splitlines()
    assert line.split()[2:4] == ["deleted", sandbox]


def test_after_an_event_come_later_ones(ctl: Ctl, root_daemon: Daemon) -> None:
    sandbox = root_daemon.create()
    first = json.loads(ctl.text("events", "--sandbox", sandbox, "--json").splitlines()[0])
    assert kinds(ctl.text("events", "--sandbox", sandbox, "--json", "--after", str(first["id"]))) == ["started"]


def test_following_shows_what_happens(ctl: Ctl, root_daemon: Daemon) -> None:
    sandbox = root_daemon.create()
    # The tail says that it is listening from there on: nothing can fall between the two.
    with ctl.start("events", "--follow", "--tail", "1", "--json") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["kind"] == "started"
        root_daemon.call("DELETE", f"/v1/sandboxes/{sandbox}")
        seen = json.loads(process.stdout.readline())
        assert (seen["kind"], seen["sandbox"]) == ("deleted", sandbox)
        process.terminate()
        process.wait(LIMIT)


def test_following_ends_with_the_daemon_in_a_sentence(own_root_daemon: Daemon) -> None:
    own_root_daemon.start()
    own_root_daemon.create()
    with Ctl.of(own_root_daemon).start("events", "--follow", "--tail", "1") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"started" in process.stdout.readline()
        own_root_daemon.kill()
        assert process.wait(LIMIT) == 1
        assert process.stderr.read().startswith(b"sandboxctl: cannot ")


def test_the_daemons_log_and_what_it_goes_on_to_say(own_root_daemon: Daemon) -> None:
    own_root_daemon.start()
    ctl = Ctl.of(own_root_daemon)
    lines = ctl.text("log").splitlines()
    assert any("sandboxd.daemon: serving on unix:" in line for line in lines)
    assert json.loads(ctl.text("log", "--json", "--tail", "1"))["level"] == "info"
    assert own_root_daemon.process is not None
    with ctl.start("log", "--follow", "--tail", "1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        own_root_daemon.process.send_signal(signal.SIGHUP)
        assert b"configuration reloaded" in process.stdout.readline()
        process.terminate()
        process.wait(LIMIT)
