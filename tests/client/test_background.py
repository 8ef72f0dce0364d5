"""Background commands and terminals through the client."""

import pytest
import trio

from sandboxd.client import (
    ApiError,
    AsyncClient,
    Attached,
    Ended,
    Exited,
    LogEvent,
    Output,
    OutputLost,
    PtyAttachment,
    Refused,
    Writer,
)

LIMIT = 30.0
MIB = 1024 * 1024


async def test_a_command_from_start_to_end(client: AsyncClient, sandbox: str) -> None:
    command = await client.start_command(sandbox, "read line; echo got $line; echo err >&2; exit 3", stdin=True)
    assert (command.status, command.ended, command.cmd[:4]) == ("running", False, "read")
    number = command.command_id
    assert (await client.wait_command(sandbox, number, timeout_ms=1)).status == "running"
    assert await client.write_stdin(sandbox, number, b"it\n") == 3
    ended = await client.wait_command(sandbox, number)
    assert (ended.status, ended.exit_code, ended.ended) == ("exited", 3, True)
    assert await client.command(sandbox, number) == ended
    assert await client.commands(sandbox) == [ended]
    logs = await client.command_logs(sandbox, number)
    assert (logs.stdout, logs.stderr, logs.exit_code, logs.more) == (b"got it\n", b"err\n", 3, False)
    part = await client.command_logs(sandbox, number, stream="stdout", offset=4, limit_bytes=2)
    assert (part.stdout, part.more) == (b"it", True)
    assert (await client.command_logs(sandbox, number, stream="stdout", cursor=part.cursor)).stdout == b"\n"
    with pytest.raises(ApiError) as caught:
        await client.signal_command(sandbox, number, "SIGTERM")
    assert (caught.value.status, caught.value.kind) == (409, "ended")


async def test_its_log_is_followed_to_the_end(client: AsyncClient, sandbox: str) -> None:
    command = await client.start_command(sandbox, ["sh", "-c", r"printf '\377\n'; read l; printf end"], stdin=True)
    found: list[LogEvent] = []
    with trio.fail_after(LIMIT):
        async with client.follow_logs(sandbox, command.command_id) as events:
            async for event in events:
                found.append(event)
                if len(found) == 1:
                    await client.close_stdin(sandbox, command.command_id)
    assert found == [
        Output("stdout", b"\xff\n"),
        Output("stdout", b"end"),
        Ended(status="exited", exit_code=0, signal=None),
    ]


async def test_a_log_that_was_pruned_begins_with_a_gap(client: AsyncClient, sandbox: str) -> None:
    command = await client.start_command(sandbox, f"head -c {20 * MIB} /dev/zero")
    await client.wait_command(sandbox, command.command_id)
    with trio.fail_after(LIMIT):
        async with client.follow_logs(sandbox, command.command_id, stream="stdout") as events:
            first = await anext(events)
    assert isinstance(first, OutputLost)
    assert (await client.command_logs(sandbox, command.command_id)).lost_bytes == first.size


async def test_kill_and_signal(client: AsyncClient, sandbox: str) -> None:
    command = await client.start_command(sandbox, "sleep 600")
    assert (await client.kill_command(sandbox, command.command_id)).signal == "SIGKILL"
    other = await client.start_command(sandbox, "sleep 600")
    await client.signal_command(sandbox, other.command_id, "SIGTERM")
    assert (await client.wait_command(sandbox, other.command_id)).signal == "SIGTERM"


async def test_a_terminal_read_and_typed_into(client: AsyncClient, sandbox: str) -> None:
    pty = await client.start_pty(sandbox, ["sh", "-c", "stty -echo; stty size; read l; stty size; exit 4"], cols=70)
    number, seen = pty.command_id, b""
    while seen.count(b"\n") < 1:
        seen += (await client.read_pty(sandbox, number, wait_ms=1000)).data
    await client.resize_pty(sandbox, number, cols=71, rows=25)
    assert await client.write_pty(sandbox, number, b"\r") == 1
    while (answer := await client.read_pty(sandbox, number, wait_ms=1000)).alive:
        seen += answer.data
    assert (seen + answer.data, answer.exit_code) == (b"24 70\r\n25 71\r\n", 4)
    assert (await client.pty(sandbox, number)).terminal == {"cols": 71, "rows": 25}
    assert [each.command_id for each in await client.ptys(sandbox)] == [number]
    assert (await client.kill_pty(sandbox, number)).status == "exited"


async def output_until(terminal: PtyAttachment, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        event = await terminal.receive()
        seen += event.data if isinstance(event, Output) else b""
    return seen


async def test_a_place_at_a_terminal(client: AsyncClient, sandbox: str) -> None:
    number = (await client.start_pty(sandbox, "bash --norc -i")).command_id
    with trio.fail_after(LIMIT):
        async with client.attach_pty(sandbox, number, size=(90, 20)) as terminal:
            first = await terminal.receive()
            assert isinstance(first, Attached)
            assert (first.writer, first.offset, first.status) == (True, 0, "running")
            await terminal.send_stdin(b"stty size\r")
            seen = await output_until(terminal, b"20 90\r\n")
            assert terminal.offset == len(seen)
        async with (
            # "take": the daemon may not have seen yet that the one before has left.
            client.attach_pty(sandbox, number, offset=terminal.offset, write="take") as writer,
            client.attach_pty(sandbox, number, write="never") as watcher,
        ):
            second = await writer.receive()
            assert isinstance(second, Attached)
            assert second.writer
            hello = await watcher.receive()
            assert isinstance(hello, Attached)
            assert not hello.writer
            await watcher.send_stdin(b"x")
            while not isinstance(refused := await watcher.receive(), Refused):
                pass
            assert refused.error.startswith("cannot type")
            await watcher.take_over()
            while not isinstance(told := await writer.receive(), Writer):
                pass
            assert told == Writer(writer=False, reason="taken_over")
            await watcher.send_stdin(b"exit 6\r")
            while not isinstance(ended := await watcher.receive(), Exited):
                pass
            assert ended.exit_code == 6


async def test_an_unknown_terminal_is_an_api_error(client: AsyncClient, sandbox: str) -> None:
    with trio.fail_after(LIMIT), pytest.raises(ApiError) as caught:
        async with client.attach_pty(sandbox, "p0") as terminal:
            await terminal.receive()
    assert caught.value.status == 404
