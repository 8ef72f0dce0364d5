"""The client over https, to a listener with a certificate."""

import os
from pathlib import Path

import pytest
import trio

from sandboxd.client import AsyncClient, DaemonUnreachable
from tests.client.test_background import output_until
from tests.support.daemon import Daemon

CERTIFICATE = Path(__file__).parents[1] / "http" / "tls.pem"
LIMIT = 60.0
MIB = 1024 * 1024


@pytest.fixture
def secure(own_root_daemon: Daemon) -> str:
    """The address of a daemon that speaks TLS itself."""
    port = own_root_daemon.reserve_port()
    pair = f"{{certificate = '{CERTIFICATE}', key = '{CERTIFICATE}'}}"
    config = own_root_daemon.root / "tls.toml"
    config.write_text(f"listen = [{{address = 'tcp:127.0.0.1:{port}', tls = {pair}}}]")
    own_root_daemon.options = ("--config", str(config))
    own_root_daemon.start()
    return f"https://localhost:{port}"


async def test_requests_streams_and_websockets_pass(
    secure: str, own_root_daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    sandbox = own_root_daemon.create()
    key = own_root_daemon.call("POST", "/v1/keys", {"name": "tls", "scopes": ["write"]}).json["key"]
    data = os.urandom(3 * MIB)
    with trio.fail_after(LIMIT):
        async with AsyncClient(secure, api_key=key) as client:
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


async def test_a_certificate_of_somebody_else_is_refused(secure: str) -> None:
    async with AsyncClient(secure) as client:
        with pytest.raises(DaemonUnreachable, match=r"certificate verify failed"):
            await client.health()
