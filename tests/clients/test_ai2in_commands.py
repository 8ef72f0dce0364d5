"""ai2in's client as published: commands, at once and in the background, and terminals."""

import urllib.error
from collections.abc import Iterator

import pytest
from ai2in import PtyHandle, Sandbox

from tests.clients.conftest import Access
from tests.support.waiting import wait_until

pytestmark = pytest.mark.any_user


@pytest.fixture
def sandbox(access: Access) -> Iterator[Sandbox]:
    with Sandbox(base_url=access.url, api_key=access.key) as made:
        yield made


def shows(pty: PtyHandle, seen: bytearray, wanted: bytes) -> bool:
    """Poll it once more, as its documentation says; whether that has come."""
    seen += pty.read()["data"]
    return wanted in seen


def test_run_gives_output_and_status_and_a_failure_is_no_error(sandbox: Sandbox) -> None:
    result = sandbox.commands.run("echo out; echo err >&2; pwd; echo $WORD; exit 3", cwd="/tmp", env={"WORD": "w"})
    assert result == {"stdout": "out\n/tmp\nw\n", "stderr": "err\n", "exit_code": 3}
    assert sandbox.commands.run("true") == {"stdout": "", "stderr": "", "exit_code": 0}


def test_a_background_command_is_polled_to_its_end(sandbox: Sandbox) -> None:
    handle = sandbox.commands.start("echo out; echo err >&2; until [ -e /tmp/go ]; do sleep 0.02; done; exit 4")
    assert handle.pid > 1
    wait_until(lambda: handle.logs()["stderr"] == "err\n")
    running = handle.logs()
    assert (running["stdout"], running["status"], running["exit_code"]) == ("out\n", "running", None)
    assert [(each["command_id"], each["status"]) for each in sandbox.commands.list()] == [(handle.id, "running")]
    sandbox.commands.run("touch /tmp/go")
    wait_until(lambda: handle.logs()["status"] == "exited")
    ended = handle.logs()
    assert (ended["stdout"], ended["stderr"], ended["exit_code"]) == ("out\n", "err\n", 4)


def test_killing_a_background_command_ends_its_whole_tree(sandbox: Sandbox) -> None:
    handle = sandbox.commands.start("setsid sleep 600 & sleep 600", cwd="/tmp", env={"A": "b"})
    assert handle.kill()["status"] == "killed"
    assert handle.logs()["status"] == "killed"
    assert sandbox.commands.run("pgrep -c sleep")["stdout"] == "0\n"
    assert isinstance(handle.kill(), dict)  # again is fine


def test_a_terminal_is_typed_into_read_resized_and_left(sandbox: Sandbox) -> None:
    pty = sandbox.pty.start(cols=91, rows=23)
    seen = bytearray()
    pty.send("stty size; echo Grü''ße\r")
    wait_until(lambda: shows(pty, seen, "Grüße\r\n".encode()))
    assert b"23 91" in seen
    pty.resize(120, 40)
    pty.send(b"stty size\r")
    wait_until(lambda: shows(pty, seen, b"40 120"))
    pty.send("exit 5\r")
    wait_until(lambda: not pty.read()["alive"])
    assert pty.read() == {"data": b"", "alive": False, "exit_code": 5}


def test_a_terminal_runs_what_it_is_told_and_is_killed(sandbox: Sandbox) -> None:
    pty = sandbox.pty.start("echo in $PWD as $WHO; sleep 600", cwd="/tmp", env={"WHO": "me"})
    seen = bytearray()
    wait_until(lambda: shows(pty, seen, b"in /tmp as me\r\n"))
    assert pty.kill()["status"] == "killed"
    assert pty.read()["alive"] is False


def test_output_that_nobody_read_for_long_is_there(sandbox: Sandbox) -> None:
    lines = [str(number) for number in range(1, 100_001)]
    pty = sandbox.pty.start("seq 100000")
    handle = sandbox.commands.start("seq 100000")
    wait_until(lambda: handle.logs()["status"] == "exited")
    assert handle.logs()["stdout"].split() == lines
    seen = bytearray()
    while (answer := pty.read())["alive"]:
        seen += answer["data"]
    assert (seen + answer["data"]).decode().split() == lines


def test_its_errors_are_http_errors(sandbox: Sandbox) -> None:
    handle = sandbox.commands.start("true")
    handle.id = "c0"
    with pytest.raises(urllib.error.HTTPError) as unknown:
        handle.logs()
    assert unknown.value.code == 404
    unknown.value.close()
    pty = sandbox.pty.start("true")
    wait_until(lambda: not pty.read()["alive"])
    with pytest.raises(urllib.error.HTTPError) as ended:
        pty.send("x")
    assert ended.value.code == 409
    ended.value.close()


def test_a_paused_sandbox_refuses_commands_with_409(sandbox: Sandbox) -> None:
    handle = sandbox.commands.start("echo up; sleep 600")
    wait_until(lambda: handle.logs()["stdout"] == "up\n")
    try:
        sandbox.pause()
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 422:
                raise
            pytest.skip("this host cannot freeze a sandbox")
    for act in (lambda: sandbox.commands.run("true"), lambda: sandbox.commands.start("true"), handle.kill):
        with pytest.raises(urllib.error.HTTPError) as refused:
            act()
        assert refused.value.code == 409
        refused.value.close()
    assert handle.logs()["stdout"] == "up\n"  # what is on disk can be read all the same
    sandbox.resume()
    assert handle.logs()["status"] == "running"
    assert handle.kill()["status"] == "killed"
