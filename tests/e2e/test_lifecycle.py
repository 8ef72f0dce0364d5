"""Sandboxes from creation to deletion, through the API of a real daemon."""

import os
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest

from tests.support import witnesses
from tests.support.daemon import Answer, Daemon
from tests.support.waiting import wait_until

SANDBOXES = "/v1/sandboxes"


def at_once(*calls: Callable[[], Answer]) -> list[Answer]:
    """The answers to calls that were under way at the same time."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def test_health_needs_nothing_and_counts_sandboxes(daemon: Daemon) -> None:
    before = daemon.call("GET", "/v1/health").json
    daemon.create()
    after = daemon.call("GET", "/v1/health").json
    assert after["status"] == "ok"
    assert after["sandboxes"] == before["sandboxes"] + 1
    assert after["uptime_s"] >= before["uptime_s"] > 0


def test_capabilities_tell_who_runs_the_daemon_and_what_it_cannot_limit(daemon: Daemon) -> None:
    told = daemon.call("GET", "/v1/capabilities").json
    assert told["backend"] == "bwrap"
    assert told["rootless"] is bool(daemon.prefix)
    assert told["default_image"] == "base"
    assert set(told["limits"]) == {"memory", "swap", "pids", "cpu", "io", "disk"}
    assert bool(told["disk_reason"]) is not told["limits"].pop("disk")
    assert told["limits_reason"] or all(told["limits"].values())


def test_a_sandbox_of_defaults(daemon: Daemon) -> None:
    answer = daemon.call("POST", SANDBOXES)
    view = answer.json
    assert answer.status == 201
    assert re.fullmatch(r"s[0-9a-f]{20}", view["id"])
    assert (view["status"], view["name"], view["image"]) == ("running", None, "base")
    assert (view["user"], view["workdir"], view["hostname"]) == ("user", "/home/user", "sandbox")
    assert (view["end_at"], view["ended_at"], view["end_reason"]) == (None, None, None)
    created, started = (datetime.fromisoformat(view[name]) for name in ("created_at", "started_at"))
    assert 0 < (started - created).total_seconds() < 30
    assert abs(created.timestamp() - time.time()) < 60
    assert daemon.view(view["id"]) == view


def test_a_sandbox_is_what_was_asked_for(daemon: Daemon) -> None:
    wishes = {
        "image": "base",
        "name": "asked-for",
        "env": {"GREETING": "good day", "UMLAUT": "ä"},
        "metadata": {"team": "blue", "über": "ja"},
        "timeout_ms": 3_600_000,
        "user": "root",
        "workdir": "/var",
        "hostname": "Box-1",
    }
    view = daemon.call("POST", SANDBOXES, wishes).json
    assert {name: view[name] for name in wishes if name not in {"env", "timeout_ms"}} == {
        name: value for name, value in wishes.items() if name not in {"env", "timeout_ms"}
    }
    assert view["env"].items() >= wishes["env"].items()
    lifetime = datetime.fromisoformat(view["end_at"]) - datetime.fromisoformat(view["created_at"])
    assert lifetime.total_seconds() == pytest.approx(3600, abs=30)
    said = daemon.shell("asked-for", "id -un; pwd; hostname; cat /etc/hostname; echo $GREETING $UMLAUT")["stdout"]
    assert said.splitlines() == ["root", "/var", "Box-1", "Box-1", "good day ä"]


def test_two_sandboxes_are_two_machines(daemon: Daemon) -> None:
    one, two = daemon.create(), daemon.create()
    daemon.shell(one, "echo mine > /tmp/file; sleep 600 & echo started")
    assert daemon.shell(two, "cat /tmp/file")["exit_code"] == 1
    assert "sleep" not in daemon.shell(two, "ps ax -o comm")["stdout"]
    wait_until(lambda: "sleep" in daemon.shell(one, "ps ax -o comm")["stdout"])  # at first it is a shell
    identity = (
        "cd /proc; cat /etc/machine-id sys/kernel/random/boot_id; cd self/ns; readlink cgroup ipc mnt net pid uts"
    )
    first, second = (daemon.shell(sandbox, identity)["stdout"].split() for sandbox in (one, two))
    assert len(first) == len(second) == 8
    assert set(first).isdisjoint(second)


def test_with_root_two_sandboxes_share_no_host_id(root_daemon: Daemon) -> None:
    maps = [root_daemon.shell(root_daemon.create(), "cat /proc/self/uid_map")["stdout"].split() for _ in range(2)]
    root_daemon.delete_all()
    (_, first, size), (_, second, _) = maps
    assert (size, abs(int(first) - int(second)) >= 65536) == ("65536", True)


def test_files_live_as_long_as_the_sandbox(daemon: Daemon) -> None:
    sandbox = daemon.create()
    daemon.shell(sandbox, "echo kept > ~/file")
    assert daemon.shell(sandbox, "cat ~/file")["stdout"] == "kept\n"
    daemon.delete(sandbox)
    assert daemon.shell(daemon.create(), "cat ~/file")["exit_code"] == 1


def test_deletion_leaves_no_trace(daemon: Daemon) -> None:
    sandbox = daemon.create()
    daemon.shell(sandbox, "sleep 600 & mkdir -p /tmp/a/b; echo x > /tmp/a/b/c")
    assert sandbox in witnesses.ask(daemon)["inits"]
    answer = daemon.call("DELETE", f"{SANDBOXES}/{sandbox}")
    assert (answer.status, answer.json) == (200, {"id": sandbox, "status": "deleted"})

    def left() -> set[str]:
        return {name for name, seen in witnesses.ask(daemon).items() if sandbox in seen}

    # At once, not in a while: what it wrote, and its empty cgroup, may still be on their way out.
    assert left() <= {"cgroups", "files", "runtime"}
    wait_until(lambda: not left())
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/metrics")):
        gone = daemon.call(method, f"{SANDBOXES}/{sandbox}{path}")
        assert (gone.status, gone.json["kind"]) == (404, "not_found")


def test_names_are_unique_among_the_living(daemon: Daemon) -> None:
    first = daemon.create(name="unique")
    clash = daemon.call("POST", SANDBOXES, {"name": "unique"})
    assert (clash.status, clash.json["kind"]) == (409, "conflict")
    assert "unique" in clash.json["error"]
    assert daemon.view("unique")["id"] == first
    daemon.delete("unique")
    assert daemon.create(name="unique") != first


def test_of_many_creates_with_one_name_at_once_one_wins(daemon: Daemon) -> None:
    answers = at_once(*[lambda: daemon.call("POST", SANDBOXES, {"name": "contested"})] * 8)
    assert sorted(answer.status for answer in answers) == [201] + [409] * 7
    assert len(daemon.views()) == 1


def test_many_creates_at_once_all_work(daemon: Daemon) -> None:
    answers = at_once(*[lambda: daemon.call("POST", SANDBOXES)] * 12)
    assert [answer.status for answer in answers] == [201] * 12
    assert len({answer.json["id"] for answer in answers}) == 12
    assert witnesses.disagreement(daemon) == {}


def test_pages_show_every_sandbox_once_oldest_first(daemon: Daemon) -> None:
    made = [daemon.create() for _ in range(5)]
    seen, cursor, pages = [], "", 0
    while cursor is not None:
        page = daemon.call("GET", f"{SANDBOXES}?limit=2&cursor={cursor}").json
        seen += [view["id"] for view in page["sandboxes"]]
        cursor, pages = page["next_cursor"], pages + 1
    assert (seen, pages) == (made, 3)


def test_a_cursor_survives_the_deletion_of_what_it_names(daemon: Daemon) -> None:
    made = [daemon.create() for _ in range(4)]
    page = daemon.call("GET", f"{SANDBOXES}?limit=2").json
    daemon.delete(made[1])
    rest = daemon.call("GET", f"{SANDBOXES}?limit=2&cursor={page['next_cursor']}").json
    assert [view["id"] for view in rest["sandboxes"]] == made[2:]
    assert rest["next_cursor"] is None


def test_lists_filter_by_metadata_and_status(daemon: Daemon) -> None:
    blue = daemon.create(metadata={"team": "blue", "stage": "test"})
    daemon.create(metadata={"team": "red", "stage": "test"})
    plain = daemon.create()

    def found(query: str) -> list[str]:
        return [view["id"] for view in daemon.views(query)]

    assert found("metadata.team=blue") == [blue]
    assert len(found("metadata.stage=test")) == 2
    assert found("metadata.stage=test&metadata.team=green") == []
    assert len(found("status=running")) == 3
    assert found("status=exited") == []
    daemon.shell(plain, "kill -9 1; true", user="root", timeout_ms=1000)
    assert found("status=running&metadata.team=blue") == [blue]


def test_a_lifetime_ends_the_sandbox(daemon: Daemon) -> None:
    began = time.monotonic()
    sandbox = daemon.create(timeout_ms=700)
    wait_until(lambda: daemon.call("GET", f"{SANDBOXES}/{sandbox}").status == 404)
    assert time.monotonic() - began > 0.69
    assert daemon.events(sandbox) == ["created", "started", "expired", "deleted"]


def test_a_lifetime_can_be_shortened_lengthened_and_lifted(daemon: Daemon) -> None:
    sandbox = daemon.create(timeout_ms=3_600_000)
    path = f"{SANDBOXES}/{sandbox}/timeout"
    longer = daemon.call("POST", path, {"timeout_ms": 7_200_000}).json
    left = datetime.fromisoformat(longer["end_at"]).timestamp() - time.time()
    assert left == pytest.approx(7200, abs=30)
    assert daemon.call("POST", path, {"timeout_ms": None}).json["end_at"] is None
    assert daemon.view(sandbox)["end_at"] is None
    assert daemon.call("POST", path, {"timeout_ms": 1}).status == 200
    wait_until(lambda: daemon.call("GET", f"{SANDBOXES}/{sandbox}").status == 404)


def test_a_lifetime_over_the_most_is_refused(daemon: Daemon) -> None:
    most = daemon.call("GET", "/v1/capabilities").json["max_timeout_ms"]
    answer = daemon.call("POST", SANDBOXES, {"timeout_ms": most + 1})
    assert (answer.status, answer.json["details"]["max_timeout_ms"]) == (400, most)
    sandbox = daemon.create(timeout_ms=most)
    assert daemon.call("POST", f"{SANDBOXES}/{sandbox}/timeout", {"timeout_ms": most + 1}).status == 400


def test_a_sandbox_whose_init_ends_has_exited_and_keeps_its_record(daemon: Daemon) -> None:
    sandbox = daemon.create()
    os.kill(witnesses.init_of(sandbox), signal.SIGKILL)
    wait_until(lambda: daemon.view(sandbox)["status"] == "exited")
    view = daemon.view(sandbox)
    assert view["end_reason"] == "init ended"
    assert view["ended_at"] is not None
    refused = daemon.call("POST", f"{SANDBOXES}/{sandbox}/shell", {"cmd": "true"})
    assert (refused.status, refused.json["details"]["state"]) == (409, "exited")
    assert witnesses.disagreement(daemon) == {}
    daemon.delete(sandbox)
    assert daemon.events(sandbox) == ["created", "started", "exited", "deleted"]
