"""Small operations on files: …/fs/…"""

import base64
import os
import threading
from typing import Any

import pytest

from tests.support.daemon import Answer, Daemon
from tests.support.sandbox import Box

MIB = 1024 * 1024
LARGEST = 32 * MIB
ODD = b"caf\xe9 \n\"'"
"""not UTF-8, and full of what tools trip over"""


@pytest.fixture
def box(daemon: Daemon) -> Box:
    return Box(daemon, daemon.create())


def fs(box: Box, operation: str, **body: Any) -> Any:
    answer = box.answer(f"fs/{operation}", body)
    assert answer.status == 200, answer.data
    assert answer.json
    return answer.json


def refused(box: Box, operation: str, **body: Any) -> tuple[int, str]:
    answer = box.answer(f"fs/{operation}", body)
    assert answer.status >= 400, answer.data
    assert answer.json["error"].startswith("cannot ")
    return answer.status, answer.json["kind"]


def names(listing: Any) -> list[str]:
    return [entry["path"] for entry in listing["entries"]]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# -- contents -----------------------------------------------------------------------------------------------------


def test_text_goes_in_and_comes_out(box: Box) -> None:
    text = "grüße\n\u0000\U0001f600"
    written = fs(box, "write", path="/tmp/a/b/text", content=text)
    assert written == {"path": "/tmp/a/b/text", "size": len(text.encode())}
    assert fs(box, "read", path="/tmp/a/b/text")["content"] == text
    assert box.shell("stat -c '%a %U' /tmp/a /tmp/a/b/text")["stdout"] == "755 user\n644 user\n"
    assert fs(box, "write", path="/tmp/a/b/text", content="")["size"] == 0
    assert fs(box, "read", path="/tmp/a/b/text") == {"path": "/tmp/a/b/text", "content": "", "size": 0}


def test_a_relative_path_begins_at_the_working_directory(box: Box, daemon: Daemon) -> None:
    fs(box, "write", path="note", content="x")
    home = box.shell("pwd")["stdout"].strip()
    assert box.shell(f"cat {home}/note")["stdout"] == "x"
    assert "note" in names(fs(box, "list"))
    assert "note" in names(fs(box, "list", path="."))
    elsewhere = Box(daemon, daemon.create(workdir="/var/tmp"))
    fs(elsewhere, "write", path="sub/../note", content="y", user="root")
    assert elsewhere.shell("cat /var/tmp/note; stat -c %U /var/tmp/note")["stdout"] == "yroot\n"


IDENTITY = "stat -c '%i %h %a %U' /tmp/d/file; python3 -c 'import os; print(os.listxattr(\"/tmp/d/file\"))'"
MAKE = (
    "mkdir /tmp/d && echo a longer old text > /tmp/d/file && chmod 640 /tmp/d/file && ln /tmp/d/file /tmp/d/other && "
    'python3 -c \'import os; os.setxattr("/tmp/d/file", "user.mine", b"1")\''
)


def test_a_write_is_to_the_file_itself_as_any_tools(box: Box) -> None:
    assert box.shell(MAKE)["exit_code"] == 0
    before = box.shell(IDENTITY)["stdout"]
    assert " 2 640 user" in before
    assert "user.mine" in before
    fs(box, "write", path="/tmp/d/file", content="new")
    assert box.shell(IDENTITY)["stdout"] == before
    assert box.shell("cat /tmp/d/other")["stdout"] == "new"
    # What may be written may be, in a directory that may not be, too.
    box.shell("chown root /tmp/d && chmod 755 /tmp/d", user="root")
    fs(box, "write", path="/tmp/d/file", content="newer")
    assert box.shell("cat /tmp/d/other")["stdout"] == "newer"
    assert refused(box, "write", path="/tmp/d/file", content="x", atomic=True) == (403, "permission_denied")
    path = f"/v1/sandboxes/{box.id}/files?path=/tmp/d/file"
    assert box.daemon.call("PUT", path, data=b"newest").status == 403
    assert box.daemon.call("PUT", f"{path}&atomic=false", data=b"newest").status == 200
    assert box.shell("cat /tmp/d/other")["stdout"] == "newest"
    assert box.shell(IDENTITY)["stdout"] == before


def test_an_atomic_write_replaces_as_one_step_and_keeps_the_mode(box: Box) -> None:
    box.shell("mkdir /tmp/d && echo old > /tmp/d/file && chmod 640 /tmp/d/file && ln -s file /tmp/d/link")
    number = box.shell("stat -c %i /tmp/d/file")["stdout"]
    fs(box, "write", path="/tmp/d/link", content="new", atomic=True)
    assert box.shell("stat -c %i /tmp/d/file")["stdout"] != number
    looked = box.shell("ls /tmp/d; cat /tmp/d/file; stat -c %a /tmp/d/file; readlink /tmp/d/link")
    assert looked["stdout"].split() == ["file", "link", "new640", "file"]


def test_append_and_mode_and_overwrite(box: Box) -> None:
    fs(box, "write", path="/tmp/log", content="one\n", mode="0600")
    fs(box, "write", path="/tmp/log", content="two\n", append=True)
    assert box.shell("cat /tmp/log; stat -c %a /tmp/log")["stdout"] == "one\ntwo\n600\n"
    assert refused(box, "write", path="/tmp/log", content="", overwrite=False) == (409, "exists")
    assert refused(box, "write", path="/tmp/log", content="", append=True, atomic=True) == (422, "invalid_request")
    assert refused(box, "write", path="/tmp/no/such", content="", parents=False) == (404, "not_found")


def test_bytes_of_any_kind(box: Box) -> None:
    data = bytes(range(256)) * 64 + b"\0"
    fs(box, "write_bytes", path="/tmp/x", content_b64=b64(data))
    assert base64.b64decode(fs(box, "read_bytes", path="/tmp/x")["content_b64"]) == data
    part = fs(box, "read_bytes", path="/tmp/x", offset=100, length=10)
    assert (base64.b64decode(part["content_b64"]), part["size"]) == (data[100:110], 10)
    assert refused(box, "write_bytes", path="/tmp/x", content_b64="%%%") == (400, "invalid_request")


def test_text_that_is_none_is_refused_with_the_way_out(box: Box) -> None:
    fs(box, "write_bytes", path="/tmp/x", content_b64=b64(b"ab\xff"))
    answer = box.answer("fs/read", {"path": "/tmp/x"})
    assert (answer.status, answer.json["kind"], answer.json["details"]) == (422, "not_utf8", {"position": 2})
    assert "read_bytes" in answer.json["error"]
    assert fs(box, "read", path="/tmp/x", invalid="replace")["content"] == "ab\ufffd"


def test_the_largest_file_in_one_piece_and_one_byte_more(box: Box) -> None:
    data = os.urandom(LARGEST)
    assert fs(box, "write_bytes", path="/tmp/big", content_b64=b64(data))["size"] == LARGEST
    assert base64.b64decode(fs(box, "read_bytes", path="/tmp/big")["content_b64"]) == data
    assert refused(box, "write_bytes", path="/tmp/big2", content_b64=b64(data + b"x")) == (413, "file_too_large")
    assert refused(box, "write", path="/tmp/big2", content="x" * (LARGEST + 1)) == (413, "file_too_large")
    box.shell("echo >> /tmp/big")
    assert refused(box, "read_bytes", path="/tmp/big") == (413, "file_too_large")
    assert fs(box, "exists", path="/tmp/big2")["exists"] is False


def test_a_whole_file_fits_whatever_the_limit_of_other_bodies(own_root_daemon: Daemon) -> None:
    config = own_root_daemon.root / "config.toml"
    config.write_text("[http]\nmax_body_bytes = 65536\n")
    own_root_daemon.options = ("--config", str(config))
    own_root_daemon.start()
    box = Box(own_root_daemon, own_root_daemon.create())
    assert fs(box, "write_bytes", path="/tmp/big", content_b64=b64(bytes(MIB)))["size"] == MIB
    assert box.answer("shell", {"cmd": "x" * 70_000}).status == 413


# -- what is no file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["read", "write"])
@pytest.mark.parametrize("what", ["mkfifo /tmp/it", "ln -s /dev/zero /tmp/it", "ln -s /dev/tty /tmp/it"])
def test_nothing_but_a_regular_file_is_opened(box: Box, what: str, operation: str) -> None:
    box.shell(what)
    content = {"content": "x"} if operation == "write" else {}
    assert refused(box, operation, path="/tmp/it", **content) == (422, "not_regular")


def test_files_of_proc_are_read_to_their_end(box: Box) -> None:
    assert "sandbox-init" in fs(box, "read", path="/proc/1/comm")["content"]
    assert fs(box, "read", path="/proc/self/mountinfo")["size"] > 1000


@pytest.mark.parametrize(
    ("operation", "body", "expected"),
    [
        ("read", {"path": "/nonesuch"}, (404, "not_found")),
        ("read", {"path": "/etc"}, (422, "is_a_directory")),
        ("read", {"path": "/etc/shadow"}, (403, "permission_denied")),
        ("read", {"path": "/etc/passwd/x"}, (422, "not_a_directory")),
        ("read", {"path": "/etc/passwd", "user": "nobody-here"}, (422, "unknown_user")),
        ("read", {"path": "a\0b"}, (422, "invalid_request")),
        ("read", {"path": ""}, (422, "invalid_request")),
        ("read", {"path": "ä" * 2100}, (422, "invalid_request")),
        ("read", {"path": "/x" * 2048}, (422, "invalid_request")),
        ("read", {"path": "x" * 300}, (422, "name_too_long")),
        ("read", {}, (422, "invalid_request")),
        ("read", {"path": "/x", "path_b64": "L3g="}, (422, "invalid_request")),
        ("read", {"path_b64": "no base64!"}, (422, "invalid_request")),
        ("read_bytes", {"path": "/x", "offset": -1}, (422, "invalid_request")),
        ("read_bytes", {"path": "/x", "length": LARGEST + 1}, (422, "invalid_request")),
        ("list", {"path": "/nonesuch"}, (404, "not_found")),
        ("list", {"path": "/etc/passwd"}, (422, "not_a_directory")),
        ("list", {"path": "/root"}, (403, "permission_denied")),
        ("list", {"path": "/", "depth": 65}, (422, "invalid_request")),
        ("list", {"path": "/", "limit": 0}, (422, "invalid_request")),
        ("stat", {"path": "/nonesuch"}, (404, "not_found")),
        ("mkdir", {"path": "/etc/x"}, (403, "permission_denied")),
        ("mkdir", {"path": "/tmp", "parents": False}, (409, "exists")),
        ("mkdir", {"path": "/etc/passwd"}, (422, "not_a_directory")),
        ("remove", {"path": "/nonesuch"}, (404, "not_found")),
        ("remove", {"path": "/etc/passwd"}, (403, "permission_denied")),
        ("move", {"path": "/nonesuch", "target": "/tmp/x"}, (404, "not_found")),
        ("move", {"path": "/tmp"}, (422, "invalid_request")),
        ("copy", {"path": "/nonesuch", "target": "/tmp/x"}, (404, "not_found")),
        ("copy", {"path": "/etc", "target": "/tmp/x", "recursive": False}, (422, "is_a_directory")),
        ("copy", {"path": "/dev/null", "target": "/tmp/x"}, (422, "not_regular")),
        ("copy", {"path": "/etc/passwd", "target": "/tmp/x/.."}, (422, "path")),
        ("chmod", {"path": "/tmp", "mode": "rwx"}, (422, "invalid_request")),
        ("chown", {"path": "/tmp", "owner": "nobody-here"}, (422, "unknown_user")),
        ("chown", {"path": "/etc/passwd", "owner": "user"}, (403, "permission_denied")),
        ("symlink", {"path": "/tmp", "target": "x"}, (409, "exists")),
        ("write", {"path": "/tmp", "content": "x"}, (422, "is_a_directory")),
        ("write", {"path": "/x", "content": "x", "mode": "9"}, (422, "invalid_request")),
        ("nonesuch", {"path": "/x"}, (404, "not_found")),
    ],
)
def test_what_cannot_be_done_is_said(
    root_daemon: Daemon, operation: str, body: dict[str, Any], expected: tuple[int, str]
) -> None:
    box = Box(root_daemon, root_daemon.create())
    try:
        assert refused(box, operation, **body) == expected
    finally:
        root_daemon.delete(box.id)


# -- looking ------------------------------------------------------------------------------------------------------


def test_stat_tells_all(box: Box) -> None:
    box.shell("cd /tmp && mkdir -m 1750 d && printf 12345 > d/f && touch -d '2001-02-03 04:05:06.789 UTC' d/f")
    box.shell("ln -s d/f /tmp/link")
    view = fs(box, "stat", path="/tmp/link")
    assert {key: view[key] for key in ("path", "name", "type", "size", "mode", "owner", "group", "uid", "gid")} == {
        "path": "/tmp/link", "name": "link", "type": "file", "size": 5, "mode": "0644",
        "owner": "user", "group": "user", "uid": 1000, "gid": 1000,
    }  # fmt: skip
    assert view["modified_at"] == "2001-02-03T04:05:06.789000Z"
    assert view["real_path"] == "/tmp/d/f"
    link = fs(box, "stat", path="/tmp/link", follow=False)
    assert (link["type"], link["target"]) == ("symlink", "d/f")
    assert "real_path" not in link
    assert fs(box, "stat", path="/tmp/d")["mode"] == "1750"
    assert fs(box, "stat", path="/")["name"] == "/"


def test_exists(box: Box) -> None:
    box.shell("ln -s nowhere /tmp/dangling")
    for path, found in (("/etc/passwd", "file"), ("/etc", "directory"), ("/nonesuch", None), ("/etc/passwd/x", None)):
        assert fs(box, "exists", path=path) == {"path": path, "exists": found is not None, "type": found}
    assert fs(box, "exists", path="/tmp/dangling")["exists"] is False
    assert fs(box, "exists", path="/tmp/dangling", follow=False)["exists"] is True
    assert refused(box, "exists", path="/root/x") == (403, "permission_denied")


def test_list_by_depth(box: Box) -> None:
    box.shell("cd /tmp && mkdir -p t/a/b t/z && touch t/a.txt t/a/b/deep && ln -s / t/out && mkfifo t/pipe")
    assert names(fs(box, "list", path="/tmp/t")) == ["a", "a.txt", "out", "pipe", "z"]
    listing = fs(box, "list", path="/tmp/t", depth=3)
    assert names(listing) == ["a", "a/b", "a/b/deep", "a.txt", "out", "pipe", "z"]
    types = {entry["path"]: entry["type"] for entry in listing["entries"]}
    assert types == {
        "a": "directory", "a/b": "directory", "a/b/deep": "file", "a.txt": "file", "out": "symlink", "pipe": "fifo",
        "z": "directory",
    }  # fmt: skip
    assert "next_cursor" in listing
    assert listing["next_cursor"] is None


@pytest.mark.parametrize("page", [1, 2, 3, 7])
def test_pages_of_a_list_make_the_whole(box: Box, page: int) -> None:
    box.shell("cd /tmp && mkdir -p t/{a,b,c}/{x,y} && touch t/{a,b}/{x,y}/{1,2} t/a-b t/a/x.1")
    whole = names(fs(box, "list", path="/tmp/t", depth=9))
    assert len(whole) == 19
    found: list[str] = []
    cursor = None
    while True:
        listing = fs(box, "list", path="/tmp/t", depth=9, limit=page, **({"cursor": cursor} if cursor else {}))
        assert len(listing["entries"]) <= page
        found += names(listing)
        cursor = listing["next_cursor"]
        if cursor is None:
            break
    assert found == whole


def test_a_page_begins_behind_an_entry_that_has_gone(box: Box) -> None:
    box.shell("cd /tmp && mkdir t && touch t/{1,2,3,4}")
    listing = fs(box, "list", path="/tmp/t", limit=2)
    box.shell("rm /tmp/t/2")
    assert names(fs(box, "list", path="/tmp/t", cursor=listing["next_cursor"])) == ["3", "4"]


def test_names_that_are_not_utf8_survive(box: Box) -> None:
    path = b"/tmp/" + ODD
    fs(box, "write", path_b64=b64(path), content="odd")
    (entry,) = (entry for entry in fs(box, "list", path="/tmp")["entries"] if "path_b64" in entry)
    assert base64.b64decode(entry["path_b64"]) == ODD
    assert entry["path"] == ODD.decode("utf-8", "replace")
    assert fs(box, "read", path_b64=b64(path))["content"] == "odd"
    query = base64.urlsafe_b64encode(path).decode()
    assert box.daemon.call("GET", f"/v1/sandboxes/{box.id}/files?path_b64={query}").data == b"odd"
    fs(box, "move", path_b64=b64(path), target_b64=b64(path + b"2"))
    fs(box, "symlink", path="/tmp/link", target_b64=b64(path + b"2"))
    link = fs(box, "stat", path="/tmp/link", follow=False)
    assert base64.b64decode(link["target_b64"]) == path + b"2"
    assert fs(box, "read", path="/tmp/link")["content"] == "odd"
    fs(box, "remove", path_b64=b64(path + b"2"))


# -- names --------------------------------------------------------------------------------------------------------


def test_mkdir_and_remove(box: Box) -> None:
    assert fs(box, "mkdir", path="/tmp/a/b/c", mode="0700")["count"] == 3
    assert fs(box, "mkdir", path="/tmp/a/b/c")["count"] == 0
    assert box.shell("stat -c '%a %U' /tmp/a /tmp/a/b/c")["stdout"] == "755 user\n700 user\n"
    fs(box, "write", path="/tmp/a/file", content="")
    assert refused(box, "remove", path="/tmp/a") == (409, "not_empty")
    assert fs(box, "remove", path="/tmp/a", recursive=True)["count"] == 4
    assert fs(box, "exists", path="/tmp/a")["exists"] is False


def test_move(box: Box) -> None:
    box.shell("cd /tmp && mkdir -p d/e && echo 1 > one && echo 2 > two && echo 3 > d/e/three")
    assert refused(box, "move", path="/tmp/one", target="/tmp/two", overwrite=False) == (409, "exists")
    assert fs(box, "move", path="/tmp/one", target="/tmp/two") == {"path": "/tmp/one", "target": "/tmp/two"}
    fs(box, "move", path="/tmp/d", target="/tmp/n/e/w", parents=True)
    assert box.shell("cat /tmp/two /tmp/n/e/w/e/three; ls /tmp/d")["stdout"] == "1\n3\n"
    assert refused(box, "move", path="/tmp/n", target="/tmp/two")[0] == 422
    assert refused(box, "move", path="/tmp/n", target="/tmp/n/e/x")[0] == 422


def test_what_cannot_be_renamed_is_moved_all_the_same(box: Box) -> None:
    """From one file system to another, and a directory that is the image's."""
    box.shell("mkdir -p /dev/shm/d && echo x > /dev/shm/d/file && ln -s file /dev/shm/d/link")
    fs(box, "move", path="/dev/shm/d", target="/tmp/moved")
    assert box.shell("cat /tmp/moved/link; ls /dev/shm")["stdout"] == "x\n"
    before = names(fs(box, "list", path="/etc/pam.d", user="root"))
    fs(box, "move", path="/etc/pam.d", target="/tmp/pam", user="root")
    assert names(fs(box, "list", path="/tmp/pam", user="root")) == before
    assert fs(box, "exists", path="/etc/pam.d")["exists"] is False


def test_copy_of_a_file(box: Box) -> None:
    box.shell("cd /tmp && printf content > a && chmod 751 a && touch -d @1000000000 a && ln -s a link")
    assert fs(box, "copy", path="/tmp/a", target="/tmp/b")["bytes"] == 7
    assert box.shell("cat /tmp/b; stat -c ' %a %Y' /tmp/b")["stdout"] == "content 751 1000000000\n"
    assert refused(box, "copy", path="/tmp/a", target="/tmp/b", overwrite=False) == (409, "exists")
    fs(box, "copy", path="/tmp/link", target="/tmp/x/y/z", parents=True)
    assert box.shell("readlink /tmp/x/y/z")["stdout"] == "a\n"
    assert fs(box, "copy", path="/proc/self/mountinfo", target="/tmp/mounts")["bytes"] > 1000


def test_copy_of_a_tree(box: Box) -> None:
    box.shell(
        "cd /tmp && mkdir -p t/empty t/d && echo 1 > t/d/f && chmod 500 t/d && ln -s /etc t/link && mkfifo t/pipe"
        " && touch -d @1000000000 t t/d && truncate -s 1T t/sparse"
    )
    assert fs(box, "copy", path="/tmp/t", target="/tmp/c")["entries"] == 7
    listing = "find . -printf '%p %y %m %l %T@ %s\\n' | grep -v ' d ' | sort; stat -c '%n %a' . d empty"
    assert box.shell(f"cd /tmp/c; {listing}")["stdout"] == box.shell(f"cd /tmp/t; {listing}")["stdout"]
    assert int(box.shell("du -k /tmp/c/sparse | cut -f1")["stdout"]) < 100
    assert refused(box, "copy", path="/tmp/t", target="/tmp/c") == (409, "not_empty")
    assert refused(box, "copy", path="/tmp/t", target="/tmp/c", overwrite=False) == (409, "exists")
    # Into itself: all that was there before.
    assert fs(box, "copy", path="/tmp/t", target="/tmp/t/empty/self")["entries"] == 7
    assert box.shell("ls -A /tmp | sort")["stdout"].split() == ["c", "t"]


def test_a_copy_keeps_owners_where_root_makes_it(box: Box) -> None:
    box.shell("cd /tmp && mkdir t && echo > t/mine")
    fs(box, "copy", path="/tmp/t", target="/tmp/c", user="root")
    assert box.shell("stat -c %U /tmp/c /tmp/c/mine")["stdout"] == "user\nuser\n"
    fs(box, "copy", path="/etc/passwd", target="/tmp/passwd")
    assert box.shell("stat -c %U /tmp/passwd")["stdout"] == "user\n"


def test_a_copy_that_fails_leaves_nothing(box: Box) -> None:
    assert refused(box, "copy", path="/etc", target="/tmp/etc") == (403, "permission_denied")
    assert box.shell("ls -A /tmp")["stdout"] == ""


# -- attributes ---------------------------------------------------------------------------------------------------


def test_chmod_and_chown_of_one(box: Box) -> None:
    box.shell("cd /tmp && echo > f && ln -s f link")
    assert fs(box, "chmod", path="/tmp/link", mode="0611")["count"] == 1
    fs(box, "chown", path="/tmp/link", owner="root", group="0", user="root")
    assert box.shell("stat -c '%a %U %G' /tmp/f")["stdout"] == "611 root root\n"
    fs(box, "chown", path="/tmp/link", owner="root", user="root", follow=False)
    assert box.shell("stat -c '%U' /tmp/link")["stdout"] == "root\n"


def test_chmod_and_chown_of_a_tree_follow_no_link(box: Box) -> None:
    box.shell("cd /tmp && mkdir -p t/a/b out && touch t/a/b/f out/safe && ln -s /tmp/out t/a/link && ln -s t top")
    assert fs(box, "chmod", path="/tmp/t", mode="0700", recursive=True)["count"] == 5
    assert fs(box, "chown", path="/tmp/t", owner="root", user="root", recursive=True)["count"] == 5
    assert box.shell("stat -c '%a %U' /tmp/t/a/b/f /tmp/t/a /tmp/out/safe", user="root")["stdout"] == (
        "700 root\n700 root\n644 user\n"
    )
    assert box.shell("stat -c %U /tmp/t/a/link", user="root")["stdout"] == "root\n"
    assert fs(box, "chown", path="/tmp/top", owner="root", user="root", recursive=True)["count"] == 1
    # What cannot be entered is opened by the change itself.
    box.shell("mkdir -p /tmp/shut/in && chmod 0 /tmp/shut/in /tmp/shut")
    assert fs(box, "chmod", path="/tmp/shut", mode="0755", recursive=True)["count"] == 2
    assert fs(box, "chmod", path="/tmp/shut", mode="0000", recursive=True)["count"] == 2


SWAPPING = """
import os
os.chdir("/tmp/t")
os.symlink("/dev/zero", "zero"); os.mkfifo("fifo"); os.symlink("/tmp/t", "link"); os.mkdir("dir")
os.symlink("it", "it2")
while not os.path.exists("/tmp/stop"):
    for name in ("zero", "fifo", "dir", "link", "it2"):
        try:
            os.rename(name, "it"); os.rename("it", name)
        except OSError:
            try: os.unlink("it")
            except OSError: pass
            if name == "fifo" and not os.path.exists(name): os.mkfifo(name)
            if name == "zero" and not os.path.islink(name): os.symlink("/dev/zero", name)
"""


@pytest.mark.slow
def test_whatever_a_name_becomes_meanwhile_the_daemon_neither_waits_nor_fails(box: Box) -> None:
    """A process makes one name a FIFO, a device, a directory and links in turn, as fast as it can."""
    box.shell("mkdir /tmp/t")
    fs(box, "write", path="/tmp/swap.py", content=SWAPPING)
    swapping = threading.Thread(target=box.shell, args=("python3 /tmp/swap.py",))
    swapping.start()
    seen = set()
    for number in range(10):
        for operation, more in (
            ("read", {}),
            ("write", {"content": "x"}),
            ("write", {"content": "x", "append": True}),
            ("copy", {"target": f"/tmp/copy{number}"}),
            ("chmod", {"mode": "0700", "recursive": True, "user": "root"}),
            ("list", {}),
            ("remove", {"recursive": True}),
        ):
            answer = box.answer(f"fs/{operation}", {"path": "/tmp/t/it", **more})
            assert answer.status < 500, answer.data
            seen.add(answer.json.get("kind", "done"))
    fs(box, "write", path="/tmp/stop", content="")
    swapping.join()
    assert seen & {"not_regular", "is_a_directory", "not_found", "done"}
    assert box.shell("ls -l /dev/zero")["stdout"].startswith("crw-rw-rw-")


def test_only_a_running_sandbox_has_files(box: Box) -> None:
    box.daemon.delete(box.id)
    answer: Answer = box.answer("fs/list", {"path": "/"})
    assert answer.status == 404
