"""Lines of the daemon's log that clients and sandboxes would like to have written."""

import signal
import urllib.parse

from tests.e2e.test_program import config_file
from tests.support.daemon import Daemon, connect_unix
from tests.support.waiting import wait_until

FORGED = "2026-01-01T00:00:00.000Z WARNING sandboxd.daemon: forged"
LISTEN = "import socket; s = socket.create_server(('', 8000)); open('/tmp/up', 'w'); c = s.accept(); input()"


def forged_lines(daemon: Daemon) -> list[str]:
    return [line for line in daemon.log.splitlines() if line.startswith(FORGED[:10])]


def test_a_path_of_a_request_forges_no_line(own_root_daemon: Daemon) -> None:
    """The log names what is under way after its path, when it is asked what every task does."""
    daemon = own_root_daemon.start()
    sandbox = daemon.create()
    path = f"/v1/sandboxes/{sandbox}/ports/8000/" + urllib.parse.quote(f"x\n{FORGED}\x1b[2J")
    in_background = f'(sleep 600 | python3 -c "{LISTEN}") >/dev/null 2>&1 &'
    daemon.shell(sandbox, f"{in_background} until test -e /tmp/up; do sleep 0.05; done")
    with connect_unix(daemon.socket, limit=60) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())

        def told() -> bool:
            daemon.signal(signal.SIGUSR1)
            return "forged" in daemon.log

        wait_until(told)
    assert forged_lines(daemon) == []
    assert f"x\\n{FORGED}\\x1b[2J" in daemon.log


def test_a_name_of_a_file_forges_no_line(own_root_daemon: Daemon) -> None:
    """A watch that nobody reads ends, and the log says which directory it watched."""
    daemon = own_root_daemon
    daemon.options = ("--config", config_file(daemon, "[sandbox]\nwatch_idle_limit = 0.5\n"))
    daemon.start()
    sandbox = daemon.create()
    name = f"/tmp/x\n{FORGED}\u202e"
    daemon.shell(sandbox, f"mkdir '{name}'")
    answer = daemon.call("POST", f"/v1/sandboxes/{sandbox}/fs/watch", {"path": name})
    assert answer.status == 201, answer.data
    wait_until(lambda: "expired" in daemon.log)
    assert forged_lines(daemon) == []
    assert f"/tmp/x\\n{FORGED}\\u202e expired" in daemon.log
