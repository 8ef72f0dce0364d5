"""Connections to ports and sockets inside the sandbox."""

import errno
import os
import socket
from pathlib import Path

import pytest
import trio

from sandboxd.isolation.init.client import InitError
from tests.init.harness import RunningInit
from tests.support.waiting import PATIENCE

MIB = 1024 * 1024


async def echo(stream: trio.SocketStream) -> None:
    """Until the peer's half-close, then a farewell."""
    async with stream:
        async for data in stream:
            await stream.send_all(data)
        await stream.send_all(b"bye")


async def read_all(stream: trio.SocketStream) -> bytes:
    return b"".join([part async for part in stream])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_bytes_both_ways_and_half_close(init: RunningInit, host: str) -> None:
    listeners = await trio.open_tcp_listeners(0, host=host)
    port = listeners[0].socket.getsockname()[1]
    data = os.urandom(5 * MIB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, listeners)
        async with await init.client.connect_port(port) as stream, trio.open_nursery() as sending:

            async def send() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            sending.start_soon(send)
            assert await read_all(stream) == data + b"bye"
        nursery.cancel_scope.cancel()


async def test_server_that_speaks_first(init: RunningInit) -> None:
    async def greet(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"220 hello")

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, greet, listeners)
        for _ in range(20):
            async with await init.client.connect_port(listeners[0].socket.getsockname()[1]) as stream:
                assert await read_all(stream) == b"220 hello"
        nursery.cancel_scope.cancel()


async def test_unix_socket(init: RunningInit, directory: Path) -> None:
    listener = trio.socket.socket(socket.AF_UNIX)
    await listener.bind(str(directory / "echo"))
    listener.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, [trio.SocketListener(listener)])
        async with await init.client.connect_socket(str(directory / "echo")) as stream:
            await stream.send_all(b"hello ")
            await stream.send_eof()
            assert await read_all(stream) == b"hello bye"
        nursery.cancel_scope.cancel()


async def test_nobody_listening(init: RunningInit, directory: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(InitError, match="cannot connect to port") as raised:
            await init.client.connect_port(unused.getsockname()[1])
        assert (raised.value.kind, raised.value.errno) == ("connect", errno.ECONNREFUSED)
    with pytest.raises(InitError) as raised:
        await init.client.connect_socket(str(directory / "nothing"))
    assert raised.value.errno == errno.ENOENT


async def test_both_sides_notice_the_others_end(init: RunningInit) -> None:
    ended = trio.Event()

    async def wait_for_end(stream: trio.SocketStream) -> None:
        async with stream:
            await read_all(stream)
            ended.set()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, wait_for_end, listeners)
        stream = await init.client.connect_port(port)
        before = init.descriptors()
        await trio.aclose_forcefully(stream)
        with trio.fail_after(PATIENCE):
            await ended.wait()
            while init.descriptors() > before - 2:  # noqa: ASYNC110
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_slow_reader_holds_the_writer_back(release_init: RunningInit) -> None:
    sent = 0

    async def pour(stream: trio.SocketStream) -> None:
        nonlocal sent
        async with stream:
            with trio.move_on_after(0.5):
                while True:
                    await stream.send_all(bytes(64 * 1024))
                    sent += 64 * 1024

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, pour, listeners)
        async with await release_init.client.connect_port(port) as stream:
            await trio.sleep(0.6)
            assert sent < 20 * MIB
            assert release_init.resident_kb() < 1000
            assert len(await read_all(stream)) >= sent
        nursery.cancel_scope.cancel()
