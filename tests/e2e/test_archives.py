"""Directories in and out as archives: …/archive"""

import hashlib
import io
import os
import random
import stat
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

from sandboxd.trees.tarstream import ArchiveTruncated, TarReader
from tests.support.daemon import Answer, Daemon
from tests.support.sandbox import Box
from tests.support.waiting import wait_until

MIB = 1024 * 1024
LISTING = (
    "cd {} && find . -printf '%p %y %m %l %s %U %n\\n' | grep -v ' d ' | sort; find . -type f | sort | xargs md5sum"
)


@pytest.fixture
def box(daemon: Daemon) -> Box:
    return Box(daemon, daemon.create())


def get(box: Box, path: str, query: str = "") -> Answer:
    return box.daemon.call("GET", f"/v1/sandboxes/{box.id}/archive?path={path}{query}")


def put(box: Box, path: str, data: bytes, query: str = "") -> Answer:
    return box.daemon.call("PUT", f"/v1/sandboxes/{box.id}/archive?path={path}{query}", data=data)


Member = tuple[str, dict[str, Any], bytes]


def tar_of(members: Iterable[Member], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, facts, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in facts.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


TREE: list[Member] = [
    (".", {"type": tarfile.DIRTYPE, "mode": 0o700}, b""),
    ("./bin/tool", {"mode": 0o4755, "mtime": 1_000_000_000, "uid": 0}, b"#!/bin/sh\n"),
    ("shut", {"type": tarfile.DIRTYPE, "mode": 0o555, "mtime": 1_000_000_000}, b""),
    ("shut/inside", {"mode": 0o400}, b"x" * 100_000),
    ("empty", {}, b""),
    ("link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, b""),
    ("hard", {"type": tarfile.LNKTYPE, "linkname": "shut/inside"}, b""),
    ("caf\udce9\nname", {}, b"odd"),
    ("l" * 200 + "/" + "o" * 100, {}, b"long"),
]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_is_unpacked(box: Box, mode: str) -> None:
    answer = put(box, "/tmp/new/tree", tar_of(TREE, mode))
    assert (answer.status, answer.json["entries"]) == (200, 8), answer.data
    looked = box.shell(
        "cd /tmp/new/tree && stat -c '%a %U' bin/tool shut shut/inside; stat -c %Y bin/tool shut;"
        " readlink link; cat caf*; cat l*/o*; echo; stat -c %h hard; ls | wc -l; stat -c %U . bin"
    )["stdout"].split()
    assert looked == [
        "755", "user", "555", "user", "400", "user", "1000000000", "1000000000", "/etc/passwd", "oddlong", "2", "8",
        "user", "user",
    ]  # fmt: skip


def test_a_tree_comes_back_as_it_went(box: Box) -> None:
    box.shell(
        "mkdir -p /tmp/t/a/b /tmp/t/z && cd /tmp/t && head -c 3000000 /dev/urandom > a/big && echo x > a/b/f"
        " && chmod 640 a/b/f && ln a/b/f z/hard && ln -s ../nowhere a/link && mkfifo pipe"
        " && touch empty $'odd\\xff' && chmod 511 z"
    )
    before = box.shell(LISTING.format("/tmp/t"))["stdout"]
    answer = get(box, "/tmp/t")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/x-tar")
    with tarfile.open(fileobj=io.BytesIO(answer.data)) as archive:
        assert archive.getmember("pipe").isfifo()
        assert archive.getmember("z/hard").islnk()
        assert (archive.getmember("a/b/f").uname, archive.getmember("a/b/f").uid) == ("user", 1000)
    box.shell("rm /tmp/t/pipe")
    assert put(box, "/tmp/copy", get(box, "/tmp/t", "&format=tar.gz").data).status == 200
    after = box.shell(LISTING.format("/tmp/copy"))["stdout"]
    assert after == "".join(line for line in before.splitlines(keepends=True) if " p " not in line)
    # tar in the sandbox agrees.
    box.daemon.call("PUT", f"/v1/sandboxes/{box.id}/files?path=/tmp/t.tar", data=answer.data)
    assert box.shell("mkdir /tmp/by-tar && tar -x -C /tmp/by-tar -f /tmp/t.tar")["exit_code"] == 0
    assert box.shell(LISTING.format("/tmp/by-tar"))["stdout"] == before


def test_zip_both_ways(box: Box) -> None:
    box.shell(
        "mkdir -p /tmp/t/a && cd /tmp/t && head -c 300000 /dev/urandom > a/f && chmod 750 a/f && ln a/f hard"
        " && ln -s a/f link && touch $'odd\\xff' empty"
    )
    answer = get(box, "/tmp/t", "&format=zip")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.data)) as archive:
        assert archive.testzip() is None
        assert archive.getinfo("a/f").external_attr >> 16 == stat.S_IFREG | 0o750
        assert archive.read("hard") == archive.read("a/f")
        assert archive.read("link") == b"a/f"
    assert put(box, "/tmp/copy", answer.data, "&format=zip").json["entries"] == 6
    listing = "find . -printf '%p %y %m %l\\n' | sort; cat a/f hard | md5sum"
    assert box.shell(f"cd /tmp/copy; {listing}")["stdout"] == box.shell(f"cd /tmp/t; {listing}")["stdout"]


def test_what_is_there_is_replaced_and_the_rest_kept(box: Box) -> None:
    box.shell("mkdir -p -m 711 /tmp/t/d && cd /tmp/t && echo old > f && echo keep > d/other && ln -s /etc/passwd l")
    members: list[Member] = [
        ("d", {"type": tarfile.DIRTYPE, "mode": 0o777}, b""),
        ("f", {}, b"new"),
        ("l", {}, b"a file now"),
    ]
    assert put(box, "/tmp/t", tar_of(members)).status == 200
    assert (
        box.shell("cd /tmp/t && cat f l d/other && stat -c %a d /tmp")["stdout"] == "newa file nowkeep\n711\n1777\n"
    )
    assert put(box, "/tmp/t", tar_of([("d", {}, b"")])).json["kind"] == "is_a_directory"


def test_owners_count_where_root_asks_for_them(box: Box) -> None:
    members: list[Member] = [("f", {"uid": 1000, "gid": 0}, b""), ("d", {"type": tarfile.DIRTYPE, "uid": 7}, b"")]
    assert put(box, "/tmp/a", tar_of(members), "&user=root&owners=true").status == 200
    assert put(box, "/tmp/b", tar_of(members), "&user=root").status == 200
    assert box.shell("stat -c '%u %g' /tmp/a/f /tmp/a/d /tmp/b/f")["stdout"] == "1000 0\n7 0\n0 0\n"
    assert put(box, "/tmp/c", tar_of(members), "&owners=true").json["kind"] == "permission_denied"


# -- hostile archives ---------------------------------------------------------------------------------------------


def sparse() -> bytes:
    info = tarfile.TarInfo("s")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:483] = bytes(97)
    header[483:495] = b"77777777777\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header) + bytes(1024)


def zip_with(name: str, mode: int = 0o100644, data: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, data)
    return buffer.getvalue()


SYMLINK = {"type": tarfile.SYMTYPE}
HOSTILE: dict[str, tuple[bytes, str, str]] = {
    "absolute": (tar_of([("/tmp/out", {}, b"")]), "tar", "bad_archive"),
    "upwards": (tar_of([("a/../../out", {}, b"")]), "tar", "bad_archive"),
    "through its own link": (
        tar_of([("l", {**SYMLINK, "linkname": "/tmp"}, b""), ("l/out", {}, b"")]), "tar", "not_a_directory",
    ),
    "through its own relative link": (
        tar_of([("l", {**SYMLINK, "linkname": ".."}, b""), ("l/out", {}, b"")]), "tar", "not_a_directory",
    ),
    "a directory on a link": (
        tar_of([("l", {**SYMLINK, "linkname": "/tmp"}, b""), ("l", {"type": tarfile.DIRTYPE}, b"")]),
        "tar", "not_a_directory",
    ),
    "hard link outwards": (
        tar_of([("h", {"type": tarfile.LNKTYPE, "linkname": "../../etc/passwd"}, b"")]), "tar", "bad_archive",
    ),
    "hard link by an absolute name": (
        tar_of([("h", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}, b"")]), "tar", "bad_archive",
    ),
    "hard link through a link": (
        tar_of([("l", {**SYMLINK, "linkname": "/etc"}, b""),
                ("h", {"type": tarfile.LNKTYPE, "linkname": "l/passwd"}, b"")]),
        "tar", "not_a_directory",
    ),
    "character device": (tar_of([("dev", {"type": tarfile.CHRTYPE}, b"")]), "tar", "bad_archive"),
    "block device": (tar_of([("dev", {"type": tarfile.BLKTYPE}, b"")]), "tar", "bad_archive"),
    "fifo": (tar_of([("pipe", {"type": tarfile.FIFOTYPE}, b"")]), "tar", "bad_archive"),
    "a file of holes": (sparse(), "tar", "archive_too_large"),
    "cut short": (tar_of([("f", {}, bytes(10_000))])[:5000], "tar", "bad_archive"),
    "no archive": (os.urandom(10_000), "tar", "bad_archive"),
    "nothing": (b"", "tar", "bad_archive"),
    "a name too long": (tar_of([("x" * 300, {}, b"")]), "tar", "name_too_long"),
    "too deep": (tar_of([("d/" * 2500 + "f", {}, b"")]), "tar", "bad_archive"),
    "zip: upwards": (zip_with("../out"), "zip", "bad_archive"),
    "zip: absolute": (zip_with("/tmp/out"), "zip", "bad_archive"),
    "zip: device": (zip_with("dev", 0o020644), "zip", "bad_archive"),
    "zip: no archive": (b"PK" * 1000, "zip", "bad_archive"),
    "zip: a tar": (tar_of([("f", {}, b"")]), "zip", "bad_archive"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused_and_write_nothing_outside(root_daemon: Daemon, case: str) -> None:
    data, format_, kind = HOSTILE[case]
    box = Box(root_daemon, root_daemon.create())
    answer = put(box, "/tmp/deep/in", data, f"&format={format_}&user=root")
    status = 413 if kind == "archive_too_large" else 422
    assert (answer.status, answer.json["kind"]) == (status, kind), answer.data
    assert box.shell("ls /tmp; ls /tmp/deep; md5sum < /etc/passwd; stat -c %h /etc/passwd")["stdout"].split()[:2] == [
        "deep",
        "in",
    ]
    assert box.shell("stat -c %h /etc/passwd")["stdout"] == "1\n"
    root_daemon.delete(box.id)


def test_what_exists_leads_out_no_more_than_what_is_made(box: Box) -> None:
    box.shell("mkdir -p /tmp/t /tmp/outside && ln -s /tmp/outside /tmp/t/link")
    assert put(box, "/tmp/t", tar_of([("link/f", {}, b"x")])).json["kind"] == "not_a_directory"
    assert box.shell("ls /tmp/outside")["stdout"] == ""


@pytest.mark.slow
def test_renames_under_way_lead_nowhere(box: Box) -> None:
    """A process swaps a directory for a link to another place, as fast as it can, while root unpacks through it."""
    box.shell("mkdir -p /tmp/t/d /tmp/prey && chmod 777 /tmp/t /tmp/t/d")
    swap = (
        "import os\nos.chdir('/tmp/t')\nos.symlink('/tmp/prey', 'l')\n"
        "while not os.path.exists('/tmp/stop'):\n"
        "    os.rename('d', 'e'); os.rename('l', 'd'); os.rename('d', 'l'); os.rename('e', 'd')\n"
    )
    box.daemon.call("PUT", f"/v1/sandboxes/{box.id}/files?path=/tmp/swap.py", data=swap.encode())
    swapping = threading.Thread(target=box.shell, args=("python3 /tmp/swap.py",))
    swapping.start()
    data = tar_of([(f"d/{number}", {}, b"x") for number in range(300)])
    outcomes = set()
    for _ in range(20):
        answer = put(box, "/tmp/t", data, "&user=root")
        outcomes.add("done" if answer.status == 200 else answer.json["kind"])
    box.shell("touch /tmp/stop")
    swapping.join()
    assert outcomes <= {"done", "not_a_directory", "not_found", "exists"}
    assert box.shell("ls /tmp/prey | wc -l")["stdout"] == "0\n"


# -- failures and figures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [("/nonesuch", 404, "not_found"), ("/etc/passwd", 422, "not_a_directory"), ("/root", 403, "permission_denied")],
)
def test_what_cannot_be_packed(root_daemon: Daemon, path: str, status: int, kind: str) -> None:
    box = Box(root_daemon, root_daemon.create())
    answer = get(box, path)
    assert (answer.status, answer.json["kind"]) == (status, kind)
    assert get(box, "/tmp", "&format=rar").status == 422
    assert put(box, "/etc/x", tar_of(TREE)).json["kind"] == "permission_denied"
    root_daemon.delete(box.id)


def test_a_file_that_may_not_be_read_cuts_the_archive_with_a_word(box: Box) -> None:
    box.shell("mkdir -p /tmp/t && echo x > /tmp/t/a && echo y > /tmp/t/b && chmod 0 /tmp/t/b", user="root")
    with pytest.raises(Exception) as raised:
        get(box, "/tmp/t")
    assert "IncompleteRead" in repr(raised.value)
    partial = getattr(raised.value, "partial", b"")
    assert b"SANDBOXD.error=cannot pack" in partial
    # And where a reader looks for it, behind a file that does not fill its last block.
    assert partial.startswith(b"./a\0") or partial[512:].startswith((b"./a\0", b"a\0"))
    with pytest.raises(ArchiveTruncated, match="cannot pack"):
        list(TarReader(io.BytesIO(partial)))


def test_an_archive_of_megabytes_may_be_compressed_with_zstd(box: Box) -> None:
    """It is read by the program zstd, which is fed as the client sends."""
    content = random.Random(7).randbytes(3 * MIB)
    packed = subprocess.run(["zstd", "-q"], input=tar_of([("data", {}, content)]), capture_output=True, check=True)
    assert len(packed.stdout) > 2 * MIB
    assert put(box, "/tmp/z", packed.stdout).status == 200
    assert box.shell("md5sum < /tmp/z/data")["stdout"].split()[0] == hashlib.md5(content).hexdigest()
    damaged = packed.stdout[:MIB] + bytes(100) + packed.stdout[MIB + 100 :]
    assert put(box, "/tmp/z2", damaged).json["kind"] == "bad_archive"


def test_an_archive_of_nothing_is_one(box: Box) -> None:
    answer = put(box, "/tmp/none", tar_of([]))
    assert (answer.status, answer.json["entries"]) == (200, 0), answer.data


@pytest.mark.parametrize("format_", ["gnu", "pax"])
def test_a_sparse_file_arrives_with_its_holes_as_zeros(box: Box, tmp_path: Path, format_: str) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.write(b"begin")
        file.seek(3 * MIB)
        file.write(b"middle")
        file.truncate(5 * MIB + 3)
    command = ["tar", "-C", tmp_path, f"--format={format_}", "--sparse", "-c", "sparse"]
    packed = subprocess.run(command, capture_output=True, check=True).stdout
    assert len(packed) < MIB
    assert put(box, "/tmp/sparse", packed).status == 200
    whole = (tmp_path / "sparse").read_bytes()
    assert box.shell("md5sum < /tmp/sparse/sparse")["stdout"].split()[0] == hashlib.md5(whole).hexdigest()


def test_root_packs_all_but_what_the_kernel_makes_up(root_daemon: Daemon) -> None:
    box = Box(root_daemon, root_daemon.create(user="root"))
    box.shell("echo here > /opt/here")
    answer = get(box, "/")
    with tarfile.open(fileobj=io.BytesIO(answer.data)) as archive:
        names = {name.removeprefix("./") for name in archive.getnames()}
    assert {"proc", "opt/here", "etc/passwd"} <= names
    assert not any(name.startswith(("proc/", "sys/")) for name in names)
    assert get(box, "/proc/sys/kernel/random").status == 200
    root_daemon.delete(box.id)


def test_an_upload_that_is_cut_off_leaves_the_sandbox_well(box: Box) -> None:
    data = tar_of([(f"f{number}", {}, os.urandom(MIB)) for number in range(4)])
    connection = box.daemon.connect()
    connection.putrequest("PUT", f"/v1/sandboxes/{box.id}/archive?path=/tmp/t")
    connection.putheader("content-length", str(len(data)))
    connection.endheaders(data[: len(data) // 2])
    wait_until(lambda: box.shell("test -e /tmp/t/f0")["exit_code"] == 0)
    connection.close()
    wait_until(lambda: box.processes() == [])
    assert put(box, "/tmp/t", data).status == 200


def test_memory_stays_flat(own_root_daemon: Daemon) -> None:
    box = Box(own_root_daemon.start(), own_root_daemon.create())
    box.shell("mkdir /tmp/t && truncate -s 300M /tmp/t/large && for i in $(seq 2000); do echo $i > /tmp/t/$i; done")
    process = psutil.Process(own_root_daemon.pid)
    sizes: dict[str, int] = {}

    def download(query: str, sink: Callable[[bytes], Any]) -> None:
        connection = own_root_daemon.connect()
        connection.request("GET", f"/v1/sandboxes/{box.id}/archive?path=/tmp/t{query}")
        response = connection.getresponse()
        while chunk := response.read(MIB):
            sink(chunk)
        connection.close()

    download("", len)
    before = process.memory_info().rss
    for query in ("", "&format=zip", "&format=tar.gz"):
        total = 0

        def count(chunk: bytes) -> None:
            nonlocal total
            total += len(chunk)

        download(query, count)
        sizes[query] = total
    assert sizes[""] > 300 * MIB > sizes["&format=zip"]
    assert process.memory_info().rss - before < 30 * MIB


def test_nothing_is_left_in_the_state_directory(own_root_daemon: Daemon, tmp_path: Path) -> None:
    box = Box(own_root_daemon.start(), own_root_daemon.create())
    before = sorted(os.listdir(own_root_daemon.state))
    assert put(box, "/tmp/t", zip_with("f", data=os.urandom(MIB)), "&format=zip").status == 200
    assert put(box, "/tmp/t", b"nonsense", "&format=zip").status == 422
    assert sorted(os.listdir(own_root_daemon.state)) == before
