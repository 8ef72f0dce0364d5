"""Ways to hold more of the disk than one's quota says: snapshots, imports, archives that grow."""

import bz2
import hashlib
import io
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest

from sandboxd.trees.decompress import decompressed
from sandboxd.trees.layerarchive import trailer
from sandboxd.trees.tarstream import ArchiveTooLarge, ByteSource
from tests.conftest import daemon_as_root
from tests.security.support import Holder, listening_on_tcp
from tests.support.daemon import Daemon, running
from tests.support.waiting import wait_until

MIB = 1 << 20
IMPORT = "/v1/snapshots/import"


@pytest.fixture(scope="module")
def daemon_and_port(image_dir: Any) -> Iterator[tuple[Daemon, int]]:
    daemon = daemon_as_root(image_dir)
    port = listening_on_tcp(daemon, "[sandbox]\nlenient_limits = true\n")
    with running(daemon):
        yield daemon, port


@pytest.fixture(autouse=True)
def clean(daemon_and_port: tuple[Daemon, int]) -> Iterator[None]:
    yield
    daemon_and_port[0].delete_all()


def exported(daemon: Daemon, script: str) -> bytes:
    """The file of a snapshot of what a script leaves behind."""
    sandbox = daemon.create()
    daemon.shell(sandbox, script)
    snapshot = daemon.call("POST", f"/v1/sandboxes/{sandbox}/snapshot", {}).json["id"]
    daemon.delete(sandbox)
    file = daemon.call("GET", f"/v1/snapshots/{snapshot}/export").data
    daemon.call("DELETE", f"/v1/snapshots/{snapshot}")
    return file


def test_snapshots_of_deleted_sandboxes_are_counted(daemon_and_port: tuple[Daemon, int]) -> None:
    daemon, port = daemon_and_port
    holder = Holder(daemon, port, max_snapshots=2)

    def kept() -> int:
        sandbox = holder.create()
        answer = holder.call("POST", f"/v1/sandboxes/{sandbox}/snapshot", {})
        assert holder.call("DELETE", f"/v1/sandboxes/{sandbox}").status == 200
        return answer.status

    assert [kept() for _ in range(3)] == [201, 201, 429]
    mine = [each["id"] for each in daemon.snapshots()]
    assert holder.call("DELETE", f"/v1/snapshots/{mine[0]}").status == 200
    assert kept() == 201


def test_what_a_key_holds_is_one_number_that_it_sees(daemon_and_port: tuple[Daemon, int]) -> None:
    daemon, port = daemon_and_port
    file = exported(daemon, "head -c 8000000 /dev/urandom > ~/data")
    holder, other = Holder(daemon, port, max_sandboxes=3, max_disk_bytes=20 * MIB), Holder(daemon, port)
    assert [holder.call("POST", IMPORT, data=file).status for _ in range(2)] == [201, 201], daemon.log[-3000:]
    wait_until(lambda: holder.call("GET", "/v1/usage").json["disk_bytes"] >= 16_000_000)
    usage = holder.call("GET", "/v1/usage").json
    assert (usage["key_id"], usage["snapshots"], usage["sandboxes"]) == (holder.id, 2, 0)
    assert usage["quota"]["max_disk_bytes"] == 20 * MIB
    # There is room for five megabytes, not for eight.
    refused = holder.call("POST", IMPORT, data=file)
    assert (refused.status, refused.json["kind"]) == (413, "archive_too_large"), daemon.log[-3000:]
    assert other.call("GET", "/v1/usage").json["disk_bytes"] == 0
    assert other.call("POST", IMPORT, data=file).status == 201
    assert daemon.call("GET", "/v1/usage").json["snapshots"] == 3


def test_an_import_of_very_little_that_becomes_very_much_is_refused(daemon_and_port: tuple[Daemon, int]) -> None:
    daemon, port = daemon_and_port
    file = exported(daemon, "echo x > ~/x")
    with tarfile.open(fileobj=io.BytesIO(file)) as genuine:
        first = genuine.next()
        second = genuine.next()
        assert first is not None
        assert second is not None
    info = tarfile.TarInfo("upper/zeros")
    info.size = 1 << 30
    bomb = bz2.BZ2Compressor(9)
    digest, packed = hashlib.sha256(), b""
    for piece in (file[: second.offset], info.tobuf(), *(bytes(MIB) for _ in range(1024)), bytes(1024)):
        digest.update(piece)
        packed += bomb.compress(piece)
    packed += bomb.compress(trailer(digest.hexdigest())) + bomb.flush()
    assert len(packed) < MIB // 16
    refused = Holder(daemon, port).call("POST", IMPORT, data=packed)
    assert (refused.status, refused.json["kind"]) == (413, "archive_too_large"), daemon.log[-3000:]
    assert "250 times" in refused.json["error"]
    assert daemon.call("POST", IMPORT, data=bz2.compress(file)).status == 201


def test_growth_is_bounded_whatever_the_compression() -> None:
    with decompressed(io.BytesIO(bz2.compress(bytes(200 * MIB)))) as source:
        _read_all(source)
    with decompressed(io.BytesIO(bz2.compress(bytes(300 * MIB)))) as source:
        for _ in range(200):
            source.read(MIB)
        with pytest.raises(ArchiveTooLarge):
            _read_all(source)


def _read_all(source: ByteSource) -> None:
    while source.read(MIB):
        pass
