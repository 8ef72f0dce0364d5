"""Images through the API: imported, used, removed, and hostile ones refused."""

import contextlib
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import daemon_as_root
from tests.support.daemon import Answer, Daemon, running
from tests.support.waiting import wait_until

HELLO = '#include <stdio.h>\nint main(int c, char **v) { (void)c; printf("hello from %s\\n", v[0]); return 5; }\n'


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A program that needs nothing but a kernel."""
    directory = tmp_path_factory.mktemp("hello")
    (directory / "hello.c").write_text(HELLO)
    subprocess.run(["musl-gcc", "-static", "-Os", "-s", "-o", "hello", "hello.c"], cwd=directory, check=True)
    return (directory / "hello").read_bytes()


@pytest.fixture(scope="module")
def store(hello: bytes) -> Iterator[Daemon]:
    """A daemon with an image directory of its own, empty."""
    with (
        tempfile.TemporaryDirectory(prefix="sandboxd-images-") as directory,
        running(daemon_as_root(Path(directory) / "images")) as daemon,
    ):
        yield daemon


def entry(name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", mode: int = 0o755) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


def archive(*entries: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for each in entries:
            info, data = each if isinstance(each, tuple) else (each, b"")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def good(hello: bytes, greeting: str = "hello") -> bytes:
    directories = [entry(name, tarfile.DIRTYPE) for name in ("dev", "proc", "etc", "bin")]
    return archive(*directories, (entry(f"bin/{greeting}"), hello))


def import_as(daemon: Daemon, name: str, data: bytes) -> Answer:
    return daemon.call("POST", f"/v1/images/import?name={name}", data=data)


def names(daemon: Daemon) -> dict[str, str]:
    return {
        name: image["digest"] for image in daemon.call("GET", "/v1/images").json["images"] for name in image["names"]
    }


def test_an_imported_archive_is_an_image_that_runs(store: Daemon, hello: bytes) -> None:
    answer = import_as(store, "tiny", good(hello))
    assert answer.status == 201, answer.data
    assert answer.json["names"] == ["tiny"]
    assert answer.json["size_bytes"] > 0
    assert store.call("GET", "/v1/images/tiny").json == answer.json
    sandbox = store.create(image="tiny")
    assert store.view(sandbox)["image_digest"] == answer.json["digest"]
    result = store.call("POST", f"/v1/sandboxes/{sandbox}/shell", {"argv": ["/bin/hello"]}).json
    assert (result["stdout"], result["exit_code"]) == ("hello from /bin/hello\n", 5)
    no_shell = store.call("POST", f"/v1/sandboxes/{sandbox}/shell", {"cmd": "true"})
    assert (no_shell.status, no_shell.json["kind"]) == (422, "program_not_found")
    in_use = store.call("DELETE", "/v1/images/tiny")
    assert (in_use.status, in_use.json["kind"]) == (409, "conflict")
    store.delete(sandbox)
    assert store.call("DELETE", "/v1/images/tiny").status == 200
    assert store.call("GET", "/v1/images/tiny").status == 404
    assert store.call("POST", "/v1/sandboxes", {"image": "tiny"}).status == 404


def test_a_name_moves_to_the_new_image_and_old_sandboxes_keep_theirs(store: Daemon, hello: bytes) -> None:
    first = import_as(store, "moving", good(hello)).json["digest"]
    old = store.create(image="moving")
    second = import_as(store, "moving", good(hello, "hallo")).json["digest"]
    assert first != second
    assert names(store)["moving"] == second
    new = store.create(image="moving")
    for sandbox, program in ((old, "hello"), (new, "hallo")):
        body = {"argv": [f"/bin/{program}"]}
        assert store.call("POST", f"/v1/sandboxes/{sandbox}/shell", body).json["exit_code"] == 5
    store.delete_all()


def test_the_same_archive_is_the_same_image(store: Daemon, hello: bytes) -> None:
    assert import_as(store, "a", good(hello)).json["digest"] == import_as(store, "b", good(hello)).json["digest"]


EVIL = b"this must be nowhere outside the image\n"
HOSTILE = {
    "nothing at all": b"",
    "no archive": b"no archive at all" * 1000,
    "an archive cut off": archive((entry("big"), b"x" * 100_000))[:50_000],
    "a path upwards": archive((entry("../sandboxd-evil"), EVIL)),
    "a path upwards in the middle": archive((entry("a/../../sandboxd-evil"), EVIL)),
    "a path through a link": archive(entry("l", tarfile.SYMTYPE, link="/tmp"), (entry("l/sandboxd-evil"), EVIL)),
    "a hard link to a file of the host": archive(entry("shadow", tarfile.LNKTYPE, link="/etc/shadow")),
    "a hard link upwards": archive(entry("x", tarfile.LNKTYPE, link="../../../../../../etc/shadow")),
    "dev as a link": archive(entry("dev", tarfile.SYMTYPE, link="/tmp"), entry("proc", tarfile.DIRTYPE)),
    "proc as a file": archive((entry("proc"), b"x"), entry("dev", tarfile.DIRTYPE)),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_touches_nothing_but_itself(store: Daemon, data: bytes) -> None:
    """Refused, or unpacked to something harmless; in no case a file of the host is written, read or shown."""
    before = sorted(os.listdir(store.image_dir))
    answer = import_as(store, "hostile", data)
    if answer.status == 201:
        # What could be unpacked within its root is an image like others: the mount points decide at the launch.
        made = store.call("POST", "/v1/sandboxes", {"image": "hostile"})
        assert made.status in {201, 422, 500}
        store.delete_all()
        assert store.call("DELETE", "/v1/images/hostile").status == 200
    else:
        assert 400 <= answer.status < 500, answer.data
        assert answer.json["error"].startswith("cannot ")
        assert "hostile" not in names(store)
    assert sorted(os.listdir(store.image_dir)) == before
    for place in ("/tmp", "/", str(store.image_dir), str(store.image_dir.parent)):
        assert not os.path.lexists(f"{place}/sandboxd-evil")


def test_device_nodes_and_setuid_programs_are_worth_nothing(store: Daemon, hello: bytes) -> None:
    disk = entry("bin/disk", tarfile.BLKTYPE, mode=0o666)
    disk.devmajor, disk.devminor = 254, 0
    data = archive(
        *[entry(name, tarfile.DIRTYPE) for name in ("dev", "proc", "bin")],
        disk,
        (entry("bin/suid", mode=0o4755), hello),
    )
    answer = import_as(store, "devices", data)
    if answer.status == 201:
        sandbox = store.create(image="devices")
        body = {"argv": ["/bin/suid"]}
        assert store.call("POST", f"/v1/sandboxes/{sandbox}/shell", body).json["exit_code"] == 5
        read = store.call("GET", f"/v1/sandboxes/{sandbox}/files?path=/bin/disk")
        assert 400 <= read.status < 500
        store.delete_all()
    else:
        assert 400 <= answer.status < 500


def test_a_client_that_leaves_in_the_middle_of_an_import_leaves_nothing(store: Daemon) -> None:
    before = sorted(os.listdir(store.image_dir))
    with contextlib.closing(store.connect()) as connection:
        connection.putrequest("POST", "/v1/images/import?name=half")
        connection.putheader("content-length", str(1 << 30))
        connection.endheaders()
        connection.send(archive((entry("file"), b"x" * 1_000_000))[:500_000])
        wait_until(lambda: sorted(os.listdir(store.image_dir)) != before)
    wait_until(lambda: sorted(os.listdir(store.image_dir)) == before)
    assert "half" not in names(store)


@pytest.mark.parametrize("name", ["", "a%0ab", "x" * 201])
def test_a_wrong_image_name_is_refused(store: Daemon, hello: bytes, name: str) -> None:
    assert import_as(store, name, good(hello)).status in {400, 422}


def test_an_unknown_recipe_is_not_found(store: Daemon) -> None:
    answer = store.call("POST", "/v1/images/build", {"recipe": "no-such-recipe"})
    assert (answer.status, "no-such-recipe" in answer.json["error"]) == (404, True)


def test_a_store_without_images_says_what_to_do(store: Daemon) -> None:
    answer = store.call("POST", "/v1/sandboxes")
    assert answer.status == 404
    assert "base" in answer.json["error"]
