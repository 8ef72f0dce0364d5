"""create, ls, inspect, timeout, rm, metrics, top: for people and for programs."""

import re

import pytest

from tests.cli.support import Ctl
from tests.support.daemon import Daemon


def test_create_prints_an_id_to_use(ctl: Ctl) -> None:
    created = ctl.text("create", "--name", "box", "--metadata", "team=blue", "-e", "A=1", "--timeout", "1h").strip()
    (seen,) = ctl.json("inspect", "box")
    assert seen["id"] == created
    assert (seen["metadata"], seen["env"]["A"]) == ({"team": "blue"}, "1")
    assert seen["end_at"] is not None


def test_create_for_programs_prints_the_whole_sandbox(ctl: Ctl) -> None:
    assert ctl.json("create", "--hostname", "box")["hostname"] == "box"
    assert ctl.json("create", "--backend", "bwrap")["backend"] == "bwrap"


def test_a_backend_that_is_not_there_is_refused_with_those_that_are(ctl: Ctl) -> None:
    done = ctl.run("create", "--backend", "other")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"cannot use the backend 'other': this daemon has bwrap" in done.stderr


def test_a_limit_this_host_cannot_keep_is_refused(ctl: Ctl) -> None:
    if ctl.json("info")["capabilities"]["limits"]["memory"]:
        assert ctl.json("create", "-m", "64M")["limits"]["memory_bytes"] == 64 << 20
    else:
        done = ctl.run("create", "-m", "64M")
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"cannot limit memory on this host" in done.stderr


def test_ls_filters_and_has_three_forms(ctl: Ctl, root_daemon: Daemon) -> None:
    blue = root_daemon.create(name="blue", metadata={"team": "blue"})
    red = root_daemon.create(metadata={"team": "red", "escape": "\x1b[2J"})
    assert ctl.text("ls", "-q").split() == [blue, red]
    assert ctl.text("ls", "-q", "--metadata", "team=red").split() == [red]
    assert ctl.text("ls", "-q", "--status", "exited") == ""
    assert [item["id"] for item in ctl.json("ls")] == [blue, red]
    header, first, second = ctl.text("ls").splitlines()
    assert header.split()[:4] == ["ID", "NAME", "STATUS", "IMAGE"]
    assert first.split()[:4] == [blue, "blue", "running", "base"]
    assert second.endswith("team=red escape=\\x1b[2J")


def test_ls_reads_more_than_a_page(ctl: Ctl, root_daemon: Daemon) -> None:
    made = [root_daemon.create(metadata={"n": str(number)}) for number in range(101)]
    assert ctl.text("ls", "-q").split() == made


def test_inspect_shows_facts_in_lines(ctl: Ctl, root_daemon: Daemon) -> None:
    sandbox = root_daemon.create(name="box", env={"A": "1"})
    lines = ctl.text("inspect", sandbox).splitlines()
    assert [line.split() for line in lines if line.startswith(("id", "name", "env A"))] == [
        ["id", sandbox],
        ["name", "box"],
        ["env", "A", "1"],
    ]


def test_a_lifetime_is_set_and_lifted(ctl: Ctl, sandbox: str) -> None:
    assert re.match(r"ends in (1h|59m)", ctl.text("timeout", sandbox, "1h"))
    assert ctl.text("timeout", sandbox, "none") == "lives until deleted\n"
    assert ctl.json("timeout", sandbox, "2h")["end_at"] is not None


def test_rm_deletes_by_name_and_id(ctl: Ctl, root_daemon: Daemon) -> None:
    first, _ = root_daemon.create(), root_daemon.create(name="second")
    assert sorted(ctl.text("rm", first, "second").split()) == sorted([first, "second"])
    assert ctl.json("ls") == []


def test_rm_deletes_what_it_can_and_says_what_it_cannot(ctl: Ctl, sandbox: str) -> None:
    done = ctl.run("rm", "nonesuch", sandbox)
    assert done.returncode == 1
    assert done.stdout.decode().split() == [sandbox]
    assert done.stderr.startswith(b"sandboxctl: cannot find sandbox 'nonesuch'")
    assert ctl.run("rm", "--force", "nonesuch").returncode == 0


def test_rm_all(ctl: Ctl, root_daemon: Daemon) -> None:
    made = [root_daemon.create() for _ in range(3)]
    assert sorted(ctl.text("rm", "--all").split()) == sorted(made)


@pytest.mark.parametrize("arguments", [("rm",), ("rm", "--all", "x"), ("inspect",), ("timeout", "x", "soon")])
def test_wrong_use_is_status_2(ctl: Ctl, arguments: tuple[str, ...]) -> None:
    assert ctl.run(*arguments).returncode == 2


def test_metrics_for_people_and_programs(ctl: Ctl, sandbox: str) -> None:
    assert ctl.json("metrics", sandbox)["pids"] >= 1
    lines = dict(line.split(maxsplit=1) for line in ctl.text("metrics", sandbox).splitlines())
    assert lines["memory"].endswith("%)")


def test_top_looks_once_where_there_is_no_terminal(ctl: Ctl, sandbox: str) -> None:
    header, row = ctl.text("top").splitlines()
    assert header.startswith("ID")
    assert row.startswith(sandbox)
    (usage,) = ctl.json("top")
    assert usage["sandbox"]["id"] == sandbox
    assert usage["metrics"]["pids"] >= 1
