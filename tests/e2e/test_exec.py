"""Interactive commands over the websocket, with a client library that shares nothing with the server's."""

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from tests.support.daemon import Daemon, connect_unix
from tests.support.sandbox import Box
from tests.support.waiting import wait_until

LIMIT = 60.0
KIB = 1024


@pytest.fixture
def box(daemon: Daemon) -> Box:
    return Box(daemon, daemon.create())


@dataclass
class Session:
    """One websocket and what came of it."""

    socket: WebSocketConnection
    streams: dict[int, bytearray] = field(default_factory=lambda: {1: bytearray(), 2: bytearray()})
    messages: list[dict[str, Any]] = field(default_factory=list)

    async def say(self, **message: Any) -> None:
        await self.socket.send_message(json.dumps(message))

    async def type(self, data: bytes) -> None:
        await self.socket.send_message(data)

    async def read(self) -> dict[str, Any] | None:
        """The next frame: a message, or None for one of output (kept in `streams`)."""
        frame = await self.socket.get_message()
        if isinstance(frame, bytes):
            self.streams[frame[0]] += frame[1:]
            return None
        self.messages.append(json.loads(frame))
        return self.messages[-1]

    async def until(self, kind: str) -> dict[str, Any]:
        """Read on until such a message has come."""
        while (message := await self.read()) is None or message["type"] != kind:
            pass
        return message

    async def until_output(self, wanted: bytes, stream: int = 1) -> None:
        while wanted not in self.streams[stream]:
            await self.read()

    async def closed(self) -> int:
        """Read to the end; the close code."""
        try:
            while True:
                await self.read()
        except ConnectionClosed as closed:
            return int(closed.reason.code)

    @property
    def output(self) -> str:
        return self.streams[1].decode()


@asynccontextmanager
async def session(daemon: Daemon, sandbox: str) -> AsyncIterator[Session]:
    """Leaving the block cuts the connection, like a client that crashes."""
    sock = connect_unix(daemon.socket, limit=LIMIT)
    sock.setblocking(False)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    with trio.fail_after(LIMIT):
        async with stream, trio.open_nursery() as nursery:
            connection = await wrap_client_stream(nursery, stream, "localhost", f"/v1/sandboxes/{sandbox}/exec")
            yield Session(connection)
            nursery.cancel_scope.cancel("the client is gone")


async def off(call: Callable[..., Any], *arguments: Any) -> Any:
    """A synchronous call in a thread."""
    return await trio.to_thread.run_sync(call, *arguments)


async def test_a_command_from_start_to_exit(box: Box) -> None:
    async with session(box.daemon, box.id) as client:
        await client.say(type="start", cmd="echo out; echo err >&2; exit 4", stdin=False)
        told = await client.until("exit")
        assert client.messages[0]["type"] == "started"
        assert client.messages[0]["pid"] > 1
        assert (told["exit_code"], told["signal"], told["timed_out"]) == (4, None, False)
        assert (bytes(client.streams[1]), bytes(client.streams[2])) == (b"out\n", b"err\n")
        assert await client.closed() == 1000


async def test_stdin_flows_is_acknowledged_and_ends(box: Box) -> None:
    async with session(box.daemon, box.id) as client:
        await client.say(type="start", cmd="while read line; do echo got $line; done; echo end", stdin=True)
        await client.until("started")
        await client.type(b"one\n")
        await client.until_output(b"got one\n")
        await client.type(b"")  # nothing is a message too
        await client.type(b"two\n")
        await client.until_output(b"got two\n")
        await client.say(type="stdin_close")
        await client.until("exit")
        assert client.output == "got one\ngot two\nend\n"
        acknowledged = [message["total"] for message in client.messages if message["type"] == "stdin_ack"]
        assert acknowledged == sorted(acknowledged)
        assert acknowledged[-1] == 8


async def test_stdin_beyond_the_window_ends_the_conversation(box: Box) -> None:
    async with session(box.daemon, box.id) as client:
        await client.say(type="start", cmd="sleep 600", stdin=True)
        await client.until("started")
        with contextlib.suppress(ConnectionClosed):  # it may come while we still send
            for _ in range(40):
                await client.type(b"x" * 64 * KIB)
        assert await client.closed() == 4400
        assert client.messages[-1]["type"] == "error"
        assert "stdin" in client.messages[-1]["error"]
    await off(wait_until, lambda: box.processes() == [])


async def test_stdin_within_the_window_is_never_lost(box: Box) -> None:
    total, sent = 8 * KIB * KIB, 0
    async with session(box.daemon, box.id) as client:
        await client.say(type="start", cmd="sha256sum; wc -c < /dev/null", stdin=True)
        await client.until("started")
        while sent < total:
            acknowledged = max((m["total"] for m in client.messages if m["type"] == "stdin_ack"), default=0)
            if sent - acknowledged <= 512 * KIB:
                await client.type(b"y" * 64 * KIB)
                sent += 64 * KIB
            else:
                await client.read()
        await client.say(type="stdin_close")
        await client.until("exit")

    assert client.output.split()[0] == hashlib.sha256(b"y" * total).hexdigest()


async def test_a_terminal_is_one_with_a_size_that_can_change(box: Box) -> None:
    async with session(box.daemon, box.id) as client:
        await client.say(type="start", cmd="bash --norc -i", stdin=True, terminal={"cols": 91, "rows": 23})
        await client.until("started")
        await client.type(b"tty; stty size; echo do''nx\x7fe\r")  # with a typing mistake, and the key that mends it
        await client.until_output(b"done\r\n")
        assert "/dev/pts/" in client.output
        assert "23 91" in client.output
        await client.say(type="resize", cols=120, rows=40)
        await client.type(b"stty size\r")
        await client.until_output(b"40 120")
        await client.type(b"exit 6\r")
        assert (await client.until("exit"))["exit_code"] == 6


async def test_control_c_interrupts_the_foreground_only(box: Box) -> None:
    async with session(box.daemon, box.id) as client:
        await client.say(type="start", cmd="bash --norc -i", stdin=True, terminal={})
        await client.until("started")
        # From the foreground's own process group: the shell has handed it the terminal by then.
        await client.type(b"sh -c \"echo be''gun; exec sleep 600\"\r")
        await client.until_output(b"begun")
        await client.type(b"\x03")
        await client.type(b"echo sta''tus $?\r")
        await client.until_output(b"status 130")
        await client.type(b"\x04")
        await client.until("exit")


@pytest.mark.parametrize(("scope", "left"), [("leader", 1), ("group", 0), ("tree", 0)])
async def test_signals_reach_as_far_as_asked(box: Box, scope: str, left: int) -> None:
    async with session(box.daemon, box.id) as client:
        await client.say(type="start", cmd="sleep 600 >/dev/null 2>&1 & echo up; wait; sleep 600", stdin=False)
        await client.until_output(b"up\n")
        await client.say(type="signal", signal="SIGKILL", scope=scope)
        told = await client.until("exit")
        assert (told["signal"], told["exit_code"]) == ("SIGKILL", 137)
        # Killed is not gone: the exit of the first of them is told, whatever the others take.
        await off(wait_until, lambda: len(box.processes()) == left)


async def test_a_caught_signal_is_the_commands_own_business(box: Box) -> None:
    async with session(box.daemon, box.id) as client:
        await client.say(type="start", cmd="trap 'echo caught; exit 9' USR1; echo up; while :; do sleep 0.02; done")
        await client.until_output(b"up\n")
        await client.say(type="signal", signal="SIGUSR1")
        assert (await client.until("exit"))["exit_code"] == 9
        assert client.output == "up\ncaught\n"


async def test_kill_takes_everything_the_command_started(box: Box) -> None:
    """And all of it is gone when the exit is told, though the first process of many goes long before the last."""
    many = "for i in $(seq 400); do setsid sleep 600 > /dev/null 2>&1 & done"
    async with session(box.daemon, box.id) as client:
        await client.say(type="start", cmd=f"{many}; trap '' TERM; echo up; sleep 600")
        await client.until_output(b"up\n")
        await client.say(type="kill")
        assert (await client.until("exit"))["signal"] == "SIGKILL"
        assert await off(box.processes) == []


async def test_a_timeout_kills_and_says_so(box: Box) -> None:
    async with session(box.daemon, box.id) as client:
        await client.say(type="start", cmd="echo up; sleep 600", timeout_ms=500)
        told = await client.until("exit")
        assert (told["timed_out"], told["signal"]) == (True, "SIGKILL")


@pytest.mark.parametrize("terminal", [None, {}])
async def test_a_client_that_vanishes_takes_its_command_along(box: Box, terminal: dict[str, int] | None) -> None:
    async with session(box.daemon, box.id) as client:
        await client.say(type="start", cmd="setsid sleep 600 & echo up; sleep 600", stdin=True, terminal=terminal)
        await client.until_output(b"up")
    await off(wait_until, lambda: box.processes() == [])


async def test_the_sandboxs_end_is_told_before_the_close(box: Box) -> None:
    async with session(box.daemon, box.id) as client:
        await client.say(type="start", cmd="echo up; sleep 600")
        await client.until_output(b"up\n")
        await off(box.daemon.delete, box.id)
        code = await client.closed()
        assert (client.messages[-1]["kind"], client.messages[-1]["status"], code) == ("sandbox_lost", 410, 4410)


@pytest.mark.parametrize(
    ("start", "code"),
    [
        ("not json", 4400),
        ('{"type":"start"}', 4422),
        ('{"type":"start","cmd":"true","argv":["true"]}', 4422),
        ('{"type":"start","cmd":"true","surprise":1}', 4422),
        ('{"type":"start","cmd":"true","cwd":"/nowhere"}', 4422),
        ('{"type":"start","cmd":"true","user":"nobody-here"}', 4422),
        ('{"type":"start","cmd":"true","terminal":{"cols":0,"rows":1}}', 4422),
        ('{"type":"kill"}', 4422),
        ("[" * 100_000, 4400),
    ],
)
async def test_a_bad_start_is_answered_and_closed(box: Box, start: str, code: int) -> None:
    async with session(box.daemon, box.id) as client:
        await client.socket.send_message(start)
        assert await client.closed() == code
        assert client.messages[-1]["type"] == "error"
        assert client.messages[-1]["error"].startswith("cannot ")


@pytest.mark.parametrize(
    "message",
    [
        "not json",
        "{}",
        "[]",
        '"start"',
        '{"type":"dance"}',
        '{"type":"resize","cols":-1,"rows":1}',
        '{"type":"signal","signal":"SIGNOTHING"}',
        '{"type":"signal","signal":99999}',
        '{"type":"signal"}',
    ],
)
async def test_a_bad_message_ends_the_conversation_and_the_command(box: Box, message: str) -> None:
    async with session(box.daemon, box.id) as client:
        await client.say(type="start", cmd="echo up; sleep 600", stdin=True, terminal={})
        await client.until_output(b"up")
        await client.socket.send_message(message)
        assert await client.closed() in {4400, 4422}
    await off(wait_until, lambda: box.processes() == [])


async def test_an_unknown_sandbox_is_told(daemon: Daemon) -> None:
    async with session(daemon, "unknown") as client:
        await client.say(type="start", cmd="true")
        assert await client.closed() == 4404
        assert client.messages[-1]["status"] == 404


async def test_the_path_without_an_upgrade_is_no_websocket(box: Box) -> None:
    answer = await off(box.daemon.call, "GET", f"/v1/sandboxes/{box.id}/exec")
    assert 400 <= answer.status < 500
    assert answer.json["error"].startswith("cannot ")
