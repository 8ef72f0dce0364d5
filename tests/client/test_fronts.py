"""The client where there is no trio: on blocking sockets, with threads and without, and on asyncio."""

import asyncio
import inspect
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sandboxd.client import (
    ApiError,
    AsyncClient,
    Client,
    ClientError,
    DaemonUnreachable,
    Ended,
    Exited,
    InputClosed,
    Output,
    Started,
    StreamEnded,
    TimedOut,
)
from sandboxd.client.execution import STDIN_WINDOW
from tests.support.daemon import Daemon

MIB = 1024 * 1024
LIMIT = 60.0

# What a program that only calls the daemon is not to pay for at its start.
HEAVY = ("trio", "asyncio", "ssl", "wsproto", "pydantic", "quart", "hypercorn", "rich", "click", "logging", "sqlite3")


def test_importing_the_client_loads_no_event_loop_and_nothing_heavy() -> None:
    program = "import sys, sandboxd.client; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    ).stdout.split()
    assert "h11" in loaded
    assert not set(HEAVY) & set(loaded)
    assert {name for name in loaded if name.startswith("sandboxd.")} == {
        name for name in loaded if name.startswith(("sandboxd.client", "sandboxd.paths", "sandboxd.errors"))
    }


def test_both_fronts_have_the_same_methods_with_the_same_words() -> None:
    for name, method in inspect.getmembers(AsyncClient, callable):
        if not name.startswith("_"):
            blocking = getattr(Client, name)
            assert blocking.__doc__ == method.__doc__, name
            assert inspect.signature(blocking) == inspect.signature(method), name


def test_only_a_loop_makes_an_asynchronous_client() -> None:
    with pytest.raises(RuntimeError, match="use Client elsewhere"):
        AsyncClient()


# -- blocking -----------------------------------------------------------------------------------------------------


@pytest.fixture
def client(root_daemon: Daemon) -> Iterator[Client]:
    with Client(f"unix:{root_daemon.socket}", timeout=LIMIT) as client:
        yield client


def test_a_sandboxs_life(client: Client) -> None:
    sandbox = client.create(metadata={"front": "blocking"})
    assert [each.id for each in client.sandboxes(metadata={"front": "blocking"})] == [sandbox.id]
    assert client.get(sandbox) == client.get(sandbox.id)
    result = client.shell(sandbox, "echo out; exit 3")
    assert (result.stdout, result.exit_code) == (b"out\n", 3)
    with client.shell_stream(sandbox, "echo streamed") as events:
        assert b"streamed\n" in [event.data for event in events if isinstance(event, Output)]
    client.delete(sandbox)
    with pytest.raises(ApiError) as refused:
        client.get(sandbox)
    assert (refused.value.status, refused.value.kind) == (404, "not_found")


def test_files_go_in_and_out(client: Client, sandbox: str, tmp_path: Path) -> None:
    data = os.urandom(3 * MIB)
    (tmp_path / "file").write_bytes(data)
    with open(tmp_path / "file", "rb") as file:
        assert client.upload(sandbox, "from-a-file", file) == len(data)
    with client.download(sandbox, "from-a-file") as download:
        assert download.size == len(data)
        assert b"".join(download) == data
    assert client.read_bytes(sandbox, "from-a-file") == data
    assert client.upload(sandbox, "pieces", (piece for piece in (b"a", b"b", b"c"))) == 3
    assert client.read_text(sandbox, "pieces") == "abc"
    client.mkdir(sandbox, "many")
    for number in range(5):
        client.upload(sandbox, f"many/{number}", b"")
    assert [info.name for info in client.list_files(sandbox, "many", page=2)] == ["0", "1", "2", "3", "4"]


def test_an_upload_that_is_refused_early_is_told_and_not_sent_to_its_end(client: Client, sandbox: str) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield bytes(64 * 1024)

    with pytest.raises(ApiError) as refused:
        client.upload(sandbox, "/proc/version", endless())
    assert 400 <= refused.value.status < 500
    assert sent * 64 * 1024 < 256 * MIB


def test_stdin_of_many_windows_comes_back_whole_in_one_thread(client: Client, sandbox: str) -> None:
    data = os.urandom(5 * STDIN_WINDOW + 17)
    with client.exec(sandbox, ["cat"], stdin=True) as command:
        command.send_stdin(data)
        command.close_stdin()
        events = list(command)
    assert isinstance(events[0], Started)
    assert b"".join(event.data for event in events if isinstance(event, Output)) == data
    assert isinstance(events[-1], Exited)
    with pytest.raises(StreamEnded):
        command.receive()


def test_one_thread_sends_while_another_receives(client: Client, sandbox: str) -> None:
    data = os.urandom(5 * STDIN_WINDOW + 17)

    with client.exec(sandbox, ["cat"], stdin=True) as command:

        def feed() -> None:
            command.send_stdin(data)
            command.close_stdin()

        thread = threading.Thread(target=feed)
        thread.start()
        received = b"".join(event.data for event in command if isinstance(event, Output))
        thread.join(LIMIT)
    assert not thread.is_alive()
    assert received == data


def test_a_command_that_stops_reading_ends_the_sending(client: Client, sandbox: str) -> None:
    with client.exec(sandbox, "exec <&-; sleep 60", stdin=True) as command:
        for _ in range(3):
            try:
                command.send_stdin(bytes(MIB))
            except InputClosed:
                return
    pytest.fail("more than two windows were sent to a command that reads nothing")


def test_a_terminal_and_a_background_command(client: Client, sandbox: str) -> None:
    terminal = client.start_pty(sandbox, ["cat"])
    with client.attach_pty(sandbox, terminal.command_id) as place:
        place.resize(cols=100, rows=30)
        place.send_stdin(b"typed\r")
        shown = b""
        while shown.count(b"typed") < 2:
            event = place.receive()
            shown += event.data if isinstance(event, Output) else b""
        assert place.offset >= len(shown)
        place.kill()
    command = client.start_command(sandbox, "echo one; echo two >&2")
    with client.follow_logs(sandbox, command.command_id) as events:
        seen = list(events)
    assert {event.data for event in seen if isinstance(event, Output)} == {b"one\n", b"two\n"}
    assert isinstance(seen[-1], Ended)


def test_a_port(client: Client, sandbox: str) -> None:
    program = (
        "import socket as s; c = s.create_server(('127.0.0.1', 7000)).accept()[0]; c.sendall(c.recv(100).upper())"
    )
    client.start_command(sandbox, ["python3", "-c", program])
    while not client.ports(sandbox)[0]:
        pass
    with client.connect_port(sandbox, 7000) as stream:
        stream.send_all(b"hello")
        stream.send_eof()
        received = b""
        while piece := stream.receive_some():
            received += piece
    assert received == b"HELLO"


def test_threads_share_a_client(client: Client, sandbox: str) -> None:
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(5):
                assert client.shell(sandbox, f"echo {number}").stdout == f"{number}\n".encode()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert failed == []


def test_a_silent_daemon_is_waited_for_as_long_as_told(tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        with Client(f"unix:{tmp_path}/socket", timeout=0.05) as client, pytest.raises(TimedOut, match=r"0\.05 s"):
            client.health()


def test_no_daemon_is_told(tmp_path: Path) -> None:
    with Client(f"unix:{tmp_path}/none") as client, pytest.raises(DaemonUnreachable, match="no such socket"):
        client.health()


def test_what_must_wait_is_refused_by_the_client_that_cannot(client: Client, sandbox: str) -> None:
    class Wait:
        def __await__(self) -> Iterator[None]:
            yield

    async def slow() -> AsyncIterator[bytes]:
        await Wait()
        yield b""

    with pytest.raises(RuntimeError, match="asynchronous iterator"):
        client.upload(sandbox, "file", slow())
    assert client.health().status == "ok"


# -- asyncio ------------------------------------------------------------------------------------------------------


def test_a_sandboxs_life_on_asyncio(root_daemon: Daemon, sandbox: str) -> None:
    data = os.urandom(5 * STDIN_WINDOW + 17)

    async def life() -> None:
        async with AsyncClient(f"unix:{root_daemon.socket}") as client:
            assert (await client.shell(sandbox, "echo out; exit 3")).exit_code == 3
            assert await client.upload(sandbox, "file", data) == len(data)
            assert await client.read_bytes(sandbox, "file") == data
            async with client.exec(sandbox, ["cat"], stdin=True) as command:
                feeding = asyncio.create_task(feed(command.send_stdin, command.close_stdin))
                events = [event async for event in command]
                await feeding
            assert b"".join(event.data for event in events if isinstance(event, Output)) == data
            results = await asyncio.gather(*(client.shell(sandbox, f"echo {number}") for number in range(8)))
            assert [result.stdout for result in results] == [f"{number}\n".encode() for number in range(8)]
            with pytest.raises(ApiError):
                await client.upload(sandbox, "/proc/version", endless())

    async def feed(send: "object", close: "object") -> None:
        await send(data)  # type: ignore[operator]
        await close()  # type: ignore[operator]

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(64 * 1024)

    asyncio.run(asyncio.wait_for(life(), LIMIT))


def test_a_call_that_asyncio_cancels_ends_its_command(root_daemon: Daemon, sandbox: str) -> None:
    async def give_up() -> None:
        async with AsyncClient(f"unix:{root_daemon.socket}") as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await client.shell(sandbox, "exec sleep 987")
            gone = "while pgrep -f 'sleep 98[7]'; do sleep 0.1; done >/dev/null"
            assert (await client.shell(sandbox, gone)).exit_code == 0

    asyncio.run(asyncio.wait_for(give_up(), LIMIT))


def test_a_port_and_no_daemon_on_asyncio(root_daemon: Daemon, sandbox: str, tmp_path: Path) -> None:
    async def reach() -> None:
        async with AsyncClient(f"unix:{root_daemon.socket}") as client:
            with pytest.raises(ClientError, match="nothing listens"):
                async with client.connect_port(sandbox, 7001):
                    pass
        async with AsyncClient(f"unix:{tmp_path}/none") as client:
            with pytest.raises(DaemonUnreachable, match="no such socket"):
                await client.health()

    asyncio.run(asyncio.wait_for(reach(), LIMIT))
