"""Where the daemon is, and what is said when it is not there."""

import socket
from pathlib import Path

import pytest

from sandboxd.client import Address, AsyncClient, Client, ClientError, DaemonUnreachable, default_address
from sandboxd.paths import default_runtime_dir


@pytest.mark.parametrize(
    ("url", "shown", "authority"),
    [
        ("unix:/run/x.sock", "unix:/run/x.sock", "sandboxd"),
        ("unix:///run/x.sock", "unix:/run/x.sock", "sandboxd"),
        ("unix:x.sock", "unix:x.sock", "sandboxd"),
        ("http://host:8000", "http://host:8000", "host:8000"),
        ("http://host", "http://host:80", "host:80"),
        ("https://host/prefix/", "https://host:443/prefix", "host:443"),
        ("http://[::1]:8000", "http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_addresses_are_read(url: str, shown: str, authority: str) -> None:
    address = Address.parse(url)
    assert (str(address), address.authority) == (shown, authority)


@pytest.mark.parametrize(
    "url", ["", "unix:", "unix://host/x", "tcp:host:1", "host:8000", "http://", "http://h:99999"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ClientError, match="cannot use"):
        Address.parse(url)


def test_the_environment_says_where_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOXD_URL", "http://host:1")
    assert str(Client().address) == "http://host:1"
    monkeypatch.delenv("SANDBOXD_URL")
    assert default_address() == Address(socket=str(default_runtime_dir() / "sandboxd.sock"))


async def refusal(url: str) -> str:
    async with AsyncClient(url) as client:
        with pytest.raises(DaemonUnreachable) as caught:
            await client.health()
    return str(caught.value)


async def test_no_socket(tmp_path: Path) -> None:
    assert "start the daemon with `sandboxd serve`" in await refusal(f"unix:{tmp_path}/none")


async def test_a_socket_nobody_listens_on(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    assert "nobody listens there any more" in await refusal(f"unix:{tmp_path}/dead")


async def test_a_port_nobody_listens_on() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        assert "Connection refused" in await refusal(f"http://127.0.0.1:{probe.getsockname()[1]}")


async def test_a_host_that_does_not_exist() -> None:
    assert "cannot reach sandboxd at http://nonesuch.invalid:80" in await refusal("http://nonesuch.invalid")


async def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    assert "too long" in await refusal(f"unix:{tmp_path}/{'x' * 200}")
