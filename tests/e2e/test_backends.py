"""What isolates a sandbox: asked for by name, recorded, and never guessed."""

import contextlib
import sqlite3

from tests.e2e.test_lifecycle import SANDBOXES
from tests.e2e.test_sleep import change, changed
from tests.support.daemon import Daemon


def rewrite(daemon: Daemon, backend: str) -> None:
    """Have every record say that its sandbox is that backend's."""
    with contextlib.closing(sqlite3.connect(daemon.state / "state.db")) as database, database:
        database.execute("UPDATE sandboxes SET body = json_set(body, '$.spec.backend', ?)", (backend,))


def test_a_sandbox_says_what_isolates_it_and_can_be_asked_for_with_that(daemon: Daemon) -> None:
    able = daemon.call("GET", "/v1/capabilities").json
    assert able["backend"] in able["backends"]
    assert daemon.view(daemon.create())["backend"] == able["backend"]
    assert daemon.view(daemon.create(backend=able["backend"]))["backend"] == able["backend"]


def test_one_that_is_not_there_is_refused_with_those_that_are(daemon: Daemon) -> None:
    answer = daemon.call("POST", SANDBOXES, {"backend": "no-such"})
    assert (answer.status, answer.json["kind"]) == (422, "no_such_backend")
    assert answer.json["details"]["backends"] == daemon.call("GET", "/v1/capabilities").json["backends"]
    assert "bwrap" in answer.json["error"]
    assert daemon.views() == []


def test_a_snapshots_sandbox_has_the_backend_of_the_one_it_was_taken_of(own_root_daemon: Daemon) -> None:
    """Which may be one that is not there any more: then another has to be asked for."""
    daemon = own_root_daemon
    daemon.start()
    taken = daemon.call("POST", f"{SANDBOXES}/{daemon.create()}/snapshot", {}).json["id"]
    assert daemon.view(daemon.create(snapshot=taken))["backend"] == "bwrap"
    assert daemon.stop() == 0
    with contextlib.closing(sqlite3.connect(daemon.state / "state.db")) as database, database:
        database.execute("UPDATE snapshots SET body = json_set(body, '$.spec.backend', 'other')")
    daemon.start()
    answer = daemon.call("POST", SANDBOXES, {"snapshot": taken})
    assert (answer.status, answer.json["kind"]) == (422, "no_such_backend")
    assert daemon.view(daemon.create(snapshot=taken, backend="bwrap"))["backend"] == "bwrap"


def test_a_machine_of_a_backend_that_is_not_there_is_not_taken_for_ended(own_root_daemon: Daemon) -> None:
    """The daemon does not start, rather than kill it, or leave it to run with ids that it gives to others."""
    daemon = own_root_daemon
    daemon.start()
    sandbox = daemon.create()
    assert daemon.stop() == 0
    rewrite(daemon, "other")
    daemon.launch()
    assert daemon.wait() == 1
    assert f"cannot take over sandbox {sandbox}: it runs under the backend 'other'" in daemon.log
    rewrite(daemon, "bwrap")
    daemon.start()
    assert daemon.shell(sandbox, "echo well")["stdout"] == "well\n"


def test_a_stopped_sandbox_of_a_backend_that_is_not_there_is_kept_but_not_started(own_root_daemon: Daemon) -> None:
    daemon = own_root_daemon
    daemon.start()
    sandbox = daemon.create()
    changed(daemon, sandbox, "stop", {"grace_ms": 0})
    assert daemon.stop() == 0
    rewrite(daemon, "other")
    daemon.start()
    answer = change(daemon, sandbox, "start")
    assert (answer.status, answer.json["kind"]) == (422, "no_such_backend")
    assert daemon.view(sandbox)["status"] == "stopped"
    daemon.delete(sandbox)


def test_a_daemon_whose_default_is_not_there_says_so_and_does_not_start(own_root_daemon: Daemon) -> None:
    daemon = own_root_daemon
    (daemon.root / "config").write_text("[sandbox]\ndefault_backend = 'other'\n")
    daemon.options = ("--config", str(daemon.root / "config"))
    daemon.launch()
    assert daemon.wait() == 1
    said = "cannot use the backend 'other' (sandbox.default_backend in the configuration): there is bwrap"
    assert said in daemon.log
