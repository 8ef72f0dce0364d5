"""What a power cut may leave: no process, an empty runtime directory, and of what was not synced older or cut files.

The state directory here is a running daemon's, brought to such a state by hand. The next daemon has to come up, say
what is, and leave nothing over.
"""

import contextlib
import itertools
import os
import shutil
import signal
import sqlite3

import pytest

from sandboxd.isolation.bwrap.marks import marked_processes
from tests.e2e.test_crash import dies_of, start_to_die_at
from tests.support import witnesses
from tests.support.daemon import Answer, Daemon
from tests.support.waiting import wait_until

SANDBOXES = "/v1/sandboxes"
SNAPSHOTS = "/v1/snapshots"


def cut(daemon: Daemon) -> None:
    """The daemon and everything it ever started are gone, and so is what lay in memory."""
    known = frozenset(os.listdir(daemon.runtime / "sandboxes"))
    daemon.kill()
    for pid in list(marked_processes(known)):
        with contextlib.suppress(ProcessLookupError):  # a slot ends by itself when its daemon does
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not list(marked_processes(known)))
    for path in (daemon.runtime / "sandboxes").iterdir():
        shutil.rmtree(path)
    for path in daemon.runtime.glob("sandbox-init-*"):
        path.unlink()
        path.touch()


def post(daemon: Daemon, sandbox: str, verb: str, body: object = None) -> Answer:
    return daemon.call("POST", f"{SANDBOXES}/{sandbox}/{verb}", body)


def kind(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json["kind"]


def dies_at(daemon: Daemon, point: str, path: str, body: object) -> None:
    start_to_die_at(daemon, point)
    dies_of(daemon, "POST", path, body)
    daemon.die_at(None)


def layer_of(daemon: Daemon, snapshot: str) -> str:
    """The id of its layer, from the records of a daemon that does not run."""
    with contextlib.closing(sqlite3.connect(daemon.state / "state.db")) as database:
        query = "SELECT json_extract(body, '$.layer') FROM snapshots WHERE json_extract(body, '$.name') = ?"
        (layer,) = database.execute(query, (snapshot,)).fetchone()
    return str(layer)


def swept_but_for(daemon: Daemon, sandbox: str) -> bool:
    seen = witnesses.ask(daemon)
    return (seen["files"], seen["trash"], len(seen["layers"])) == ({sandbox}, frozenset(), 1)


def write(daemon: Daemon, sandbox: str, text: str) -> None:
    assert daemon.shell(sandbox, f"echo {text} > ~/file; sync ~/file")["exit_code"] == 0


def assert_has(daemon: Daemon, sandbox: str, text: str) -> None:
    assert daemon.shell(sandbox, "cat ~/file")["stdout"] == f"{text}\n"


def test_records_that_are_older_than_the_files(own_daemon: Daemon) -> None:
    """What was made since is swept, what was deleted since says that its files are lost, the rest is whole."""
    daemon = own_daemon.start()
    kept, doomed = daemon.create(name="kept"), daemon.create(name="doomed")
    for sandbox in (kept, doomed):
        write(daemon, sandbox, sandbox)
        assert post(daemon, sandbox, "snapshot", {"name": f"of-{sandbox}"}).status == 201
    above = daemon.create(name="above", snapshot=f"of-{doomed}")
    assert daemon.stop() == 0
    older = (daemon.state / "state.db").read_bytes()
    daemon.start()
    newer = daemon.create(name="newer")
    assert post(daemon, newer, "snapshot", {"name": "newer"}).status == 201
    for sandbox in (doomed, above):
        daemon.delete(sandbox)
    assert daemon.call("DELETE", f"{SNAPSHOTS}/of-{doomed}").status == 200
    assert daemon.call("POST", "/v1/storage/gc").status == 200
    wait_until(lambda: not os.listdir(daemon.volume / "trash"))
    cut(daemon)
    (daemon.state / "state.db").write_bytes(older)
    (daemon.state / "state.db-wal").unlink()

    daemon.start()
    wait_until(lambda: {view["status"] for view in daemon.views()} == {"exited"})
    reasons = {view["id"]: view["end_reason"] for view in daemon.views()}
    assert reasons == {kept: "init ended", doomed: "files lost", above: "files lost"}
    wait_until(lambda: swept_but_for(daemon, kept))
    assert post(daemon, kept, "start").status == 200
    assert_has(daemon, kept, kept)
    assert_has(daemon, daemon.create(snapshot=f"of-{kept}"), kept)
    for sandbox, verb in itertools.product((doomed, above), ("start", "snapshot", "clone")):
        assert kind(post(daemon, sandbox, verb)) == (422, "files_missing")
    assert kind(daemon.call("POST", SANDBOXES, {"snapshot": f"of-{doomed}"})) == (422, "layer_missing")
    # There is a way on from there, and out.
    assert post(daemon, doomed, "restore", {"snapshot": f"of-{kept}"}).status == 200
    assert post(daemon, doomed, "start").status == 200
    assert_has(daemon, doomed, kept)
    daemon.delete_all()
    assert witnesses.disagreement(daemon) == {}


@pytest.mark.parametrize("left", [0.0, 0.3, 0.6, 0.9])
def test_a_log_of_the_database_that_was_cut_anywhere(own_root_daemon: Daemon, left: float) -> None:
    """It holds a beginning of what was recorded; whatever that is, the rest is gone without a trace."""
    daemon = own_root_daemon.start()
    sandboxes = [daemon.create() for _ in range(3)]
    for sandbox in sandboxes:
        write(daemon, sandbox, sandbox)
        assert post(daemon, sandbox, "clone", {"count": 1}).status == 201
    log = daemon.state / "state.db-wal"
    cut(daemon)
    os.truncate(log, int(log.stat().st_size * left))
    daemon.start()
    wait_until(lambda: {view["status"] for view in daemon.views()} <= {"exited"})
    assert witnesses.disagreement(daemon, ignore=("runtime",)) == {}
    for view in daemon.views():
        assert post(daemon, view["id"], "start").status == 200
        assert daemon.shell(view["id"], "cat ~/file")["stdout"].strip() in sandboxes


def test_what_was_begun_with_files_that_are_gone_keeps_nobody_from_working(own_root_daemon: Daemon) -> None:
    """A tree on its way into a layer, and one that was to be thrown away: a start-up cannot finish either."""
    daemon = own_root_daemon.start()
    moving, restoring, other = (daemon.create(name=name) for name in ("moving", "restoring", "other"))
    for sandbox in (moving, restoring, other):
        write(daemon, sandbox, sandbox)
    assert post(daemon, restoring, "snapshot", {"name": "good"}).status == 201
    assert post(daemon, moving, "stop").status == 200
    dies_at(daemon, "snapshot:recorded", f"{SANDBOXES}/{moving}/snapshot", {"name": "moved"})
    shutil.rmtree(daemon.state / "sandboxes" / moving)
    dies_at(daemon, "restore:recorded", f"{SANDBOXES}/{restoring}/restore", {"snapshot": "good"})
    layer = daemon.state / "layers" / layer_of(daemon, "good")
    layer.rename(daemon.root / "aside")

    daemon.start()
    assert "the snapshot of sandbox" in daemon.log
    assert "the restore of sandbox" in daemon.log
    for sandbox in (moving, restoring):
        wait_until(lambda sandbox=sandbox: daemon.view(sandbox)["status"] == "stopped")  # type: ignore[misc]
        assert kind(post(daemon, sandbox, "start")) == (422, "files_missing")
    assert_has(daemon, other, other)
    assert daemon.stop() == 0
    (daemon.root / "aside").rename(layer)
    daemon.start()  # what can be had again is finished now
    assert post(daemon, restoring, "start").status == 200
    assert_has(daemon, restoring, restoring)
    daemon.delete_all()
    assert witnesses.disagreement(daemon) == {}


def test_a_database_that_is_none_is_told_and_nothing_is_touched(own_root_daemon: Daemon) -> None:
    daemon = own_root_daemon.start()
    sandbox = daemon.create()
    assert daemon.stop() == 0
    database = daemon.state / "state.db"
    good = database.read_bytes()
    database.write_bytes(b"\x00garbage" * 1000)
    daemon.launch()
    assert daemon.wait() == 1
    assert "cannot open the database" in daemon.log
    assert "Traceback" not in daemon.log
    database.write_bytes(good)
    daemon.start()
    assert daemon.shell(sandbox, "echo well")["stdout"] == "well\n"
    assert witnesses.disagreement(daemon) == {}
