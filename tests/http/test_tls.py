"""TLS on a listener. The certificate beside this file is for these tests only, and so is its key."""

import dataclasses
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from sandboxd.http.server.connection import SandboxdApp
from sandboxd.http.server.listeners import TcpAddress, bind
from sandboxd.http.server.serving import Server, ServingLimits
from tests.http.support import PATIENCE, Http2Client

CERTIFICATE = Path(__file__).with_name("tls.pem")


@pytest.fixture
def handshake_timeout() -> float:
    return PATIENCE


@pytest.fixture
async def port(nursery: trio.Nursery, handshake_timeout: float) -> Any:
    app: Any = SandboxdApp("tls")

    @app.get("/ok")
    async def ok() -> str:
        return "ok"

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)
    context.set_alpn_protocols(["h2", "http/1.1"])
    stop = trio.Event()
    server = Server(app, limits=ServingLimits(tls_handshake_timeout=handshake_timeout))
    with bind([TcpAddress("127.0.0.1", 0)]) as (plain,):
        secure = dataclasses.replace(plain, tls=context)
        await nursery.start(partial(server.serve, [secure], stop=stop, grace=1))
        yield plain.socket.getsockname()[1]
        stop.set()
        assert server.statistics().failed == 0


async def connect(port: int, *, alpn: str) -> trio.SSLStream[trio.SocketStream]:
    context = ssl.create_default_context(cafile=str(CERTIFICATE))
    context.set_alpn_protocols([alpn])
    plain = await trio.open_tcp_stream("127.0.0.1", port)
    return trio.SSLStream(plain, context, server_hostname="sandboxd.test", https_compatible=True)


async def test_http1_over_tls(port: int) -> None:
    async with await connect(port, alpn="http/1.1") as stream:
        await stream.send_all(b"GET /ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        received = b""
        with trio.fail_after(PATIENCE):
            async for data in stream:
                received += data
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.endswith(b"ok")


async def test_http2_over_tls(port: int) -> None:
    async with await connect(port, alpn="h2") as stream:
        http = Http2Client(stream)
        assert await http.response(await http.request("GET", "/ok")) == ("200", b"ok")


@pytest.mark.parametrize("handshake_timeout", [0.5])
@pytest.mark.parametrize("raw", [b"GET /ok HTTP/1.1\r\nhost: x\r\n\r\n", b""])
async def test_client_that_speaks_no_tls_is_shown_the_door(port: int, raw: bytes) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(raw)
        with trio.fail_after(PATIENCE):
            try:
                async for _ in stream:
                    pass
            except trio.BrokenResourceError:
                pass
