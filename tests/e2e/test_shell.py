"""Commands run to their end."""

import base64
import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.daemon import Answer, Daemon
from tests.support.sandbox import Box
from tests.support.waiting import PATIENCE

MIB = 1 << 20


@pytest.fixture
def box(daemon: Daemon) -> Box:
    return Box(daemon, daemon.create())


def test_output_and_exit_code_are_the_commands_own(box: Box) -> None:
    result = box.shell("echo out; echo err >&2; exit 7")
    assert (result["stdout"], result["stderr"], result["exit_code"]) == ("out\n", "err\n", 7)
    assert (result["signal"], result["timed_out"], result["oom_killed"]) == (None, False, False)
    assert (result["truncated"], result["output_incomplete"], result["encoding"]) == (False, False, "utf-8")
    assert 0 <= result["duration_ms"] < 30_000
    assert result["max_rss_bytes"] > 0


@pytest.mark.parametrize(("name", "number"), [("KILL", 9), ("TERM", 15), ("SEGV", 11), ("USR1", 10)])
def test_a_signal_is_told_by_name_and_as_a_shell_tells_it(box: Box, name: str, number: int) -> None:
    result = box.shell(f"kill -{name} $$; sleep 600")
    assert (result["signal"], result["exit_code"]) == (f"SIG{name}", 128 + number)


def test_an_argument_list_goes_to_the_program_as_it_is(box: Box) -> None:
    words = ["printf", "%s|", "two words", "$HOME", "", "*", "a\nb", "ä'\""]
    result = box.answer("shell", {"argv": words}).json
    assert result["stdout"] == "two words|$HOME||*|a\nb|ä'\"|"


def test_stdin_is_given_whole_and_ends(box: Box) -> None:
    assert box.shell("cat; echo end", stdin="some\ttext ä\n")["stdout"] == "some\ttext ä\nend\n"
    assert box.shell("cat; echo end", stdin="")["stdout"] == "end\n"
    assert box.shell("cat; echo end")["stdout"] == "end\n"  # without stdin: /dev/null


def test_binary_stdin_and_output_survive_byte_for_byte(box: Box) -> None:
    data = bytes(range(256)) * 1000
    result = box.shell("tee /dev/stderr", stdin_b64=base64.b64encode(data).decode(), encoding="base64")
    assert base64.b64decode(result["stdout"]) == base64.b64decode(result["stderr"]) == data


def test_a_user_may_open_its_own_dev_stderr(box: Box) -> None:
    """Scripts do it all the time; the pipe behind it has to be the user's for that."""
    result = box.shell("echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin", stdin="in")
    assert (result["stdout"], result["stderr"]) == ("out\nin", "err\n")


def test_output_that_is_not_utf8_is_replaced_not_refused(box: Box) -> None:
    assert box.shell(r"printf 'a\xff\xc3b'")["stdout"] == "a\ufffd\ufffdb"


def test_megabytes_go_in_and_out(box: Box) -> None:
    text = "0123456789abcde\n" * (8 * MIB // 16)
    result = box.shell("cat", stdin=text, max_output_bytes=8 * MIB)
    assert result["stdout"] == text


def test_a_command_that_does_not_read_its_stdin_ends_all_the_same(box: Box) -> None:
    assert box.shell("echo done", stdin="x" * 4 * MIB)["stdout"] == "done\n"


def test_cwd_env_and_user_are_those_asked_for(box: Box) -> None:
    said = box.shell("pwd; id -un; echo $HOME $VALUE", cwd="/usr/share", user="root", env={"VALUE": "a=b ä"})
    assert said["stdout"].splitlines() == ["/usr/share", "root", "/root a=b ä"]


def test_a_command_overrides_the_sandboxs_environment(daemon: Daemon) -> None:
    box = Box(daemon, daemon.create(env={"ONE": "sandbox", "TWO": "sandbox"}))
    assert box.shell("echo $ONE $TWO", env={"TWO": "command"})["stdout"] == "sandbox command\n"


@pytest.mark.parametrize(
    ("terms", "kind"),
    [
        ({"cwd": "/nowhere"}, "bad_cwd"),
        ({"cwd": "/etc/passwd"}, "bad_cwd"),
        ({"user": "nobody-here"}, "unknown_user"),
        ({"argv": ["/no/such/program"]}, "program_not_found"),
        ({"argv": ["no-such-program"]}, "program_not_found"),
        ({"argv": ["/etc/passwd"]}, "program_not_found"),
    ],
)
def test_terms_the_sandbox_cannot_meet_are_refused(box: Box, terms: dict[str, object], kind: str) -> None:
    answer = box.answer("shell", {"cmd": "true", **terms} if "argv" not in terms else terms)
    assert (answer.status, answer.json["kind"]) == (422, kind)
    assert answer.json["error"].startswith("cannot ")
    assert box.shell("echo well")["stdout"] == "well\n"


def test_a_missing_command_is_the_shells_own_127(box: Box) -> None:
    result = box.shell("no-such-command-at-all")
    assert result["exit_code"] == 127
    assert "not found" in result["stderr"]


def test_commands_run_side_by_side(box: Box) -> None:
    # Each waits for the other: had they to take turns, neither would end.
    box.shell("mkfifo /tmp/there /tmp/back")
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(box.shell, "echo hello > /tmp/there; cat /tmp/back", timeout_ms=30_000)
        two = pool.submit(box.shell, "cat /tmp/there; echo again > /tmp/back", timeout_ms=30_000)
        assert (one.result()["stdout"], two.result()["stdout"]) == ("again\n", "hello\n")


# -- output, however large and fast -------------------------------------------------------------------------------


def test_64_mib_written_by_a_program_that_exits_at_once_arrive_whole(box: Box) -> None:
    """The whole output is in pipes and rings when the writer is gone; none of it may be lost."""
    script = "import os; d = b'0123456789abcdef' * 65536\nfor _ in range(64): os.write(1, d)\nos._exit(3)"
    result = box.answer("shell", {"argv": ["python3", "-c", script], "max_output_bytes": 100 * MIB})
    assert result.status == 200
    output = result.json["stdout"].encode()
    assert (len(output), result.json["exit_code"]) == (64 * MIB, 3)
    assert hashlib.sha256(output).digest() == hashlib.sha256(b"0123456789abcdef" * (4 * MIB)).digest()
    assert (result.json["truncated"], result.json["output_incomplete"]) == (False, False)


def test_output_over_the_callers_maximum_is_cut_and_said_to_be(box: Box) -> None:
    result = box.shell("printf 0123456789; printf abcdef >&2", max_output_bytes=8)
    assert (result["stdout"], result["stderr"], result["truncated"]) == (
        "0123\n[2 bytes left out]\n6789",
        "abcdef",
        True,
    )
    assert (result["stdout_bytes"], result["stderr_bytes"]) == (10, 6)
    assert result["omitted"] == [{"stream": "stdout", "offset": 4, "bytes": 2, "reason": "limit"}]
    exact = box.shell("printf 0123456789", max_output_bytes=8, encoding="base64")
    assert base64.b64decode(exact["stdout"]) == b"01236789"
    exactly = box.shell("printf 01234567", max_output_bytes=8)
    assert (exactly["stdout"], exactly["truncated"]) == ("01234567", False)
    nothing = box.shell("echo x", max_output_bytes=0)
    assert (nothing["stdout"], nothing["truncated"]) == ("\n[2 bytes left out]\n", True)


def test_a_writer_without_end_is_ended_by_its_timeout_and_costs_no_memory(box: Box) -> None:
    before = _rss(box.daemon)
    result = box.shell("yes", max_output_bytes=MIB, timeout_ms=1500)
    beginning, end = result["stdout"].split(f"\n[{result['omitted'][0]['bytes']} bytes left out]\n")
    assert (len(beginning), len(end)) == (MIB // 2, MIB // 2)
    assert (result["truncated"], result["timed_out"]) == (True, True)
    assert result["signal"] == "SIGKILL"
    assert _rss(box.daemon) - before < 64 * MIB
    assert box.processes() == []


def _rss(daemon: Daemon) -> int:
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


# -- commands that will not go ------------------------------------------------------------------------------------


def timed_out(box: Box, command: str, **body: object) -> Answer:
    """Run it with a timeout that it has to be killed by; nothing of it may be left then."""
    began = time.monotonic()
    result = box.shell(command, timeout_ms=1000, **body)
    assert time.monotonic() - began < PATIENCE
    assert result["timed_out"]
    assert box.processes() == []
    return result


def test_a_timeout_kills(box: Box) -> None:
    result = timed_out(box, "echo before; sleep 600; echo after")
    assert (result["stdout"], result["signal"], result["exit_code"]) == ("before\n", "SIGKILL", 137)


def test_a_timeout_kills_what_ignores_signals(box: Box) -> None:
    timed_out(box, "trap '' TERM INT HUP QUIT; while :; do sleep 600; done")


def test_a_timeout_kills_children_and_those_that_have_left_the_session(box: Box) -> None:
    # Nothing that is slow to start: all of it has to be there when the time is up.
    daemonize = "(setsid sh -c 'exec sleep 600 <&- >&- 2>&- &' &)"
    result = timed_out(box, f"sleep 600 & setsid sleep 600 & {daemonize}; echo up; sleep 600")
    assert result["stdout"] == "up\n"


def test_a_timeout_kills_one_that_forks_for_ever(box: Box) -> None:
    # Generations that each outlive their parent by a moment: the tree has no root to hold on to.
    script = "import os, time\nwhile True:\n if os.fork(): os._exit(0)\n time.sleep(0.001)\n"
    timed_out(box, f"setsid python3 -c '{script}' & sleep 600")


def test_a_fork_bomb_is_bounded_and_killed(box: Box) -> None:
    timed_out(box, "bomb() { bomb | bomb & }; bomb; sleep 600")
    assert box.shell("echo well", timeout_ms=20_000)["stdout"] == "well\n"


def test_a_timeout_is_not_reported_when_it_was_not_reached(box: Box) -> None:
    result = box.shell("echo quick", timeout_ms=60_000)
    assert (result["timed_out"], result["exit_code"]) == (False, 0)


def test_one_that_closes_its_output_and_lives_on_is_waited_for(box: Box) -> None:
    began = time.monotonic()
    result = box.shell("echo first; exec >&- 2>&-; sleep 1; exit 5")
    assert (result["stdout"], result["exit_code"]) == ("first\n", 5)
    assert time.monotonic() - began >= 1


def test_a_background_process_that_holds_the_output_does_not_hold_up_the_answer(box: Box) -> None:
    began = time.monotonic()
    result = box.shell("echo up; sleep 600 &")
    assert time.monotonic() - began < PATIENCE
    assert (result["stdout"], result["exit_code"], result["output_incomplete"]) == ("up\n", 0, True)
    assert [process for process in box.processes() if "sleep" in process] != []


def test_a_background_process_with_its_own_output_lives_on(box: Box) -> None:
    # Its shell's output is its own until it runs.
    result = box.shell("sleep 600 > /dev/null 2>&1 & until pgrep -x sleep; do :; done > /dev/null; echo up")
    assert result["output_incomplete"] is False
    assert [process for process in box.processes() if "sleep" in process] != []
