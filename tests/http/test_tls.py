"""TLS on a listener. The certificate beside this file is for these tests only, and so is its key."""

import contextlib
import dataclasses
import logging
import os
import ssl
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from sandboxd.errors import StartupError
from sandboxd.http.server.connection import SandboxdApp
from sandboxd.http.server.listeners import TcpAddress, bind
from sandboxd.http.server.serving import Server, ServingLimits
from sandboxd.http.server.tls import ServerTls
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

    stop = trio.Event()
    server = Server(app, limits=ServingLimits(tls_handshake_timeout=handshake_timeout))
    with bind([TcpAddress("127.0.0.1", 0)]) as (plain,):
        secure = dataclasses.replace(plain, tls=ServerTls(CERTIFICATE, CERTIFICATE))
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


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
async def test_tls_is_spoken_from_1_2_on(port: int, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=str(CERTIFICATE))
    context.set_ciphers("ALL:@SECLEVEL=0")  # or this end would not offer the old ones
    with (
        pytest.warns(DeprecationWarning, match="is deprecated")
        if version < ssl.TLSVersion.TLSv1_2
        else contextlib.nullcontext()
    ):
        context.minimum_version = context.maximum_version = version
    plain = await trio.open_tcp_stream("127.0.0.1", port)
    stream = trio.SSLStream(plain, context, server_hostname="sandboxd.test", https_compatible=True)
    try:
        with trio.fail_after(PATIENCE):
            await stream.do_handshake()
    except trio.BrokenResourceError:
        assert version < ssl.TLSVersion.TLSv1_2
    else:
        assert version == ssl.TLSVersion.TLSv1_2
    finally:
        await trio.aclose_forcefully(stream)


# What the files may be


def make_pair(directory: Path, name: str, *options: str) -> tuple[Path, Path]:
    certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
    kind = options or ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    subject = ("-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    command = ("openssl", "req", "-x509", *kind, "-days", "2", *subject, "-out", certificate, "-keyout", key)
    subprocess.run(command, check=True, capture_output=True)
    key.chmod(0o600)
    return certificate, key


def test_a_pair_in_two_files_is_taken(tmp_path: Path) -> None:
    assert ServerTls(*make_pair(tmp_path, "one")).context


@pytest.mark.parametrize("what", ["certificate", "key"])
@pytest.mark.parametrize(
    ("content", "hint"), [(None, "there is no such file"), (b"", "in PEM form"), (b"\xff\x00 none", "in PEM form")]
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, what: str, content: bytes | None, hint: str) -> None:
    certificate, key = make_pair(tmp_path, "one")
    broken = certificate if what == "certificate" else key
    broken.unlink() if content is None else broken.write_bytes(content)
    with pytest.raises(StartupError, match=f"^cannot use the TLS {what} {broken}: .*{hint}"):
        ServerTls(certificate, key)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_key_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    certificate, key = make_pair(tmp_path, "one")
    key.chmod(0)
    with pytest.raises(StartupError, match=f"^cannot use the TLS key {key}: Permission denied"):
        ServerTls(certificate, key)


def test_a_directory_is_no_certificate(tmp_path: Path) -> None:
    _, key = make_pair(tmp_path, "one")
    with pytest.raises(StartupError, match=f"^cannot use the TLS certificate {tmp_path}: Is a directory"):
        ServerTls(tmp_path, key)


def test_the_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    (certificate, _), (_, key) = make_pair(tmp_path, "one"), make_pair(tmp_path, "two")
    with pytest.raises(StartupError, match=f"^cannot use the TLS key {key}: it is not the one to .*one.crt"):
        ServerTls(certificate, key)


def test_a_key_with_a_passphrase_is_refused_rather_than_asked_for(tmp_path: Path) -> None:
    certificate, key = make_pair(tmp_path, "one", "-newkey", "rsa:2048", "-passout", "pass:secret")
    with pytest.raises(StartupError, match=f"^cannot use the TLS key {key}: a passphrase protects it"):
        ServerTls(certificate, key)


def test_a_weak_certificate_is_refused(tmp_path: Path) -> None:
    certificate, key = make_pair(tmp_path, "one", "-newkey", "rsa:1024", "-nodes")
    with pytest.raises(StartupError, match=f"^cannot use the TLS certificate {certificate}: .* too weak"):
        ServerTls(certificate, key)


def test_a_key_that_everyone_can_read_is_worth_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certificate, key = make_pair(tmp_path, "one")
    with caplog.at_level(logging.WARNING):
        ServerTls(certificate, key)
        assert not caplog.records
        key.chmod(0o604)
        ServerTls(certificate, key)
    assert f"chmod o-r {key}" in caplog.text


def test_a_bad_new_pair_leaves_the_old_one_in_use(tmp_path: Path) -> None:
    certificate, key = make_pair(tmp_path, "one")
    tls = ServerTls(certificate, key)
    before = tls.context
    make_pair(tmp_path, "two")[1].rename(key)
    with pytest.raises(StartupError, match="not the one"):
        tls.reload()
    assert tls.context is before
    make_pair(tmp_path, "one")
    tls.reload()
    assert tls.context is not before
