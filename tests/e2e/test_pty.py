"""Terminals: polled as ai2in's client does, and shared over websockets; they outlive every client, and the daemon."""

import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from tests.support.daemon import Daemon, connect_unix
from tests.support.sandbox import Box
from tests.support.waiting import PATIENCE, wait_until

LIMIT = 60.0
KIB = 1024
MIB = 1024 * KIB


@pytest.fixture
def box(daemon: Daemon) -> Box:
    return Box(daemon, daemon.create())


@dataclass
class Pty:
    """A terminal over the polled API."""

    box: Box
    id: str
    seen: bytes = b""
    last: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(cls, box: Box, cmd: str | None = "bash --norc -i", **body: Any) -> "Pty":
        answer = box.answer("pty", {"cmd": cmd, "cols": 80, "rows": 24, "cwd": None, "env": None, **body})
        assert answer.status == 201, answer.data
        assert answer.json["pid"] > 1
        return cls(box, answer.json["pty_id"])

    @property
    def path(self) -> str:
        return f"/v1/sandboxes/{self.box.id}/pty/{self.id}"

    def post(self, operation: str, body: Any = None) -> Any:
        answer = self.box.daemon.call("POST", f"{self.path}/{operation}", body)
        assert answer.status == 200, answer.data
        return answer.json

    def type(self, data: bytes) -> Any:
        return self.post("input", {"data_b64": base64.b64encode(data).decode()})

    def read(self, **body: Any) -> bytes:
        self.last = self.post("output", body or None)
        data = base64.b64decode(self.last["data_b64"])
        self.seen += data
        return data

    def read_until(self, wanted: bytes) -> None:
        deadline = time.monotonic() + PATIENCE
        while wanted not in self.seen:
            assert time.monotonic() < deadline, self.seen
            self.read(wait_ms=1000)

    def view(self) -> Any:
        return self.box.daemon.call("GET", self.path).json


# -- polled -------------------------------------------------------------------------------------------------------


def test_a_terminal_polled_from_start_to_end(box: Box) -> None:
    pty = Pty.start(box, cols=91, rows=23)
    pty.type(b"tty; stty size; echo do''nx\x7fe\r")  # with a typing mistake, and the key that mends it
    pty.read_until(b"done\r\n")
    assert b"/dev/pts/" in pty.seen
    assert b"23 91" in pty.seen
    assert pty.last["alive"] is True
    assert pty.last["exit_code"] is None
    resized = pty.post("resize", {"cols": 120, "rows": 40})
    assert resized["terminal"] == {"cols": 120, "rows": 40}
    pty.type(b"stty size\r")
    pty.read_until(b"40 120")
    pty.type(b"exit 6\r")
    while pty.last["alive"]:
        pty.read(wait_ms=1000)
    assert pty.last["exit_code"] == 6
    assert pty.read() == b""
    assert pty.view()["status"] == "exited"


def test_by_default_it_is_a_login_shell(box: Box) -> None:
    answer = box.daemon.call("POST", f"/v1/sandboxes/{box.id}/pty")
    assert answer.status == 201
    pty = Pty(box, answer.json["pty_id"])
    pty.type(b"shopt login_shell; stty size; id -un; pwd\r")
    pty.read_until(b"/home/user\r\n")
    assert b"login_shell    \ton" in pty.seen
    assert b"24 80" in pty.seen


def test_output_drains(box: Box) -> None:
    pty = Pty.start(box, "stty -echo; echo one; read l; echo two; read l")
    pty.read_until(b"one\r\n")
    assert pty.read() == b""
    pty.type(b"\r")
    pty.read_until(b"two\r\n")
    assert pty.seen == b"one\r\ntwo\r\n"


def test_output_that_is_split_comes_whole(box: Box) -> None:
    pty = Pty.start(box, f"head -c {3 * MIB} /dev/zero | tr '\\0' x; exit 2")
    while not pty.last or pty.last["alive"]:
        pty.read(limit_bytes=100_000, wait_ms=1000)
    assert pty.seen == b"x" * 3 * MIB
    assert pty.last["exit_code"] == 2


def test_it_is_in_both_lists_and_a_command_is_in_one(box: Box) -> None:
    pty = Pty.start(box, "sleep 600")
    plain = box.answer("commands", {"cmd": "sleep 600"}).json["command_id"]
    ptys = box.daemon.call("GET", f"/v1/sandboxes/{box.id}/pty").json["ptys"]
    commands = box.daemon.call("GET", f"/v1/sandboxes/{box.id}/commands").json["commands"]
    assert [view["pty_id"] for view in ptys] == [pty.id]
    assert [view["command_id"] for view in commands] == [pty.id, plain]
    assert box.daemon.call("GET", f"/v1/sandboxes/{box.id}/pty/{plain}").status == 404
    assert pty.post("kill")["status"] == "killed"


def test_typing_into_what_has_ended_is_a_conflict(box: Box) -> None:
    pty = Pty.start(box, "true")
    wait_until(lambda: pty.view()["status"] == "exited")
    for operation, body in (("input", {"data_b64": "eA=="}), ("resize", {"cols": 1, "rows": 1})):
        answer = box.daemon.call("POST", f"{pty.path}/{operation}", body)
        assert (answer.status, answer.json["kind"]) == (409, "ended")
    assert pty.post("kill")["status"] == "exited"


@pytest.mark.parametrize(
    "body", [{"cols": 0}, {"rows": 70000}, {"cmd": "true", "argv": ["true"]}, {"cmd": "a\0b"}, {"surprise": 1}]
)
def test_a_bad_start_is_refused(box: Box, body: dict[str, Any]) -> None:
    assert box.answer("pty", body).status == 422
    assert box.daemon.call("GET", f"/v1/sandboxes/{box.id}/pty").json["ptys"] == []


# -- shared -------------------------------------------------------------------------------------------------------


@dataclass
class Client:
    """One websocket at a terminal, and what came of it."""

    socket: WebSocketConnection
    seen: bytearray = field(default_factory=bytearray)
    messages: list[dict[str, Any]] = field(default_factory=list)

    async def say(self, **message: Any) -> None:
        await self.socket.send_message(json.dumps(message))

    async def type(self, data: bytes) -> None:
        await self.socket.send_message(data)

    async def read(self) -> dict[str, Any] | None:
        frame = await self.socket.get_message()
        if isinstance(frame, bytes):
            assert frame[0] == 1
            self.seen += frame[1:]
            return None
        self.messages.append(json.loads(frame))
        return self.messages[-1]

    async def until(self, kind: str) -> dict[str, Any]:
        while (message := await self.read()) is None or message["type"] != kind:
            pass
        return message

    async def until_output(self, wanted: bytes) -> None:
        while wanted not in self.seen:
            await self.read()

    async def until_taken(self, total: int) -> None:
        while {"type": "stdin_ack", "total": total} not in self.messages:
            await self.read()

    async def until_prompt(self) -> None:
        """Until bash asks for the next line, after the last one that was output."""
        while not self.seen.endswith(b"$ "):
            await self.read()

    async def closed(self) -> int:
        try:
            while True:
                await self.read()
        except ConnectionClosed as closed:
            return int(closed.reason.code)


@asynccontextmanager
async def joined(pty: Pty, **wish: Any) -> AsyncIterator[Client]:
    """A client at the terminal. Leaving the block cuts the connection, like a client that crashes."""
    sock = connect_unix(pty.box.daemon.socket, limit=LIMIT)
    sock.setblocking(False)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    with trio.fail_after(LIMIT):
        async with stream, trio.open_nursery() as nursery:
            client = Client(await wrap_client_stream(nursery, stream, "localhost", f"{pty.path}/ws"))
            await client.say(type="attach", **wish)
            yield client
            nursery.cancel_scope.cancel("the client is gone")


async def off(call: Any, *arguments: Any) -> Any:
    return await trio.to_thread.run_sync(call, *arguments)


async def test_a_websocket_from_attach_to_exit(box: Box) -> None:
    pty = await off(Pty.start, box)
    async with joined(pty, size={"cols": 100, "rows": 30}) as client:
        hello = await client.until("attached")
        assert (hello["pty_id"], hello["writer"], hello["offset"], hello["status"]) == (pty.id, True, 0, "running")
        await client.type(b"stty size\r")
        await client.until_output(b"30 100")
        await client.say(type="resize", cols=60, rows=20)
        await client.type(b"stty size; read l; exit 4\r")
        await client.until_output(b"20 60")
        await client.until_taken(10 + 26)
        await client.type(b"\r")
        told = await client.until("exit")
        assert (told["exit_code"], told["status"]) == (4, "exited")
        assert await client.closed() == 1000


async def test_a_disconnect_kills_nothing_and_a_reconnect_replays(box: Box) -> None:
    pty = await off(Pty.start, box)
    async with joined(pty) as client:
        await client.type(b"word=kept; echo first\r")
        await client.until_output(b"first\r\n")
        offset = (await off(box.daemon.call, "GET", pty.path)).json["pid"]
        assert offset
    seen = len(client.seen)
    # "take": the daemon may not have seen yet that the first has left.
    async with joined(pty, offset=0, write="take") as again:
        await again.type(b"echo $word again\r")
        await again.until_output(b"kept again")
        assert again.seen.startswith(client.seen)
        assert (await again.until("stdin_ack") if not again.messages else again.messages[0])["offset"] == 0
    async with joined(pty, offset=seen) as later:
        await later.until_output(b"kept again")
        same = min(len(again.seen), seen + len(later.seen))
        assert (client.seen + later.seen)[:same] == again.seen[:same]
    async with joined(pty, tail=5) as tail:
        hello = await tail.until("attached")
        assert hello["offset"] == hello["end"] - 5 >= len(again.seen) - 5
        while len(tail.seen) < 5:
            await tail.read()


async def test_one_writes_and_the_others_watch_until_one_takes_over(box: Box) -> None:
    pty = await off(Pty.start, box)
    async with joined(pty) as first, joined(pty, write="never") as watcher:
        assert (await first.until("attached"))["writer"] is True
        assert (await watcher.until("attached"))["writer"] is False
        async with joined(pty) as second:
            assert (await second.until("attached"))["writer"] is False
            await second.type(b"echo in''truder\r")
            refused = await second.until("refused")
            assert (refused["kind"], refused["error"][:7]) == ("not_writer", "cannot ")
            await second.say(type="take_over")
            assert (await second.until("writer"))["writer"] is True
            assert (await first.until("writer"))["reason"] == "taken_over"
            await first.type(b"echo too''late\r")
            await first.until("refused")
            await second.type(b"echo by''second\r")
            for client in (first, second, watcher):
                await client.until_output(b"bysecond\r\n")
                assert b"intruder" not in client.seen
                assert b"toolate" not in client.seen
            await second.say(type="release")
            assert (await second.until("writer"))["writer"] is False
        async with joined(pty) as third:
            assert (await third.until("attached"))["writer"] is True


async def test_a_writer_that_asked_for_it_is_closed_when_taken_over(box: Box) -> None:
    pty = await off(Pty.start, box)
    async with joined(pty, on_take_over="close") as first:
        await first.until("attached")
        async with joined(pty, write="take") as second:
            assert (await second.until("attached"))["writer"] is True
            assert await first.closed() == 4409
            await second.type(b"exit\r")
            assert await second.closed() == 1000


async def test_a_slow_client_holds_back_nobody_and_is_told_of_its_gap(box: Box) -> None:
    pty = await off(Pty.start, box, "read l; head -c 60000000 /dev/zero | tr '\\0' x; echo end")
    async with joined(pty, write="never", offset=0) as slow:
        await slow.until("attached")
        async with joined(pty) as client:
            await client.type(b"\r")
            await client.until("exit")  # while the slow one reads nothing
            assert bytes(client.seen).endswith(b"xend\r\n")
        lost = 0
        while (message := await slow.read()) is None or message["type"] != "exit":
            lost += message["lost_bytes"] if message is not None and message["type"] == "gap" else 0
        assert bytes(slow.seen).endswith(b"xend\r\n")
        assert lost > 0
        assert lost + len(slow.seen) == len(b"\r\n") + 60_000_000 + len(b"end\r\n")


async def test_control_c_and_bytes_of_all_kinds(box: Box) -> None:
    pty = await off(Pty.start, box)
    async with joined(pty) as client:
        await client.type(b"sh -c \"echo be''gun; exec sleep 600\"\r")
        await client.until_output(b"begun")
        await client.type(b"\x03")
        await client.type("echo sta''tus $? Grüße €\r".encode())
        await client.until_output("status 130 Grüße €\r\n".encode())
        # Typed before bash has the terminal to itself again, that is no end of a file to it.
        await client.until_prompt()
        await client.type(b"\x04")
        await client.until("exit")


async def test_deleting_the_sandbox_says_so(box: Box) -> None:
    pty = await off(Pty.start, box)
    async with joined(pty) as client:
        await client.until("attached")
        await off(box.daemon.delete, box.id)
        assert await client.closed() == 4410
        assert client.messages[-1]["kind"] == "sandbox_lost"


async def test_a_terminal_that_has_ended_can_still_be_seen(box: Box) -> None:
    pty = await off(Pty.start, box, "echo gone; exit 3")
    await off(wait_until, lambda: pty.view()["status"] == "exited")
    async with joined(pty) as client:
        assert (await client.until("exit"))["exit_code"] == 3
        assert client.seen == b"gone\r\n"
        assert await client.closed() == 1000


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("not json", 4400),
        ('{"type":"start"}', 4422),
        ('{"type":"attach","write":"always"}', 4422),
        ('{"type":"attach","offset":1,"tail":1}', 4422),
        ('{"type":"attach","offset":-1}', 4422),
    ],
)
async def test_a_bad_attach_is_answered_and_closed(box: Box, message: str, code: int) -> None:
    pty = await off(Pty.start, box, "sleep 600")
    sock = connect_unix(box.daemon.socket, limit=LIMIT)
    sock.setblocking(False)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    with trio.fail_after(LIMIT):
        async with stream, trio.open_nursery() as nursery:
            client = Client(await wrap_client_stream(nursery, stream, "localhost", f"{pty.path}/ws"))
            await client.socket.send_message(message)
            assert await client.closed() == code
            assert client.messages[-1]["error"].startswith("cannot ")
            nursery.cancel_scope.cancel()
    assert (await off(pty.view))["status"] == "running"


@pytest.mark.parametrize(
    "message", ["not json", "{}", '{"type":"dance"}', '{"type":"resize","cols":-1,"rows":1}', '{"type":"signal"}']
)
async def test_a_bad_message_ends_the_conversation_and_not_the_terminal(box: Box, message: str) -> None:
    pty = await off(Pty.start, box, "sleep 600")
    async with joined(pty) as client:
        await client.until("attached")
        await client.socket.send_message(message)
        assert await client.closed() in {4400, 4422}
    assert (await off(pty.view))["status"] == "running"


async def test_an_unknown_terminal_is_told(box: Box) -> None:
    async with joined(Pty(box, "p0")) as client:
        assert await client.closed() == 4404


# -- and the daemon's end -----------------------------------------------------------------------------------------


@pytest.fixture
def own_box(own_daemon: Daemon) -> Box:
    own_daemon.start()
    return Box(own_daemon, own_daemon.create())


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_terminal_outlives_the_daemon(own_box: Box, how: str) -> None:
    pty = await off(Pty.start, own_box)
    async with joined(pty) as client:
        await client.type(b"word=kept; echo be''fore\r")
        await client.until_output(b"before\r\n")
        await off(getattr(own_box.daemon, how))
        with contextlib.suppress(ConnectionClosed, trio.BrokenResourceError):
            assert await client.closed() in {1001, 1006}
    await off(own_box.daemon.start)
    async with joined(pty, offset=len(client.seen)) as again:
        await again.type(b"echo $word af''ter\r")
        await again.until_output(b"kept after\r\n")
        await again.type(b"exit 5\r")
        assert (await again.until("exit"))["exit_code"] == 5


def test_what_was_drained_stays_drained_over_a_restart(own_box: Box) -> None:
    pty = Pty.start(own_box, "stty -echo; echo one; read l; echo two; read l")
    pty.read_until(b"one\r\n")
    own_box.daemon.kill()
    own_box.daemon.start()
    pty.type(b"\r")
    pty.read_until(b"two\r\n")
    assert pty.seen == b"one\r\ntwo\r\n"


# -- flow control -------------------------------------------------------------------------------------------------


async def test_behind_a_flood_a_slow_client_sees_its_interrupt_soon(box: Box) -> None:
    """The client that types sets the pace: after its ctrl-c comes what was on its way, not megabytes of the past."""
    pty = await off(Pty.start, box)
    async with joined(pty) as client:
        await client.until_prompt()
        await client.type(b"PS1=ready'>'; seq 1 1000000000\r")
        while len(client.seen) < MIB:
            await client.read()
        await trio.sleep(1)  # in which the program would write tens of megabytes
        before = len(client.seen)
        await client.type(b"\x03")
        await client.until_output(b"ready>")
        assert len(client.seen) - before < 2 * MIB
        numbers = [int(line) for line in client.seen.split(b"\r\n") if line.isdigit()]
        assert len(numbers) > 100_000
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))  # and nothing of it is missing


async def test_an_observer_that_does_not_read_holds_nobody_up(box: Box) -> None:
    pty = await off(Pty.start, box)
    async with joined(pty) as client, joined(pty, write="never"):
        await client.until_prompt()
        await client.type(b"PS1=ready'>'; seq 1 1000000\r")
        await client.until_output(b"ready>")
        assert b"\r\n1000000\r\n" in client.seen
