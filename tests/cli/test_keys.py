"""key and TCP: a key lets in, until it is revoked."""

import pytest

from tests.cli.support import Ctl
from tests.support.daemon import Daemon


@pytest.fixture
def tcp_url(own_root_daemon: Daemon) -> str:
    """A daemon that also listens on TCP."""
    port = own_root_daemon.reserve_port()
    own_root_daemon.options = ("--listen", f"unix:{own_root_daemon.socket}", "--listen", f"tcp:127.0.0.1:{port}")
    own_root_daemon.start()
    return f"http://127.0.0.1:{port}"


def test_a_key_opens_tcp_until_it_is_revoked(own_root_daemon: Daemon, tcp_url: str) -> None:
    admin = Ctl.of(own_root_daemon)
    refused = Ctl(tcp_url).run("ls")
    assert refused.returncode == 1
    assert b"cannot" in refused.stderr

    made = admin.json("key", "create", "ci", "--scope", "read")
    reader = Ctl(tcp_url, {"SANDBOXD_API_KEY": made["key"]})
    assert reader.json("ls") == []
    assert reader.run("create").returncode == 1
    (listed,) = admin.json("key", "ls")
    assert (listed["id"], listed["name"], listed["scopes"]) == (made["id"], "ci", ["read"])
    assert made["key"] not in admin.text("key", "ls")

    assert admin.text("key", "revoke", made["id"]).strip() == made["id"]
    assert reader.run("ls").returncode == 1


def test_everything_works_over_tcp(own_root_daemon: Daemon, tcp_url: str) -> None:
    created = Ctl.of(own_root_daemon).run("key", "create", "ci")
    assert b"not shown again" in created.stderr
    remote = Ctl(tcp_url, {"SANDBOXD_API_KEY": created.stdout.decode().strip()})
    data = bytes(range(256)) * 4096
    assert remote.run("run", "cat", stdin=data).stdout == data
    assert remote.json("ls") == []
