"""watch: lines as things happen, and nothing left when it ends."""

import json
import signal

from tests.cli.support import LIMIT, Ctl
from tests.support.daemon import Daemon
from tests.support.waiting import wait_until


def watches(daemon: Daemon, sandbox: str) -> int:
    return len(daemon.call("GET", f"/v1/sandboxes/{sandbox}/fs/watch").json["watches"])


def test_what_happens_is_shown_until_interrupted(ctl: Ctl, root_daemon: Daemon) -> None:
    sandbox = root_daemon.create()
    with ctl.start("watch", sandbox, "/home/user", "--ignore", "*.tmp") as process:
        assert process.stdout is not None
        wait_until(lambda: watches(root_daemon, sandbox) == 1)
        root_daemon.shell(sandbox, "cd; mkdir dir; : > x.tmp")
        assert process.stdout.readline() == b"create    dir/\n"
        root_daemon.shell(sandbox, "cd; rmdir dir")
        assert process.stdout.readline() == b"remove    dir/\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 130
    assert watches(root_daemon, sandbox) == 0
    root_daemon.delete(sandbox)


def test_raw_events_as_json_until_the_directory_is_gone(ctl: Ctl, root_daemon: Daemon) -> None:
    sandbox = root_daemon.create()
    root_daemon.shell(sandbox, "mkdir ~/place")
    with ctl.start("watch", sandbox, "place", "--raw", "--flat", "--json") as process:
        assert process.stdout is not None
        wait_until(lambda: watches(root_daemon, sandbox) == 1)
        root_daemon.shell(sandbox, "cd ~/place; : > f; chmod 600 f; rm f; rmdir ~/place")
        events = [json.loads(line) for line in process.stdout]
        assert process.wait(LIMIT) == 0
    assert [event["type"] for event in events] == ["create", "chmod", "remove", "remove", "ended"]
    assert [event["path"] for event in events] == ["f", "f", "f", ".", "."]
    root_daemon.delete(sandbox)


def test_a_missing_directory_is_a_sentence(ctl: Ctl, root_daemon: Daemon) -> None:
    sandbox = root_daemon.create()
    done = ctl.run("watch", sandbox, "/missing")
    assert done.returncode == 1
    assert done.stderr.startswith(b'sandboxctl: cannot watch "/missing"')
    root_daemon.delete(sandbox)
