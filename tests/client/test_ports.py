"""Ports through the typed client: exposed, listed, and as byte streams, half-closed and reset."""

import hashlib

import pytest
import trio

from sandboxd.client import ApiError, AsyncClient, ConnectionLost, Output
from tests.support.daemon import Daemon
from tests.support.waiting import wait_until

MIB = 1024 * 1024
PORT = 7000

# What it does with a connection, by the first byte: digest all until the end and answer; send much; reset; echo.
PROGRAM = """
import hashlib, socket, struct, threading
def serve(sock):
    with sock:
        kind = sock.recv(1)
        if kind == b"d":
            digest = hashlib.sha256()
            while data := sock.recv(65536):
                digest.update(data)
            sock.sendall(digest.hexdigest().encode())
        elif kind == b"m":
            for _ in range(256):
                sock.sendall(b"x" * 65536)
        elif kind == b"r":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            while data := sock.recv(65536):
                sock.sendall(data)
listener = socket.create_server(("127.0.0.1", 7000))
print("listening", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def start(daemon: Daemon, sandbox: str) -> None:
    """The program, beside whatever else runs in the sandbox."""
    path = f"/v1/sandboxes/{sandbox}/files?path=/tmp/tcp.py"
    assert daemon.call("PUT", path, data=PROGRAM.encode()).status == 200
    daemon.shell(sandbox, "setsid python3 /tmp/tcp.py </dev/null >/tmp/tcp.log 2>&1 &")
    wait_until(lambda: daemon.shell(sandbox, "cat /tmp/tcp.log")["stdout"] == "listening\n")


@pytest.fixture
def served(root_daemon: Daemon, sandbox: str) -> str:
    start(root_daemon, sandbox)
    return sandbox


async def test_what_listens_is_listed_with_who_listens(client: AsyncClient, served: str) -> None:
    listening, exposed = await client.ports(served)
    (port,) = listening
    assert (port.port, port.addresses, port.reachable, port.command) == (PORT, ("127.0.0.1",), True, "python3")
    assert port.uid == 1000
    assert port.pid is not None
    assert exposed == []


async def test_other_addresses_are_listed_as_out_of_reach(client: AsyncClient, served: str) -> None:
    code = "import socket, time; s = socket.create_server(('127.0.0.9', 7009)); t = socket.socket(socket.AF_INET6); "
    code += "t.bind(('::', 7010)); t.listen(); print(1, flush=True); time.sleep(600)"
    async with client.exec(served, ["python3", "-c", code]) as command:
        while not isinstance(await command.receive(), Output):
            pass
        ports, _ = await client.ports(served)
    assert {port.port: (port.addresses, port.reachable) for port in ports[1:]} == {
        7009: (("127.0.0.9",), False),
        7010: (("::",), True),
    }


async def test_exposing_and_concealing(client: AsyncClient, served: str) -> None:
    exposed = await client.expose(served, PORT, token=True, ttl_ms=60_000)
    assert exposed.host.startswith(f"{PORT}-{served}.")
    assert exposed.protected
    assert exposed.token is not None
    (listed,) = (await client.ports(served))[1]
    assert (listed.port, listed.protected, listed.token) == (PORT, True, None)
    assert listed.end_at is not None
    await client.conceal(served, PORT)
    assert (await client.ports(served))[1] == []
    with pytest.raises(ApiError) as refused:
        await client.conceal(served, PORT)
    assert refused.value.status == 404


async def test_each_direction_ends_by_itself(client: AsyncClient, served: str) -> None:
    data = bytes(range(256)) * 20_000
    async with client.connect_port(served, PORT) as stream:
        await stream.send_all(b"d")
        await stream.send_all(data)
        await stream.send_eof()
        assert await receive_all(stream.receive_some) == hashlib.sha256(data).hexdigest().encode()
        assert await stream.receive_some() == b""


async def receive_all(receive: object) -> bytes:
    received = b""
    while data := await receive():  # type: ignore[operator]
        received += data
    return received


async def test_much_comes_whole_to_one_who_reads_late(client: AsyncClient, served: str) -> None:
    async with client.connect_port(served, PORT) as stream:
        await stream.send_all(b"m")
        assert await receive_all(stream.receive_some) == b"x" * (16 * MIB)


async def test_a_reset_is_no_end(client: AsyncClient, served: str) -> None:
    async with client.connect_port(served, PORT) as stream:
        await stream.send_all(b"r")
        with pytest.raises(ConnectionLost, match="reset"):
            await receive_all(stream.receive_some)


async def test_a_closed_port_says_so(client: AsyncClient, served: str) -> None:
    with pytest.raises(ApiError) as refused:
        async with client.connect_port(served, 9):
            pass
    assert (refused.value.status, refused.value.kind) == (502, "port_closed")
    with pytest.raises(ApiError) as refused:
        async with client.connect_port("none", 9):
            pass
    assert refused.value.status == 404


async def test_many_streams_at_once(client: AsyncClient, served: str) -> None:
    async def echo(number: int) -> None:
        async with client.connect_port(served, PORT) as stream:
            await stream.send_all(b"e")
            await stream.send_all(str(number).encode() * 1000)
            await stream.send_eof()
            assert await receive_all(stream.receive_some) == str(number).encode() * 1000

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(echo, number)
