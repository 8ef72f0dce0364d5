"""Commands whose output is streamed as server-sent events."""

import base64
import http.client
import json
import time

import pytest

from tests.support.daemon import Daemon
from tests.support.sandbox import Box
from tests.support.sse import Event, stream
from tests.support.waiting import wait_until

pytestmark = pytest.mark.any_user

MIB = 1 << 20


@pytest.fixture
def box(daemon: Daemon) -> Box:
    return Box(daemon, daemon.create())


def run(box: Box, **body: object) -> list[Event]:
    """All events of a command's stream."""
    with stream(box.daemon, "POST", f"/v1/sandboxes/{box.id}/shell/stream", body) as events:
        return list(events)


def text(events: list[Event], kind: str) -> str:
    return "".join(event.data["text"] for event in events if event.kind == kind)


def test_a_stream_tells_a_commands_whole_story(box: Box) -> None:
    events = run(box, cmd="echo out; echo err >&2; exit 3")
    assert events[0].kind == "started"
    assert events[0].data["pid"] > 1
    assert events[-1].kind == "exit"
    assert (text(events, "stdout"), text(events, "stderr")) == ("out\n", "err\n")
    told = events[-1].data
    assert (told["exit_code"], told["signal"], told["timed_out"], told["output_incomplete"]) == (
        3,
        None,
        False,
        False,
    )


def test_output_comes_while_the_command_runs(box: Box) -> None:
    command = {"cmd": "echo ready; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo done"}
    with stream(box.daemon, "POST", f"/v1/sandboxes/{box.id}/shell/stream", command) as events:
        assert [event.kind for event in events.take(2)] == ["started", "stdout"]
        box.shell("touch /tmp/go")
        assert text(list(events), "stdout") == "done\n"


def test_a_character_is_never_cut_in_two(box: Box) -> None:
    script = "import os, time\nfor b in 'aä€𝄞'.encode(): os.write(1, bytes([b])); time.sleep(0.01)"
    events = run(box, argv=["python3", "-c", script])
    assert text(events, "stdout") == "aä€𝄞"
    assert "\ufffd" not in "".join(str(event.data) for event in events)


def test_bytes_come_with_their_offsets(box: Box) -> None:
    data = bytes(range(256)) * 512
    events = [
        event
        for event in run(box, cmd="cat", stdin_b64=base64.b64encode(data).decode(), encoding="base64")
        if event.kind == "stdout"
    ]
    chunks = [base64.b64decode(event.data["data_b64"]) for event in events]
    assert b"".join(chunks) == data
    assert [event.data["offset"] for event in events] == [sum(map(len, chunks[:n])) for n in range(len(chunks))]


def test_megabytes_are_streamed_without_loss(box: Box) -> None:
    events = run(box, cmd="head -c 16777216 /dev/zero | tr '\\0' x; echo end >&2")
    assert sum(len(event.data["text"]) for event in events if event.kind == "stdout") == 16 * MIB
    assert text(events, "stderr") == "end\n"


def test_a_client_that_reads_slowly_holds_back_the_writer_and_loses_nothing(box: Box) -> None:
    # Far more than pipes, rings and sockets hold together: the writer has to wait for this client.
    command = {"cmd": "i=0; while [ $i -lt 200000 ]; do echo line $i of the long story; i=$((i+1)); done"}
    with stream(box.daemon, "POST", f"/v1/sandboxes/{box.id}/shell/stream", command) as events:
        first = events.take(2)
        time.sleep(1)  # the client's slowness is the input here
        rest = list(events)
    assert text(first + rest, "stdout").splitlines() == [f"line {i} of the long story" for i in range(200_000)]


def test_a_timeout_ends_the_stream_with_the_exit(box: Box) -> None:
    events = run(box, cmd="echo before; sleep 600", timeout_ms=700)
    assert text(events, "stdout") == "before\n"
    assert (events[-1].kind, events[-1].data["timed_out"], events[-1].data["signal"]) == ("exit", True, "SIGKILL")
    assert box.processes() == []


def test_a_client_that_leaves_ends_its_command(box: Box) -> None:
    with stream(
        box.daemon, "POST", f"/v1/sandboxes/{box.id}/shell/stream", {"cmd": "setsid sleep 600 & echo up; sleep 600"}
    ) as events:
        events.take(2)
        assert len(box.processes()) >= 2
    wait_until(lambda: box.processes() == [])


def test_a_client_that_leaves_a_shell_call_ends_its_command(box: Box) -> None:
    connection = box.daemon.connect()
    body = json.dumps({"cmd": "touch /tmp/begun; sleep 600"})
    connection.request("POST", f"/v1/sandboxes/{box.id}/shell", body)
    wait_until(lambda: box.shell("ls /tmp/begun")["exit_code"] == 0)
    connection.close()
    wait_until(lambda: box.processes() == [])


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"cmd": "true", "user": "nobody-here"}, "unknown_user"),
        ({"cmd": "true", "cwd": "/nowhere"}, "bad_cwd"),
        ({"argv": ["/no/such/program"]}, "program_not_found"),
    ],
)
def test_a_command_that_cannot_start_is_an_error_event(box: Box, body: dict[str, object], kind: str) -> None:
    (event,) = run(box, **body)
    assert (event.kind, event.data["kind"]) == ("error", kind)
    assert event.data["error"].startswith("cannot ")


def test_what_is_wrong_with_the_request_itself_is_no_stream(box: Box) -> None:
    assert box.daemon.call("POST", "/v1/sandboxes/unknown/shell/stream", {"cmd": "true"}).status == 404
    assert box.answer("shell/stream", {}).status == 422
    assert box.answer("shell/stream", {"cmd": "true", "stdin_b64": "?"}).status == 400


def test_the_sandboxs_end_ends_the_stream_with_an_error(box: Box) -> None:
    with stream(box.daemon, "POST", f"/v1/sandboxes/{box.id}/shell/stream", {"cmd": "echo up; sleep 600"}) as events:
        events.take(2)
        box.daemon.delete(box.id)
        (last,) = list(events)
    assert (last.kind, last.data["kind"]) == ("error", "sandbox_lost")


def test_the_sandboxs_end_ends_a_shell_call_with_410(box: Box) -> None:
    connection = box.daemon.connect()
    connection.request("POST", f"/v1/sandboxes/{box.id}/shell", json.dumps({"cmd": "touch /tmp/begun; sleep 600"}))
    wait_until(lambda: box.shell("ls /tmp/begun")["exit_code"] == 0)
    box.daemon.delete(box.id)
    response: http.client.HTTPResponse = connection.getresponse()
    assert (response.status, json.loads(response.read())["kind"]) == (410, "sandbox_lost")
    connection.close()
