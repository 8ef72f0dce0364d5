"""The client over https, as where a proxy that speaks TLS stands before the daemon."""

import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from sandboxd.client import Client, DaemonUnreachable
from tests.client.test_background import output_until
from tests.support.daemon import Daemon

CERTIFICATE = Path(__file__).parents[1] / "http" / "tls.pem"
LIMIT = 60.0
MIB = 1024 * 1024


async def pass_on(source: Any, sink: Any) -> None:
    try:
        async for data in source:
            await sink.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    await sink.aclose()


@pytest.fixture
async def proxy(root_daemon: Daemon) -> AsyncIterator[str]:
    """Its address."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)

    async def serve(outside: Any) -> None:
        inside = await trio.open_unix_socket(str(root_daemon.socket))
        async with outside, inside, trio.open_nursery() as both:
            both.start_soon(pass_on, outside, inside)
            both.start_soon(pass_on, inside, outside)

    plain = trio.socket.socket()
    await plain.bind(("127.0.0.1", 0))
    plain.listen()
    listener: Any = trio.SSLListener(trio.SocketListener(plain), context, https_compatible=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"https://localhost:{plain.getsockname()[1]}"
        nursery.cancel_scope.cancel("the test is over")


async def test_requests_streams_and_websockets_pass(
    proxy: str, sandbox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    data = os.urandom(3 * MIB)
    with trio.fail_after(LIMIT):
        async with Client(proxy) as client:
            assert (await client.health()).status == "ok"
            assert await client.upload(sandbox, "file", data) == len(data)
            assert await client.read_bytes(sandbox, "file") == data
            async with client.shell_stream(sandbox, "cat", stdin=b"through") as events:
                seen = [event async for event in events]
            assert b"through" in [getattr(event, "data", b"") for event in seen]
            pty = await client.start_pty(sandbox, ["cat"])
            async with client.attach_pty(sandbox, pty.command_id) as terminal:
                await terminal.send_stdin(b"typed\r")
                await output_until(terminal, b"typed\r\ntyped\r\n")


async def test_a_certificate_of_somebody_else_is_refused(proxy: str) -> None:
    async with Client(proxy) as client:
        with pytest.raises(DaemonUnreachable, match=r"certificate verify failed"):
            await client.health()
