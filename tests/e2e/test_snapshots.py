"""Snapshots, clones and restores: files exactly as they were, and nothing left when nobody needs them."""

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from sandboxd.trees.layerarchive import trailer
from tests.support import trees, witnesses
from tests.support.daemon import Answer, Daemon
from tests.support.sandbox import Box
from tests.support.waiting import wait_until

SANDBOXES = "/v1/sandboxes"
SNAPSHOTS = "/v1/snapshots"

# Runs inside: the same code that describes trees to the other tests.
SCRIBBLE = """
from pathlib import Path; from random import Random
for number, top in enumerate(("/var", "/home/user", "/etc/alternatives")):
    Scribbler(Path(top), Random({seed} + number), root=True).scribble(80)
"""
# Of the two top directories, only what is theirs: walking / would take the whole image in.
DIGEST = """
import hashlib, os
def one(top):
    at = os.stat(top)
    attributes = [(name, os.getxattr(top, name)) for name in os.listxattr(top)]
    return (at.st_mode, at.st_uid, at.st_gid, at.st_mtime_ns, attributes)
tops = "/var", "/home", "/usr/local", "/etc/alternatives", "/opt"
found = [(top, sorted(describe(top, links={links}).items())) for top in tops]
print(hashlib.sha256(repr((found, one("/"), one("/etc"))).encode()).hexdigest())
"""


def python(box: Box, script: str) -> str:
    """Run a script inside, as root, that may use tests/support/trees; what it prints."""
    source = Path(trees.__file__).read_text() + script
    answer = box.daemon.call(
        "PUT", f"{SANDBOXES}/{box.id}/files?path=/dev/shm/script.py&user=root", data=source.encode()
    )
    assert answer.status in {200, 201}, answer.data
    done = box.shell("python3 -B /dev/shm/script.py", user="root", timeout_ms=60_000)
    assert done["exit_code"] == 0, done["stderr"]
    return str(done["stdout"])


def digest(box: Box) -> str:
    # Without root, this kernel gives names of one file different inode numbers until the overlay is mounted anew.
    return python(box, DIGEST.format(links=not box.daemon.prefix))


def take(box: Box, **body: object) -> str:
    answer = box.answer("snapshot", body)
    assert answer.status == 201, answer.data
    return str(answer.json["id"])


def made_of(daemon: Daemon, snapshot: str, **body: object) -> Box:
    return Box(daemon, daemon.create(snapshot=snapshot, **body))


@pytest.fixture
def box(daemon: Daemon) -> Box:
    return Box(daemon, daemon.create(name="origin", env={"COLOUR": "blue"}))


@pytest.mark.parametrize("seed", [1, 20, 300])
def test_a_sandbox_of_a_snapshot_has_exactly_its_files(box: Box, seed: int) -> None:
    box.shell("mkdir -p /usr/local/x; chmod 0750 /etc; touch -d 2001-01-01 / /etc", user="root")
    python(box, SCRIBBLE.format(seed=seed))
    before = digest(box)
    snapshot = take(box)
    box.shell("rm -rf /home/user/* /usr/local/*; date > /var/changed", user="root")
    assert digest(made_of(box.daemon, snapshot)) == before


def test_what_changes_later_changes_neither_snapshot_nor_clone(box: Box) -> None:
    box.shell("echo one > ~/file")
    snapshot = take(box)
    box.shell("echo two > ~/file")
    first, second = made_of(box.daemon, snapshot), made_of(box.daemon, snapshot)
    first.shell("echo three > ~/file")
    assert second.shell("cat ~/file")["stdout"] == "one\n"
    assert box.shell("cat ~/file")["stdout"] == "two\n"


def test_a_clone_inherits_what_was_asked_for_and_is_somebody_else(box: Box) -> None:
    mine = box.shell("cat /etc/machine-id /proc/sys/kernel/random/boot_id; id -u; echo $COLOUR")["stdout"].split()
    answer = box.answer("clone", {"name": "copy"})
    assert answer.status == 201, answer.data
    clone = Box(box.daemon, answer.json["id"])
    its = clone.shell("cat /etc/machine-id /proc/sys/kernel/random/boot_id; id -u; echo $COLOUR")["stdout"].split()
    assert its[2:] == mine[2:] == ["1000", "blue"]
    assert its[0] != mine[0]
    assert its[1] != mine[1]
    assert box.daemon.view("copy")["id"] == clone.id


RENAME = """
import os
os.makedirs("/home/user/p/old/deep"); open("/home/user/p/old/deep/file", "w").write("mine")
"""
RENAME_AGAIN = """
import os
os.rename("/home/user/p/old", "/home/user/p/new")
os.rename("/home/user/p/new/deep", "/opt/deep")
os.mkdir("/home/user/p/old"); open("/home/user/p/old/other", "w").write("other")
os.rename("/usr/share/perl5", "/usr/share/perl5-was"); open("/usr/share/perl5-was/mine", "w").write("x")
"""
RENAMED = (
    "find /home/user/p /opt | sort; cat /opt/deep/file /home/user/p/old/other; "
    "ls -d /usr/share/perl5*; find /usr/share/perl5-was | sort | sha256sum"
)


@pytest.mark.needs_root
def test_directories_of_a_clone_and_of_its_image_can_be_renamed(own_root_daemon: Daemon) -> None:
    """As git mv, npm and rustup do, by rename(2); in a clone every directory is of a layer below."""
    daemon = own_root_daemon.start()
    origin = Box(daemon, daemon.create())
    python(origin, RENAME)
    clone = Box(daemon, origin.answer("clone", None).json["id"])
    python(clone, RENAME_AGAIN)
    shown = clone.shell(RENAMED, user="root")["stdout"]
    assert "/opt/deep/file\nmineother/usr/share/perl5-was\n" in shown
    snapshot = take(clone)
    assert made_of(daemon, snapshot).shell(RENAMED, user="root")["stdout"] == shown
    # In a file, where no layer is below but the image, and by a chain so long that its layers become one.
    exported = daemon.call("GET", f"{SNAPSHOTS}/{snapshot}/export")
    imported = daemon.call("POST", f"{SNAPSHOTS}/import", data=exported.data)
    assert imported.status == 201, imported.data
    assert made_of(daemon, imported.json["id"]).shell(RENAMED, user="root")["stdout"] == shown
    for _ in range(9):
        clone = Box(daemon, clone.answer("clone", None).json["id"])
    assert clone.shell(RENAMED, user="root")["stdout"] == shown


def test_several_clones_at_once(box: Box) -> None:
    box.shell("echo shared > ~/file")
    answer = box.answer("clone", {"count": 4, "name": "many"})
    assert answer.status == 201, answer.data
    assert {view["name"] for view in answer.json["sandboxes"]} == {"many-1", "many-2", "many-3", "many-4"}
    assert answer.json["errors"] == []
    for view in answer.json["sandboxes"]:
        assert box.daemon.shell(view["id"], "cat ~/file")["stdout"] == "shared\n"


def test_a_clone_that_cannot_be_made_is_told_beside_those_that_can(box: Box) -> None:
    box.daemon.create(name="pair-2")
    answer = box.answer("clone", {"count": 2, "name": "pair"})
    assert answer.status == 201, answer.data
    assert [view["name"] for view in answer.json["sandboxes"]] == ["pair-1"]
    assert [error["kind"] for error in answer.json["errors"]] == ["conflict"]
    assert box.answer("clone", {"name": "pair-2"}).status == 409


@pytest.mark.parametrize("state", ["running", "paused", "stopped"])
def test_restore_brings_every_file_back(box: Box, state: str) -> None:
    python(box, SCRIBBLE.format(seed=7))
    before = digest(box)
    snapshot = take(box, name="good")
    box.shell("rm -rf /home/user/* /var/*; echo new > /opt/new", user="root")
    identity = box.shell("cat /etc/machine-id")["stdout"]
    if state != "running":
        assert box.answer(_verb(state), None).status == 200
    answer = box.answer("restore", {"snapshot": "good"})
    assert answer.status == 200, answer.data
    assert answer.json["snapshot"] == snapshot
    if state == "stopped":
        assert answer.json["status"] == "stopped"
        assert box.answer("start", None).status == 200
    assert digest(box) == before
    assert box.shell("cat /etc/machine-id")["stdout"] == identity
    assert "restored" in box.daemon.events(box.id)


def _verb(state: str) -> str:
    return {"paused": "pause", "stopped": "stop"}[state]


@pytest.mark.parametrize("state", ["paused", "stopped"])
def test_a_sandbox_at_rest_is_snapshot_as_it_is(box: Box, state: str) -> None:
    python(box, SCRIBBLE.format(seed=3))
    before = digest(box)
    assert box.answer(_verb(state), None).status == 200
    for _ in range(2):
        snapshot = take(box)
        assert digest(made_of(box.daemon, snapshot)) == before
    assert box.daemon.view(box.id)["status"] == state
    assert box.answer({"paused": "resume", "stopped": "start"}[state], None).status == 200
    assert digest(box) == before


def test_a_snapshot_is_consistent_while_the_sandbox_writes(box: Box) -> None:
    """Two files that are always the same, but for the moment between two writes."""
    box.shell(
        "(n=0; while :; do n=$((n+1)); echo $n > ~/t; mv ~/t ~/a; echo $n > ~/t; mv ~/t ~/b; done) > /dev/null 2>&1 &"
    )
    wait_until(lambda: box.shell("cat ~/b 2>/dev/null")["stdout"].strip() not in {"", "0"})
    for _ in range(3):
        copy = made_of(box.daemon, take(box))
        first, second = copy.shell("cat ~/a ~/b")["stdout"].split()
        assert int(first) - int(second) in {0, 1}
        before = box.shell("cat ~/a")["stdout"]
        wait_until(lambda before=before: box.shell("cat ~/a")["stdout"] != before)  # it goes on


def test_a_long_chain_is_kept_short_and_loses_nothing(box: Box) -> None:
    current = box
    for number in range(20):
        current.shell(f"echo {number} > ~/{number}; rm -f ~/{number - 3}; mkdir ~/d{number}; rm -rf ~/d{number - 2}")
        snapshot = take(current)
        told = box.daemon.call("GET", f"{SNAPSHOTS}/{snapshot}").json
        assert told["layers"] <= 8
        following = made_of(box.daemon, snapshot)
        box.daemon.delete(current.id)
        current = following
    assert sorted(current.shell("ls ~")["stdout"].split()) == ["17", "18", "19", "d18", "d19"]


def test_a_deleted_snapshot_is_gone_and_what_stands_on_it_goes_on(box: Box) -> None:
    box.shell("echo kept > ~/file")
    snapshot = take(box, name="short-lived")
    clone = made_of(box.daemon, snapshot)
    assert box.daemon.call("GET", f"{SNAPSHOTS}/short-lived").json["sandboxes"] == [clone.id]
    assert box.daemon.call("DELETE", f"{SNAPSHOTS}/short-lived").status == 200
    assert box.daemon.call("GET", f"{SNAPSHOTS}/{snapshot}").status == 404
    assert clone.shell("cat ~/file")["stdout"] == "kept\n"
    box.daemon.delete(clone.id)
    assert witnesses.disagreement(box.daemon) == {}
    assert box.daemon.call("GET", "/v1/storage").json["layers"] == 0


def test_snapshots_are_listed_in_pages_and_by_sandbox(box: Box) -> None:
    other = Box(box.daemon, box.daemon.create())
    taken = [take(box, metadata={"n": "1"}, description="first"), take(other), take(box)]
    assert [each["id"] for each in box.daemon.snapshots()] == taken
    assert [each["id"] for each in box.daemon.snapshots(f"sandbox={box.id}")] == [taken[0], taken[2]]
    page = box.daemon.call("GET", f"{SNAPSHOTS}?limit=2").json
    rest = box.daemon.call("GET", f"{SNAPSHOTS}?limit=2&cursor={page['next_cursor']}").json
    assert [each["id"] for each in page["snapshots"] + rest["snapshots"]] == taken
    assert rest["next_cursor"] is None
    assert (page["snapshots"][0]["metadata"], page["snapshots"][0]["description"]) == ({"n": "1"}, "first")


def test_names_are_unique_and_unknown_ones_are_404(box: Box) -> None:
    take(box, name="one")
    assert box.answer("snapshot", {"name": "one"}).status == 409
    assert box.daemon.call("GET", f"{SNAPSHOTS}/nonsense").status == 404
    assert box.daemon.call("DELETE", f"{SNAPSHOTS}/nonsense").status == 404
    assert box.answer("restore", {"snapshot": "nonsense"}).status == 404
    assert box.daemon.call("POST", SANDBOXES, {"snapshot": "nonsense"}).status == 404
    assert box.daemon.call("POST", SANDBOXES, {"snapshot": "one", "image": "base"}).status == 400
    assert box.answer("clone", {"count": 0}).status == 422


def test_sizes_are_counted_and_the_cost_is_told(box: Box) -> None:
    box.shell("head -c 3000000 /dev/urandom > ~/data")
    answer = box.answer("snapshot", {})
    cost = answer.json["cost"]
    assert cost["frozen_ms"] > 0
    assert cost["copied_bytes"] + cost["shared_bytes"] >= 3_000_000
    found = f"{SNAPSHOTS}/{answer.json['id']}"
    wait_until(lambda: (box.daemon.call("GET", found).json["size_bytes"] or 0) >= 3_000_000)
    told = box.daemon.call("GET", "/v1/storage").json
    (mine,) = [each for each in told["sandboxes"] if each["id"] == box.id]
    assert mine["size_bytes"] >= 3_000_000
    assert told["layers_bytes"] >= 3_000_000
    cost = box.answer("clone", {"count": 1}).json["cost"]
    assert cost["copied_bytes"] + cost["shared_bytes"] >= 3_000_000


def test_an_image_stays_while_a_snapshot_stands_on_it(box: Box) -> None:
    take(box)
    box.daemon.delete(box.id)
    assert box.daemon.call("DELETE", "/v1/images/base").status == 409


def test_what_cannot_be_kept_is_refused_and_the_sandbox_runs_on(box: Box) -> None:
    box.shell('python3 -c \'import os\nfor _ in range(2100): os.mkdir("d"); os.chdir("d")\'')
    answer = box.answer("snapshot", {})
    assert (answer.status, answer.json["kind"]) == (422, "tree_refused")
    assert box.shell("echo well")["stdout"] == "well\n"


# -- as files -----------------------------------------------------------------------------------------------------


def exported(box: Box, snapshot: str) -> bytes:
    answer = box.daemon.call("GET", f"{SNAPSHOTS}/{snapshot}/export")
    assert answer.status == 200, answer.data
    return answer.data


def imported(daemon: Daemon, data: bytes, name: str = "imported") -> Answer:
    return daemon.call("POST", f"{SNAPSHOTS}/import?name={name}", data=data)


def test_an_exported_snapshot_is_the_same_when_it_is_imported(box: Box) -> None:
    script = 'Scribbler(Path("/home/user"), __import__("random").Random(5), root=True).scribble(150)'
    box.shell("rm -rf /usr/share/doc /var/log/apt; mkdir /var/log/apt; echo x > /var/log/apt/x", user="root")
    second = made_of(box.daemon, take(box))  # so that the file is made of two layers
    python(second, script)
    second.shell("touch -d 2001-01-01 /home/user /etc; rm /usr/bin/git", user="root")
    before = digest(second)
    data = exported(second, take(second, name="original", description="of two layers"))
    answer = imported(box.daemon, data)
    assert answer.status == 201, answer.data
    assert (answer.json["description"], answer.json["sandbox_id"]) == ("of two layers", None)
    assert answer.json["layers"] == 1
    copy = made_of(box.daemon, "imported")
    assert digest(copy) == before
    assert copy.shell("test -e /usr/bin/git || test -e /usr/share/doc || ls /var/log/apt")["stdout"] == "x\n"


def test_a_snapshot_may_arrive_compressed(box: Box) -> None:
    box.shell("echo kept > ~/file")
    data = exported(box, take(box))
    assert imported(box.daemon, gzip.compress(data, 1)).status == 201
    assert made_of(box.daemon, "imported").shell("cat ~/file")["stdout"] == "kept\n"


def test_files_that_are_cut_short_or_changed_are_refused_and_leave_nothing(box: Box) -> None:
    box.shell("echo secret > ~/file")
    data = exported(box, take(box))
    broken = [
        data[:-1],
        data[: len(data) // 2],
        data.replace(b"secret", b"sEcret"),
        data.replace(b"upper/home", b"other/home"),
        data[:-90] + b"\0" * 1000 + data[-90:],
        b"",
        b"nonsense" * 1000,
    ]
    for each in broken:
        answer = imported(box.daemon, each)
        assert (answer.status, answer.json["kind"]) == (400, "bad_archive"), each[:50]
    elsewhere = data.replace(b'"image":"', b'"image":"0', 1)
    assert imported(box.daemon, elsewhere).status in {400, 422}
    assert len(box.daemon.snapshots()) == 1
    box.daemon.delete_all()
    assert witnesses.disagreement(box.daemon) == {}


@pytest.mark.parametrize("name", ["upper/../../escape", "/upper/absolute", "outside", "upper/dev-node"])
def test_hostile_members_are_refused(box: Box, name: str) -> None:
    data = exported(box, take(box))
    with tarfile.open(fileobj=io.BytesIO(data)) as genuine:
        first = genuine.next()
        assert first is not None
        manifest = io.BytesIO(genuine.extractfile(first).read())
    forged = io.BytesIO()
    with tarfile.open(fileobj=forged, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(first, manifest)
        member = tarfile.TarInfo(name)
        if name.endswith("node"):
            member.type, member.devmajor, member.devminor = tarfile.CHRTYPE, 1, 3
        archive.addfile(member)
    body = forged.getvalue()
    answer = imported(box.daemon, body + trailer(hashlib.sha256(body).hexdigest()))
    assert (answer.status, answer.json["kind"]) == (400, "bad_archive")
    assert len(box.daemon.snapshots()) == 1
