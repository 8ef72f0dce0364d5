"""Commands with a terminal."""

import signal

import pytest
import trio

from sandboxd.isolation.init.client import InitError, SpawnRequest, TerminalSize
from sandboxd.isolation.init.wire import Flag, StdinMode
from tests.init.harness import RunningInit, follow, has_terminal, read_until, run, wait_until

SIZE = TerminalSize(80, 24)


async def test_it_is_the_controlling_terminal_of_a_session_of_its_own(init: RunningInit) -> None:
    script = "tty; test -t 0 && test -t 1 && test -t 2 && echo all; echo hello > /dev/tty; ps -o tpgid=,sid= -p $$"
    result = await run(init.client, SpawnRequest(argv=["sh", "-c", script], terminal=SIZE))
    lines = result.stdout.decode().split("\r\n")
    assert lines[0].startswith("/dev/pts/")
    assert lines[1:3] == ["all", "hello"]
    foreground, session = lines[3].split()
    assert foreground == session
    assert result.stderr == b""
    assert result.exited.flags & Flag.TERMINAL


async def test_erasing_takes_a_whole_character(init: RunningInit) -> None:
    script = "stty -echo; echo ready; head -1 | od -An -tx1"
    async with init.client.spawn_attached(SpawnRequest(argv=["sh", "-c", script], terminal=SIZE)) as attachment:
        await read_until(attachment, b"ready")
        await attachment.send_stdin("xä€😀\x7f\x7f\x7fy\n".encode())
        assert b"78 79 0a" in (await follow(attachment)).stdout


async def test_size_and_resize(init: RunningInit) -> None:
    script = "stty size; trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.02; done"
    async with init.client.spawn_attached(SpawnRequest(argv=["sh", "-c", script], terminal=SIZE)) as attachment:
        assert b"24 80" in await read_until(attachment, b"ready\r\n")
        await attachment.resize(TerminalSize(132, 43))
        assert b"43 132" in (await follow(attachment)).stdout


async def test_resize_by_command(init: RunningInit) -> None:
    request = SpawnRequest(argv=["sh", "-c", "read x; stty size"], terminal=SIZE)
    async with init.client.spawn_attached(request) as attachment:
        await init.client.resize(attachment.command, TerminalSize(100, 50))
        await attachment.send_stdin(b"\n")
        assert b"50 100" in (await follow(attachment)).stdout


async def test_resize_without_a_terminal(init: RunningInit) -> None:
    async with init.client.spawn_attached(SpawnRequest(argv=["cat"], stdin=StdinMode.PIPE)) as attachment:
        with pytest.raises(InitError, match="it has no terminal"):
            await init.client.resize(attachment.command, SIZE)
        await attachment.close_stdin()
        await follow(attachment)


async def test_typed_control_characters(init: RunningInit) -> None:
    request = SpawnRequest(argv=["sh", "-c", "trap 'echo got int' INT; cat; echo after"], terminal=SIZE)
    async with init.client.spawn_attached(request) as attachment:
        await attachment.send_stdin(b"echoed\n")
        await read_until(attachment, b"echoed\r\nechoed\r\n")
        await attachment.send_stdin(b"\x03")
        result = await follow(attachment)
    assert b"got int" in result.stdout


async def test_end_of_input_is_typed(init: RunningInit) -> None:
    request = SpawnRequest(argv=["sh", "-c", "stty eof X; echo ready; cat; echo end"], terminal=SIZE)
    async with init.client.spawn_attached(request) as attachment:
        await read_until(attachment, b"ready\r\n")
        await attachment.close_stdin()
        assert (await follow(attachment)).stdout.endswith(b"end\r\n")


async def test_job_control(init: RunningInit) -> None:
    request = SpawnRequest(argv=["bash", "--norc", "-i"], env={"PS1": "$ "}, terminal=SIZE)
    async with init.client.spawn_attached(request) as attachment:
        await read_until(attachment, b"$ ")
        await attachment.send_stdin(b"sleep 1000\n")
        await wait_until(lambda: has_terminal(init.pid, "sleep"))
        await attachment.send_stdin(b"\x1a")
        await read_until(attachment, b"Stopped")
        await attachment.send_stdin(b"kill %1; exit 7\nexit 7\n")
        assert (await follow(attachment)).exited.exit_code == 7


async def test_much_output_arrives_whole_at_exit(init: RunningInit) -> None:
    script = "stty -opost; head -c 8388608 /dev/zero | tr '\\0' x"
    result = await run(init.client, SpawnRequest(argv=["sh", "-c", script], terminal=SIZE))
    assert result.stdout.count(b"x") == len(result.stdout) == 8 * 1024 * 1024


async def test_it_hangs_up_when_the_session_leader_dies(init: RunningInit) -> None:
    script = (
        "(trap 'echo hup > $0; exit' HUP; : > $0.up; while :; do sleep 0.02; done) &"
        " until [ -e $0.up ]; do sleep 0.02; done; kill -9 $$"
    )
    request = SpawnRequest(argv=["bash", "-c", script, str(init.socket.parent / "proof")], terminal=SIZE)
    result = await run(init.client, request)
    assert result.exited.exit_signal == signal.SIGKILL
    await init.wait_idle()
    assert (init.socket.parent / "proof").read_text() == "hup\n"


async def test_input_is_held_back_while_nobody_reads(init: RunningInit) -> None:
    request = SpawnRequest(argv=["sh", "-c", "stty raw -echo; echo ready; sleep 1000"], terminal=SIZE)
    async with init.client.spawn_attached(request) as attachment, trio.open_nursery() as nursery:
        await read_until(attachment, b"ready")
        nursery.start_soon(follow, attachment)
        with trio.move_on_after(0.3) as scope:
            await attachment.send_stdin(bytes(4 * 1024 * 1024))
        assert scope.cancelled_caught
        await init.client.signal(attachment.command, signal.SIGKILL)
