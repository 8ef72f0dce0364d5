"""Files of any size: ranges, compression, uploads in pieces: …/files"""

import gzip
import os
import zlib
from collections.abc import Mapping

import pytest

from tests.support.daemon import Answer, Daemon
from tests.support.sandbox import Box
from tests.support.waiting import wait_until

MIB = 1024 * 1024
SIZE = 3 * MIB + 17


@pytest.fixture
def box(daemon: Daemon) -> Box:
    return Box(daemon, daemon.create())


def files(
    box: Box,
    method: str,
    query: str,
    data: bytes | None = None,
    headers: Mapping[str, str] = {},
    place: str = "files",
) -> Answer:
    return box.daemon.call(method, f"/v1/sandboxes/{box.id}/{place}?{query}", data=data, headers=headers)


@pytest.fixture
def content(box: Box) -> bytes:
    data = os.urandom(SIZE)
    assert files(box, "PUT", "path=/tmp/file", data).status == 200
    return data


# -- ranges -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        (f"bytes={2 * MIB}-", 2 * MIB, SIZE),
        ("bytes=-500", SIZE - 500, SIZE),
        (f"bytes=-{SIZE + 5}", 0, SIZE),
        (f"bytes=10-{SIZE * 2}", 10, SIZE),
    ],
)
def test_a_range(box: Box, content: bytes, asked: str, start: int, stop: int) -> None:
    answer = files(box, "GET", "path=/tmp/file", headers={"range": asked})
    assert (answer.status, answer.headers["content-range"]) == (206, f"bytes {start}-{stop - 1}/{SIZE}")
    assert answer.headers["content-length"] == str(stop - start)
    assert answer.data == content[start:stop]


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", f"bytes={SIZE + 9}-{SIZE + 10}"])
def test_a_range_beyond_the_end(box: Box, content: bytes, asked: str) -> None:
    answer = files(box, "GET", "path=/tmp/file", headers={"range": asked})
    assert (answer.status, answer.headers["content-range"], answer.data) == (416, f"bytes */{SIZE}", b"")


@pytest.mark.parametrize("asked", ["bytes=5-2", "lines=1-2", "bytes=a-b", "bytes=0-1,5-6", "nonsense"])
def test_what_is_no_range_gets_the_whole(box: Box, content: bytes, asked: str) -> None:
    answer = files(box, "GET", "path=/tmp/file", headers={"range": asked})
    assert (answer.status, answer.data) == (200, content)


def test_a_download_goes_on_only_where_the_file_is_the_same(box: Box, content: bytes) -> None:
    etag = files(box, "GET", "path=/tmp/file").headers["etag"]
    going_on = {"range": "bytes=1000-", "if-range": etag}
    assert files(box, "GET", "path=/tmp/file", headers=going_on).data == content[1000:]
    assert files(box, "GET", "path=/tmp/file", headers={"if-none-match": etag}).status == 304
    files(box, "PUT", "path=/tmp/file", content[::-1])
    answer = files(box, "GET", "path=/tmp/file", headers=going_on)
    assert (answer.status, answer.data) == (200, content[::-1])
    assert files(box, "GET", "path=/tmp/file", headers={"if-none-match": etag}).status == 200


def test_head_tells_what_get_would(box: Box, content: bytes) -> None:
    head, get = files(box, "HEAD", "path=/tmp/file"), files(box, "GET", "path=/tmp/file")
    assert (head.status, head.data, head.headers["content-length"]) == (200, b"", str(SIZE))
    assert {name: head.headers[name] for name in ("etag", "last-modified", "accept-ranges")} == {
        name: get.headers[name] for name in ("etag", "last-modified", "accept-ranges")
    }
    assert files(box, "HEAD", "path=/nonesuch").status == 404
    assert files(box, "HEAD", "path=/tmp/file", headers={"range": "bytes=5-9"}).headers["content-length"] == "5"


# -- files whose size says little ---------------------------------------------------------------------------------


def test_files_of_proc_come_whole(box: Box) -> None:
    for path in ("/proc/1/comm", "/proc/sys/kernel/ostype"):
        expected = box.shell(f"cat {path}", user="root")["stdout"]
        answer = files(box, "GET", f"path={path}&user=root")
        assert answer.data.decode() == expected
        assert answer.headers["content-length"] == str(len(expected))
    whole = files(box, "GET", "path=/proc/kallsyms")  # megabytes, of which stat(2) says nothing
    if whole.status == 200 and len(whole.data) > 65536:
        assert "content-length" not in {name.lower() for name in whole.headers}


def test_an_empty_file_has_a_length(box: Box) -> None:
    box.shell("touch /tmp/empty")
    answer = files(box, "GET", "path=/tmp/empty", headers={"range": "bytes=0-5"})
    assert (answer.status, answer.data, answer.headers["content-length"]) == (200, b"", "0")


def test_a_file_that_grows_gives_what_was_promised(box: Box) -> None:
    box.shell("head -c 5000000 /dev/zero > /tmp/log")
    connection = box.daemon.connect()
    connection.request("GET", f"/v1/sandboxes/{box.id}/files?path=/tmp/log")
    response = connection.getresponse()
    box.shell("head -c 5000000 /dev/zero >> /tmp/log")
    assert len(response.read()) == 5_000_000
    connection.close()


def test_a_file_that_shrinks_breaks_the_transfer(box: Box) -> None:
    box.shell("truncate -s 64M /tmp/file")
    connection = box.daemon.connect()
    connection.request("GET", f"/v1/sandboxes/{box.id}/files?path=/tmp/file")
    response = connection.getresponse()
    box.shell("truncate -s 0 /tmp/file")
    with pytest.raises(Exception, match="IncompleteRead"):
        response.read()
    connection.close()
    assert files(box, "GET", "path=/tmp/file").data == b""


# -- compression --------------------------------------------------------------------------------------------------


def test_gzip_down_where_it_is_asked_for(box: Box) -> None:
    box.shell("yes compressible | head -c 3000000 > /tmp/text")
    plain = files(box, "GET", "path=/tmp/text")
    assert "content-encoding" not in plain.headers
    for offered in ("gzip", "gzip;q=0.8, identity;q=0.1"):
        packed = files(box, "GET", "path=/tmp/text", headers={"accept-encoding": offered})
        assert packed.headers["content-encoding"] == "gzip"
        assert gzip.decompress(packed.data) == plain.data
        assert len(packed.data) < 100_000
        assert packed.headers["etag"] != plain.headers["etag"]
    for offered in ("gzip, deflate, br", "gzip;q=0", "identity"):
        assert files(box, "GET", "path=/tmp/text", headers={"accept-encoding": offered}).data == plain.data
    part = files(box, "GET", "path=/tmp/text", headers={"accept-encoding": "gzip", "range": "bytes=0-9"})
    assert (part.status, part.data) == (206, plain.data[:10])


def test_gzip_up(box: Box) -> None:
    data = os.urandom(MIB) + bytes(20 * MIB)
    for packed in (gzip.compress(data), gzip.compress(data[:MIB]) + gzip.compress(data[MIB:])):
        answer = files(box, "PUT", "path=/tmp/file", packed, {"content-encoding": "gzip"})
        assert (answer.status, answer.json["size"]) == (200, len(data))
        assert files(box, "GET", "path=/tmp/file").data == data


@pytest.mark.parametrize(
    "packed",
    [b"nonsense", gzip.compress(bytes(MIB))[:-9], gzip.compress(b"x") + b"junk", zlib.compress(b"x")],
    ids=["nonsense", "cut short", "with junk", "another format"],
)
def test_what_is_not_gzip_changes_nothing(box: Box, packed: bytes) -> None:
    box.shell("echo old > /tmp/file")
    answer = files(box, "PUT", "path=/tmp/file", packed, {"content-encoding": "gzip"})
    assert (answer.status, answer.json["error"][:18]) == (400, "cannot decompress ")
    assert box.shell("cat /tmp/file; ls -A /tmp")["stdout"] == "old\nfile\n"
    assert files(box, "PUT", "path=/tmp/file", b"x", {"content-encoding": "br"}).status == 400


# -- in pieces ----------------------------------------------------------------------------------------------------


def piece(box: Box, offset: int, data: bytes, more: str = "") -> Answer:
    return files(box, "PATCH", f"path=/tmp/d/file&offset={offset}{more}", data, place="files/upload")


def test_an_upload_in_pieces(box: Box) -> None:
    data = os.urandom(2 * MIB)
    box.shell("mkdir /tmp/d && echo old > /tmp/d/file")
    assert files(box, "GET", "path=/tmp/d/file", place="files/upload").status == 404
    assert piece(box, 0, data[:MIB]).json == {"path": "/tmp/d/file", "offset": MIB, "complete": False}
    assert files(box, "GET", "path=/tmp/d/file", place="files/upload").json["offset"] == MIB
    for wrong in (0, 5, 2 * MIB):
        answer = piece(box, wrong, b"x")
        assert (answer.status, answer.json["kind"], answer.json["details"]) == (
            409,
            "offset_mismatch",
            {"offset": MIB},
        )
    assert box.shell("cat /tmp/d/file")["stdout"] == "old\n"
    last = piece(box, MIB, data[MIB:], "&complete=true&mode=0600")
    assert last.json == {"path": "/tmp/d/file", "offset": 2 * MIB, "complete": True}
    assert files(box, "GET", "path=/tmp/d/file").data == data
    assert box.shell("ls -A /tmp/d; stat -c %a /tmp/d/file")["stdout"] == "file\n600\n"


def test_an_upload_goes_on_after_its_client_and_the_daemon_have_gone(own_daemon: Daemon) -> None:
    box = Box(own_daemon.start(), own_daemon.create())
    data = os.urandom(4 * MIB)
    connection = own_daemon.connect()
    connection.putrequest("PATCH", f"/v1/sandboxes/{box.id}/files/upload?path=/tmp/file&offset=0")
    connection.putheader("content-length", str(len(data)))
    connection.endheaders(data[: 3 * MIB])
    part = "path=/tmp/file"
    wait_until(lambda: files(box, "GET", part, place="files/upload").json.get("offset", 0) > 0)
    own_daemon.kill()
    connection.close()
    own_daemon.start()
    offset = 0

    def finished() -> bool:
        nonlocal offset
        offset = files(box, "GET", part, place="files/upload").json["offset"]
        answer = files(box, "PATCH", f"{part}&offset={offset}&complete=true", data[offset:], place="files/upload")
        # What was under way may still be being written.
        assert answer.status == 200 or answer.json["kind"] in {"busy", "offset_mismatch"}
        return answer.status == 200

    wait_until(finished)
    assert 0 < offset <= 3 * MIB
    assert files(box, "GET", part).data == data


def test_an_upload_in_pieces_is_given_up(box: Box) -> None:
    assert piece(box, 0, b"x").status == 404
    assert piece(box, 0, b"x", "&parents=true").status == 200
    assert files(box, "DELETE", "path=/tmp/d/file", place="files/upload").json == {"path": "/tmp/d/file"}
    assert files(box, "DELETE", "path=/tmp/d/file", place="files/upload").status == 404
    assert box.shell("ls -A /tmp/d")["stdout"] == ""
    assert piece(box, 1, b"x").json["details"] == {"offset": 0}


def test_a_piece_goes_into_no_file_that_others_planted(box: Box) -> None:
    box.shell("mkdir /tmp/d && ln -s /tmp/prey /tmp/d/.file.sandboxd-part")
    assert piece(box, 0, b"x").status == 422
    box.shell("cd /tmp/d && rm .file* && mkfifo .file.sandboxd-part")
    assert piece(box, 0, b"x").json["kind"] == "not_regular"
    assert box.shell("ls /tmp/prey")["exit_code"] != 0
