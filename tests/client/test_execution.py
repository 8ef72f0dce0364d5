"""A command with live input and output: the window of its stdin, its events, its end."""

import json
import os

import pytest
import trio
import wsproto
from hypothesis import given
from hypothesis import strategies as st
from wsproto.events import AcceptConnection, CloseConnection, TextMessage

from sandboxd.client import (
    ApiError,
    AsyncClient,
    ConnectionLost,
    Exec,
    Exited,
    InputClosed,
    Output,
    Started,
    StdinClosed,
    StreamEnded,
)
from sandboxd.client.execution import STDIN_WINDOW, StdinWindow
from sandboxd.client.network.on_trio import TRIO, TrioStream
from sandboxd.client.websocket import WebSocket

MIB = 1024 * 1024
LIMIT = 30.0


# -- the window ---------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100))), st.integers(1, 100))
def test_never_more_than_the_window_is_under_way(steps: list[tuple[int, int]], limit: int) -> None:
    window, sent, taken = StdinWindow(limit), 0, 0
    for wanted, acknowledged in steps:
        size = min(wanted, window.room)
        window.record_sent(size)
        sent += size
        taken += min(acknowledged, sent - taken)
        window.record_taken(taken)
        assert window.room == limit - (sent - taken) >= 0


def test_sending_past_the_window_is_a_bug() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        StdinWindow(10).record_sent(11)


@pytest.mark.parametrize("total", [11, 4])
def test_an_acknowledgement_that_cannot_be_is_refused(total: int) -> None:
    window = StdinWindow()
    window.record_sent(10)
    window.record_taken(5)
    with pytest.raises(ConnectionLost):
        window.record_taken(total)


# -- a daemon that has refused before anything was asked ----------------------------------------------------------


async def test_a_refusal_that_comes_with_the_handshake_is_what_the_client_learns() -> None:
    """The connection is closed already when the client says what it wants: that is not the news."""
    ours, theirs = (trio.SocketStream(end) for end in trio.socket.socketpair())
    async with ours, theirs:
        websocket, server = WebSocket(TrioStream(ours), TRIO), wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(websocket.open, "host", "/path", [])
            server.receive_data(bytes(await theirs.receive_some()))
            list(server.events())
            refusal = json.dumps({"type": "error", "error": "cannot find it", "kind": "not_found", "status": 404})
            said = (AcceptConnection(), TextMessage(data=refusal), CloseConnection(code=4404))
            await theirs.send_all(b"".join(server.send(event) for event in said))
        command = Exec(websocket, TRIO)
        await command.begin(type="start", argv=["true"])
        with pytest.raises(ApiError, match="cannot find it"):
            await anext(aiter(command))


# -- a real command -----------------------------------------------------------------------------------------------


async def finish(command: Exec) -> tuple[bytes, bytes, Exited]:
    output = {"stdout": b"", "stderr": b""}
    async for event in command:
        if isinstance(event, Output):
            output[event.stream] += event.data
        elif isinstance(event, Exited):
            return output["stdout"], output["stderr"], event
    raise AssertionError("no exit")


async def test_the_first_event_is_the_start_and_the_last_the_exit(client: AsyncClient, sandbox: str) -> None:
    async with client.exec(sandbox, "echo out; echo err >&2; exit 3") as command:
        events = [event async for event in command]
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Exited)
    assert (events[-1].exit_code, events[-1].signal) == (3, None)
    assert {event.stream: event.data for event in events if isinstance(event, Output)} == {
        "stdout": b"out\n",
        "stderr": b"err\n",
    }
    with pytest.raises(StreamEnded):
        await command.receive()


async def test_stdin_of_many_windows_comes_back_whole(client: AsyncClient, sandbox: str) -> None:
    data = os.urandom(5 * STDIN_WINDOW + 17)

    async def feed(command: Exec) -> None:
        await command.send_stdin(data)
        await command.close_stdin()

    async with client.exec(sandbox, ["cat"], stdin=True) as command, trio.open_nursery() as nursery:
        nursery.start_soon(feed, command)
        stdout, _, exited = await finish(command)
    assert (stdout == data, exited.exit_code) == (True, 0)


async def test_a_command_that_does_not_read_holds_its_sender(client: AsyncClient, sandbox: str) -> None:
    piece = bytes(16 * 1024)
    sent = len(piece)

    async def feed(command: Exec) -> None:
        nonlocal sent
        while True:
            await command.send_stdin(piece)
            sent += len(piece)

    with trio.fail_after(LIMIT):
        async with (
            client.exec(sandbox, "sleep 1; echo alive", stdin=True) as command,
            trio.open_nursery() as nursery,
        ):
            await command.send_stdin(piece)
            nursery.start_soon(feed, command)
            assert isinstance(await command.receive(), Started)
            assert await command.receive() == Output("stdout", b"alive\n")
            nursery.cancel_scope.cancel()
    # The window, and what sandbox-init and the pipe hold: far from all that there was time for.
    assert sent <= 3 * STDIN_WINDOW


async def test_a_command_that_closed_its_stdin_refuses_more(client: AsyncClient, sandbox: str) -> None:
    with trio.fail_after(LIMIT):
        async with client.exec(sandbox, "exec <&-; echo closed; sleep 600", stdin=True) as command:
            while not isinstance(event := await command.receive(), Output):
                pass
            assert event.data == b"closed\n"
            await command.send_stdin(b"for nobody")
            while not isinstance(await command.receive(), StdinClosed):
                pass
            with pytest.raises(InputClosed):
                await command.send_stdin(b"more")


async def test_a_terminal_has_the_size_it_is_given(client: AsyncClient, sandbox: str) -> None:
    script = "stty size; trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.01; done"
    with trio.fail_after(LIMIT):
        async with client.exec(sandbox, script, terminal=(100, 30)) as command:
            seen = b""
            while b"ready\r\n" not in seen:
                event = await command.receive()
                seen += event.data if isinstance(event, Output) else b""
            await command.resize(cols=90, rows=20)
            rest, _, _ = await finish(command)
    assert seen.startswith(b"30 100\r\n")
    assert rest == b"20 90\r\n"


async def test_signals_and_kill(client: AsyncClient, sandbox: str) -> None:
    with trio.fail_after(LIMIT):
        async with client.exec(sandbox, ["sleep", "600"]) as command:
            await command.signal("SIGTERM")
            assert (await finish(command))[2].signal == "SIGTERM"
        async with client.exec(sandbox, "trap '' TERM; sleep 600 & wait") as command:
            await command.kill()
            assert (await finish(command))[2].exit_code == 137


async def test_a_time_limit(client: AsyncClient, sandbox: str) -> None:
    async with client.exec(sandbox, ["sleep", "600"], timeout_ms=100) as command:
        assert (await finish(command))[2].timed_out


async def test_leaving_kills_the_command(client: AsyncClient, sandbox: str) -> None:
    async with client.exec(sandbox, ["sleep", "600"]) as command:
        await command.receive()
    script = "for i in $(seq 3000); do pgrep sleep >/dev/null || exit 0; read -t 0.01 </dev/zero; done; exit 1"
    assert (await client.shell(sandbox, script)).exit_code == 0


@pytest.mark.parametrize(
    ("where", "what", "status"),
    [
        ("nonesuch", {}, 404),
        (None, {"user": "nonesuch"}, 422),
        (None, {"cwd": "/nonesuch"}, 422),
        (None, {"cwd": "x"}, 422),
    ],
)
async def test_refusals_are_the_daemons_own(
    client: AsyncClient, sandbox: str, where: str | None, what: dict[str, str], status: int
) -> None:
    with pytest.raises(ApiError) as caught:
        async with client.exec(where or sandbox, ["true"], **what) as command:
            await finish(command)
    assert caught.value.status == status
    assert caught.value.message.startswith("cannot")


async def test_the_sandbox_may_end_under_it(client: AsyncClient, sandbox: str) -> None:
    with trio.fail_after(LIMIT):
        async with client.exec(sandbox, ["sleep", "600"]) as command:
            await command.receive()
            await client.delete(sandbox)
            with pytest.raises((ApiError, ConnectionLost)):
                await finish(command)
