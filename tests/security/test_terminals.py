"""What comes from sandboxes and other tenants does not act on the terminal of whoever runs sandboxctl."""

import contextlib
import json
import os
import pty
import subprocess
from collections.abc import Iterator

import pytest

from tests.cli.support import LIMIT, PROGRAM, Ctl
from tests.support.daemon import Daemon

# Sets the title; C1's CSI, which some terminals take for ESC [; turns text around; and what ends a line elsewhere.
HOSTILE = "a\x1b]0;title\x07b\x9b31mc\u202ed\u2028e\U000e0001f"
ACTING = ("\x1b]0;", "\x07", "\x9b", "\u202e", "\u2028", "\U000e0001")


@pytest.fixture
def host(root_daemon: Daemon) -> Iterator[Daemon]:
    yield root_daemon
    root_daemon.delete_all()


def on_a_terminal(daemon: Daemon, *arguments: str) -> str:
    """All that a command writes to a terminal, on stdout or stderr."""
    ours, its = pty.openpty()
    try:
        with subprocess.Popen(
            [*PROGRAM, *arguments],
            stdin=its, stdout=its, stderr=its, env={**Ctl.of(daemon).env(), "TERM": "xterm", "COLUMNS": "300"},
        ) as process:  # fmt: skip
            os.close(its)
            its = -1
            written = b""
            with contextlib.suppress(OSError):  # EIO: nobody has it open any more
                while data := os.read(ours, 65536):
                    written += data
            process.wait(LIMIT)
    finally:
        os.close(ours)
        if its >= 0:
            os.close(its)
    return written.decode()


def acts(text: str) -> list[str]:
    return [character for character in ACTING if character in text]


def test_a_commands_own_output_is_the_programs(host: Daemon) -> None:
    """The control: the terminal does get what is sent to it."""
    sandbox = host.create()
    written = on_a_terminal(host, "exec", sandbox, "--", "printf", r"\033]0;title\007")
    assert acts(written) == ["\x1b]0;", "\x07"]


def test_names_of_files(host: Daemon) -> None:
    sandbox = host.create()
    host.shell(sandbox, f"mkdir /tmp/d; touch /tmp/d/'{HOSTILE}'")
    for options in ((), ("-l",)):
        written = on_a_terminal(host, "fs", "ls", *options, sandbox, "/tmp/d")
        assert "title" in written
        assert acts(written) == []
    written = on_a_terminal(host, "fs", "ls", "--json", sandbox, "/tmp/d")
    assert acts(written) == []
    assert json.loads(written)[0]["name"] == HOSTILE
    assert acts(on_a_terminal(host, "fs", "cat", sandbox, f"/tmp/{HOSTILE}")) == []


def test_metadata(host: Daemon) -> None:
    sandbox = host.create(metadata={"k": HOSTILE})
    for command in (("inspect", sandbox), ("ls",), ("events",)):
        for options in ((), ("--json",)):
            assert acts(on_a_terminal(host, *command, *options)) == []
    assert "title" in on_a_terminal(host, "inspect", sandbox)


def test_names_of_keys(host: Daemon) -> None:
    """Such names are refused, and the refusal names them."""
    assert host.call("POST", "/v1/keys", {"name": HOSTILE, "scopes": ["read"]}).status == 400
    assert acts(on_a_terminal(host, "key", "create", HOSTILE)) == []
