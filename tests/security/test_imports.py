"""A snapshot's file that somebody wrote, or changed: who owns what comes of it, and what it may say."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sandboxd.trees.layerarchive import trailer
from tests.conftest import daemon_as_root
from tests.security.support import Holder, listening_on_tcp
from tests.support.daemon import Answer, Daemon, running

IMPORT = "/v1/snapshots/import"


@pytest.fixture(scope="module")
def daemon_and_port(image_dir: Any) -> Iterator[tuple[Daemon, int]]:
    daemon = daemon_as_root(image_dir)
    port = listening_on_tcp(daemon)
    with running(daemon):
        yield daemon, port


@pytest.fixture(autouse=True)
def clean(daemon_and_port: tuple[Daemon, int]) -> Iterator[None]:
    yield
    daemon_and_port[0].delete_all()


@pytest.fixture
def file(daemon_and_port: tuple[Daemon, int]) -> bytes:
    """A snapshot's file as the daemon gives it."""
    daemon, _ = daemon_and_port
    sandbox = daemon.create(name="source", env={"COLOUR": "blue"}, metadata={"team": "one"}, timeout_ms=3_600_000)
    daemon.shell(sandbox, "echo kept > ~/file")
    snapshot = daemon.call("POST", f"/v1/sandboxes/{sandbox}/snapshot", {"metadata": {"of": "mine"}}).json["id"]
    return daemon.call("GET", f"/v1/snapshots/{snapshot}/export").data


def forged(file: bytes, change: Callable[[Any], None]) -> bytes:
    """The same with another manifest, and with the checksum that is due to it."""
    with tarfile.open(fileobj=io.BytesIO(file)) as archive:
        first = archive.next()
        assert first is not None
        content = archive.extractfile(first)
        assert content is not None
        manifest = json.loads(content.read())
        behind = archive.next()
        assert behind is not None
    rest = file[behind.offset : file.rindex(b"sandboxd snapshot sha256 ")]
    change(manifest)
    text = json.dumps(manifest).encode()
    first.size = len(text)
    head = first.tobuf(tarfile.USTAR_FORMAT) + text + b"\0" * (-len(text) % tarfile.BLOCKSIZE)
    body = head + rest
    return body + trailer(hashlib.sha256(body).hexdigest())


def test_what_is_imported_belongs_to_who_imports_it(daemon_and_port: tuple[Daemon, int], file: bytes) -> None:
    """An owner in the file would put a tree of one's own among another's snapshots, and beside one's own quota."""
    daemon, port = daemon_and_port
    attacker, victim = (Holder(daemon, port, scopes=["write"], own=True) for _ in range(2))

    def disown(manifest: Any) -> None:
        manifest["spec"]["owner"] = victim.id

    answer = attacker.call("POST", IMPORT, data=forged(file, disown))
    assert answer.status == 201, answer.data
    path = f"/v1/snapshots/{answer.json['id']}"
    assert victim.call("GET", path).status == 404
    assert attacker.call("GET", path).status == 200
    made = attacker.create(snapshot=answer.json["id"])
    assert daemon.shell(made, "cat ~/file; echo $COLOUR")["stdout"] == "kept\nblue\n"


def test_an_unchanged_file_says_what_it_said(daemon_and_port: tuple[Daemon, int], file: bytes) -> None:
    """The control of all below: the forger's own work is not what is refused."""
    daemon, _ = daemon_and_port
    answer = daemon.call("POST", IMPORT, data=forged(file, lambda manifest: None))
    assert answer.status == 201, answer.data
    assert answer.json["metadata"] == {"of": "mine"}


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("spec.env", {"NUL": "a\0b"}),
        ("spec.env", {"NOT A NAME": "x"}),
        ("spec.env", {f"V{number}": "x" * 100_000 for number in range(3)}),
        ("spec.metadata", {f"k{number}": "x" * 4000 for number in range(100)}),
        ("spec.metadata", {"control\x1b": "x"}),
        ("spec.limits", {"memory": -1}),
        ("spec.limits", {"disk": 2**62}),
        ("spec.limits", {"cpus": 1e300}),
        ("spec.limits", {"pids": 1}),
        ("spec.name", "No Name"),
        ("spec.user", "root\0"),
        ("spec.user", "x" * 1000),
        ("spec.workdir", "relative"),
        ("spec.workdir", "/" + "x" * 10_000),
        ("spec.hostname", "-bad-"),
        ("spec.hostname", "x" * 500),
        ("spec.timeout", -1.0),
        ("spec.timeout", 1e308),
        ("spec.idle_timeout", 0),
        ("spec.on_timeout", "explode"),
        ("spec.image", "base"),
        ("spec.image_name", "x" * 10_000),
        ("spec", None),
        ("format", 2),
        ("id_base", 7),
        ("created_at", 1e300),
        ("name", "../escape"),
        ("description", "x" * 1_000_000),
        ("metadata", {"key": "x" * 100_000}),
    ],
)
def test_a_manifest_says_no_more_than_a_client_may(
    daemon_and_port: tuple[Daemon, int], file: bytes, where: str, value: Any
) -> None:
    daemon, _ = daemon_and_port

    def change(manifest: Any) -> None:
        *path, last = where.split(".")
        for part in path:
            manifest = manifest[part]
        manifest[last] = value

    before = len(daemon.snapshots())
    answer: Answer = daemon.call("POST", IMPORT, data=forged(file, change))
    assert (answer.status, answer.json["kind"]) == (400, "bad_archive"), answer.data[:300]
    assert where.rpartition(".")[2] in answer.json["error"]
    assert len(answer.data) < 2000
    assert len(daemon.snapshots()) == before
