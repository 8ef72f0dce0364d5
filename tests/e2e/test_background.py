"""Commands in the background: started, read, fed and ended, while nobody listens or many do."""

import base64
import contextlib
import hashlib
import http.client
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.background import Background
from tests.support.daemon import Daemon
from tests.support.sandbox import Box
from tests.support.sse import stream
from tests.support.waiting import wait_until

MIB = 1024 * 1024
KEPT = 16 * MIB
"""sandbox.command_log_bytes by default"""


@pytest.fixture
def box(daemon: Daemon) -> Box:
    return Box(daemon, daemon.create())


@pytest.fixture
def background(box: Box) -> Background:
    return Background(box.daemon, box.id)


# -- from start to end --------------------------------------------------------------------------------------------


def test_a_command_from_start_to_end(background: Background) -> None:
    answer = background.daemon.call(
        "POST", background.path, {"cmd": "echo out; echo err >&2; read line; exit 4", "stdin": True}
    )
    assert answer.status == 201
    command, pid = answer.json["command_id"], answer.json["pid"]
    assert pid > 1
    assert (answer.json["status"], answer.json["exit_code"], answer.json["ended_at"]) == ("running", None, None)
    wait_until(lambda: background.logs(command)["stderr"] == "err\n")
    running = background.logs(command)
    assert (running["stdout"], running["status"], running["exit_code"]) == ("out\n", "running", None)

    assert background.post(command, "stdin", {"data": "go\n"}) == {"taken_bytes": 3, "closed": False}
    view = background.ended(command)
    assert (view["status"], view["exit_code"], view["signal"], view["pid"]) == ("exited", 4, None, pid)
    assert view["started_at"] <= view["ended_at"]
    done = background.logs(command)
    assert (done["stdout"], done["stderr"], done["exit_code"], done["lost_bytes"]) == ("out\n", "err\n", 4, 0)
    assert background.view(command) == view
    assert background.views() == [view]


def test_what_cannot_be_started_leaves_no_record(background: Background) -> None:
    for body, kind in (
        ({"argv": ["/no/such/program"]}, "program_not_found"),
        ({"cmd": "true", "cwd": "/nowhere"}, "bad_cwd"),
        ({"cmd": "true", "user": "nobody-here"}, "unknown_user"),
    ):
        answer = background.daemon.call("POST", background.path, body)
        assert (answer.status, answer.json["kind"]) == (422, kind)
    assert background.views() == []


def test_user_directory_environment_and_arguments_are_those_asked_for(background: Background) -> None:
    command = background.start("id -un; pwd; echo $WORD", user="root", cwd="/tmp", env={"WORD": "weird"})
    background.ended(command)
    assert background.stdout(command) == "root\n/tmp\nweird\n"
    answer = background.daemon.call("POST", background.path, {"argv": ["printf", "%s|", "a b", "$WORD"]})
    background.ended(answer.json["command_id"])
    assert background.stdout(answer.json["command_id"]) == "a b|$WORD|"
    assert answer.json["cmd"] == "printf '%s|' 'a b' '$WORD'"


def test_wait_returns_at_its_limit_and_at_the_end(background: Background) -> None:
    command = background.start("read line", stdin=True)
    assert background.post(command, "wait", {"timeout_ms": 50})["status"] == "running"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(background.ended, command)
        background.post(command, "stdin/close")
        assert waiting.result()["exit_code"] == 1


def test_a_timeout_kills_and_says_so(background: Background) -> None:
    command = background.start("setsid sleep 600 & sleep 600", timeout_ms=300)
    view = background.ended(command)
    assert (view["status"], view["signal"], view["timed_out"], view["exit_code"]) == ("killed", "SIGKILL", True, 137)


def test_unknown_commands_are_not_found(background: Background) -> None:
    for method, operation in (
        ("GET", ""),
        ("POST", "/logs"),
        ("GET", "/logs/stream"),
        ("POST", "/kill"),
        ("POST", "/wait"),
    ):
        answer = background.daemon.call(method, f"{background.path}/c0{operation}")
        assert answer.status == 404, operation
        assert answer.json["error"].startswith("cannot find command")


# -- output -------------------------------------------------------------------------------------------------------


def test_a_fast_exit_after_64_mib_keeps_the_newest_and_counts_the_rest(background: Background) -> None:
    command = background.start(f"head -c {64 * MIB} /dev/zero | tr '\\0' x; printf end")
    view = background.ended(command)
    assert (view["exit_code"], view["unlogged_bytes"]) == (0, 0)
    whole = background.logs(command, limit_bytes=64 * MIB)
    assert whole["stdout"].endswith("xxend")
    assert KEPT * 7 // 8 - MIB <= len(whole["stdout"]) <= KEPT
    assert whole["lost_bytes"] + len(whole["stdout"]) == 64 * MIB + 3 == int(whole["cursor"])


def test_endless_output_with_nobody_reading_is_bounded_and_blocks_nothing(background: Background, box: Box) -> None:
    command = background.start("n=0; while :; do head -c 1000000 /dev/zero; n=$((n+1)); echo $n > ~/rounds; done")
    wait_until(lambda: int(box.shell("cat ~/rounds || echo 0")["stdout"] or 0) > 60)
    logs = box.daemon.state / "sandboxes" / box.id / "commands"
    assert size_of(logs / command) <= KEPT
    background.post(command, "kill")


def size_of(log: Path) -> int:
    """In bytes; the oldest files of it may go meanwhile."""
    size = 0
    for entry in list(os.scandir(log)):
        with contextlib.suppress(FileNotFoundError):
            size += os.stat(entry).st_size
    return size


def test_every_byte_arrives_once_whoever_reads_and_how(background: Background) -> None:
    command = background.start(f"head -c {8 * MIB} /dev/urandom | tee /dev/stderr | sha256sum >&2")
    background.ended(command)
    out, place = b"", {"stream": "stderr"}
    while True:
        page = background.logs(command, encoding="base64", limit_bytes=777_777, **place)
        out += base64.b64decode(page["stderr"])
        place = {"stream": "stderr", "cursor": page["cursor"]}
        if not page["more"]:
            break
    data, said = out[: 8 * MIB], out[8 * MIB :]
    assert said.split()[0].decode() == hashlib.sha256(data).hexdigest()
    middle = background.logs(command, stream="stderr", offset=MIB, limit_bytes=10, encoding="base64")
    assert base64.b64decode(middle["stderr"]) == data[MIB : MIB + 10]
    tail = background.logs(command, stream="stderr", tail=4, encoding="base64")
    assert base64.b64decode(tail["stderr"]) == out[-4:]


def test_characters_are_never_cut(background: Background) -> None:
    command = background.start(
        r"printf 'a\303'; printf x >&2; read l; printf '\251\342\202'; printf y >&2; read l; printf '\254.\303'",
        stdin=True,
    )
    seen: dict[str, str] = {"stdout": "", "stderr": ""}
    cursor = {}

    def read_until(stderr: str) -> None:
        nonlocal cursor
        while seen["stderr"] != stderr:
            page = background.logs(command, limit_bytes=1, **cursor)
            cursor = {"cursor": page["cursor"]}
            for name in seen:
                seen[name] += page[name]

    read_until("x")
    assert seen["stdout"] == "a"
    background.post(command, "stdin", {"data": "\n"})
    read_until("xy")
    assert seen["stdout"] == "aé"
    background.post(command, "stdin", {"data": "\n"})
    background.ended(command)
    page = background.logs(command, **cursor)
    assert seen["stdout"] + page["stdout"] == "aé€.\ufffd"  # the last one never got its rest
    assert background.stdout(command) == "aé€.\ufffd"


def test_output_in_the_order_in_which_it_came(background: Background) -> None:
    command = background.start("echo 1; read l; echo 2 >&2; read l; echo 3", stdin=True)
    for expected in ("1\n", "1\n2\n"):
        wait_until(
            lambda expected=expected: (
                "".join(item["text"] for item in background.logs(command, interleaved=True)["output"]) == expected
            )
        )
        background.post(command, "stdin", {"data": "\n"})
    background.ended(command)
    items = background.logs(command, interleaved=True)["output"]
    assert [(item["stream"], item["offset"], item["text"]) for item in items] == [
        ("stdout", 0, "1\n"),
        ("stderr", 0, "2\n"),
        ("stdout", 2, "3\n"),
    ]


@pytest.mark.parametrize(
    "query",
    [
        "offset=-1",
        "cursor=x",
        "cursor=1.zz.",
        "offset=1&tail=1",
        "stream=stdin",
        "limit_bytes=0",
        "surprise=1",
        f"offset={2**70}",
    ],
)
def test_a_wrong_place_in_a_log_is_refused(background: Background, query: str) -> None:
    command = background.start("true")
    answer = background.daemon.call("GET", f"{background.path}/{command}/logs?{query}")
    assert answer.status == 422
    assert answer.json["error"].startswith("cannot ")


# -- following ----------------------------------------------------------------------------------------------------


def test_a_stream_brings_what_was_and_what_comes_and_the_end(background: Background) -> None:
    command = background.start("echo early; read line; echo late >&2; exit 3", stdin=True)
    wait_until(lambda: background.stdout(command) == "early\n")
    with stream(background.daemon, "GET", f"{background.path}/{command}/logs/stream") as events:
        assert [(event.kind, event.data) for event in events.take(1)] == [
            ("stdout", {"offset": 0, "text": "early\n"})
        ]
        background.post(command, "stdin", {"data": "\n"})
        rest = list(events)
    assert [(event.kind, event.data.get("text")) for event in rest] == [("stderr", "late\n"), ("exit", None)]
    assert (rest[-1].data["status"], rest[-1].data["exit_code"]) == ("exited", 3)


def test_a_reconnecting_stream_goes_on_where_it_was(background: Background) -> None:
    command = background.start(r"printf 'a\303'; read line; printf '\251b'; exit 0", stdin=True)
    path = f"{background.path}/{command}/logs/stream"
    wait_until(lambda: background.stdout(command) == "a")
    with stream(background.daemon, "GET", path) as events:
        (first,) = events.take(1)
    background.post(command, "stdin", {"data": "\n"})
    with stream(background.daemon, "GET", path, headers={"Last-Event-ID": first.id or ""}) as events:
        rest = list(events)
    assert first.data["text"] + "".join(event.data.get("text", "") for event in rest) == "aéb"


def test_a_stream_tells_of_a_gap(background: Background) -> None:
    command = background.start(f"head -c {2 * KEPT} /dev/zero")
    background.ended(command)
    with stream(background.daemon, "GET", f"{background.path}/{command}/logs/stream?encoding=base64") as events:
        found = list(events)
    assert found[0].kind == "gap"
    received = sum(len(base64.b64decode(event.data["data_b64"])) for event in found if event.kind == "stdout")
    assert found[0].data["lost_bytes"] + received == 2 * KEPT


def test_many_readers_at_once_see_the_same(background: Background) -> None:
    command = background.start("for i in $(seq 2000); do echo line $i; done; read l; echo end", stdin=True)

    def follow(_: int) -> str:
        with stream(background.daemon, "GET", f"{background.path}/{command}/logs/stream") as events:
            return "".join(event.data.get("text", "") for event in events)

    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(follow, number) for number in range(8)]
        background.post(command, "stdin", {"data": "\n"})
        seen = {reader.result() for reader in readers}
    assert seen == {"".join(f"line {number}\n" for number in range(1, 2001)) + "end\n"}


def test_deleting_the_sandbox_ends_its_streams_and_waits(background: Background) -> None:
    command = background.start("echo up; sleep 600")
    with stream(background.daemon, "GET", f"{background.path}/{command}/logs/stream") as events:
        assert events.take(1)[0].kind == "stdout"
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(background.answer, command, "wait")
            background.daemon.delete(background.sandbox)
            rest = list(events)
            assert waiting.result().status in {200, 404}
    assert [(event.kind, event.data["status"]) for event in rest] == [("exit", "lost")]


# -- input, signals and the end -----------------------------------------------------------------------------------


def test_stdin_takes_much_and_is_closed(background: Background) -> None:
    command = background.start("sha256sum", stdin=True)
    data = os.urandom(5 * MIB)
    sent = background.post(command, "stdin", {"data_b64": base64.b64encode(data).decode(), "close": True})
    assert sent == {"taken_bytes": len(data), "closed": False}
    background.ended(command)
    assert background.stdout(command).split()[0] == hashlib.sha256(data).hexdigest()
    assert background.answer(command, "stdin", {"data": "more"}).status == 409


def test_stdin_of_a_command_that_does_not_read_on_is_told(background: Background) -> None:
    command = background.start("exec 0<&-; echo closed; sleep 600", stdin=True)
    wait_until(lambda: background.stdout(command) == "closed\n")
    assert background.post(command, "stdin", {"data": "lost"})["closed"] is True
    without = background.start("sleep 600")
    answer = background.answer(without, "stdin", {"data": "x"})
    assert (answer.status, answer.json["kind"]) == (422, "no_stdin")


def test_signals_reach_the_group_and_one_too_late_is_a_conflict(background: Background) -> None:
    command = background.start("trap 'echo caught; exit 9' USR1; echo up; while :; do sleep 0.02; done")
    wait_until(lambda: background.stdout(command) == "up\n")
    background.post(command, "signal", {"signal": "SIGUSR1", "scope": "leader"})
    assert background.ended(command)["exit_code"] == 9
    late = background.answer(command, "signal", {"signal": "SIGTERM"})
    assert (late.status, late.json["kind"]) == (409, "ended")
    assert background.answer(command, "signal", {"signal": "SIGNOTHING"}).status == 400


def test_kill_takes_the_whole_tree_and_may_be_repeated(background: Background, box: Box) -> None:
    command = background.start("setsid sleep 600 & trap '' TERM; echo up; sleep 600")
    wait_until(lambda: background.stdout(command) == "up\n")
    killed = background.post(command, "kill")
    assert (killed["status"], killed["signal"], killed["exit_code"]) == ("killed", "SIGKILL", 137)
    assert box.processes() == []
    assert background.post(command, "kill") == killed


def test_kill_reaches_what_outlived_the_command(background: Background, box: Box) -> None:
    command = background.start("sleep 600 > /dev/null 2>&1 & exit 5")
    assert background.ended(command)["exit_code"] == 5
    wait_until(lambda: box.processes() == ["sleep 600"])  # the shell ends whether or not its child is sleep by then
    assert background.post(command, "kill")["exit_code"] == 5
    assert box.processes() == []


def test_many_commands_at_once(background: Background) -> None:
    with ThreadPoolExecutor(8) as pool:
        commands = list(pool.map(lambda number: background.start(f"read l; echo {number}", stdin=True), range(60)))
        assert len({view["command_id"] for view in background.views()}) == 60
        list(pool.map(lambda command: background.post(command, "stdin", {"data": "\n"}), commands))
        list(pool.map(background.ended, commands))
        assert list(pool.map(background.stdout, commands)) == [f"{number}\n" for number in range(60)]


def test_the_oldest_ended_commands_are_forgotten(own_root_daemon: Daemon) -> None:
    (own_root_daemon.root / "config").write_text("[sandbox]\ncommands_kept = 3\n")
    own_root_daemon.options = ("--config", str(own_root_daemon.root / "config"))
    own_root_daemon.start()
    background = Background(own_root_daemon, own_root_daemon.create())
    runs_on = background.start("sleep 600")
    for number in range(6):
        last = background.start(f"echo {number}")
        background.ended(last)
    kept = [view["command_id"] for view in background.views()]
    assert kept[0] == runs_on
    assert kept[-1] == last
    assert len(kept) == 1 + 3
    directory = own_root_daemon.state / "sandboxes" / background.sandbox / "commands"
    assert {entry.name for entry in os.scandir(directory)} == set(kept) - {runs_on}


def test_the_answers_suit_a_client_that_takes_only_objects(background: Background) -> None:
    command = background.start("true")
    background.ended(command)
    for operation in ("logs", "kill", "wait"):
        answer = background.daemon.call("POST", f"{background.path}/{command}/{operation}")
        assert (answer.status, type(answer.json), bool(answer.json)) == (http.client.OK, dict, True)
    assert re.fullmatch(r"c[0-9a-f]{16}", command)
