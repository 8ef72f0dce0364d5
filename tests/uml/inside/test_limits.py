"""The whole daemon on a host with every controller: a sandbox's limits, as its client sees them."""

import contextlib
from pathlib import Path
from typing import Any

import pytest

from sandboxd.kernel.cgroups import Cgroup
from tests.support.daemon import Daemon
from tests.support.waiting import wait_until

MIB = 1 << 20
# Small, because page faults are slow in User-Mode Linux.
LIMIT = 32 * MIB
HOG = "python3 -c 'data = b\"x\" * (48 << 20)'"


def limited(daemon: Daemon, **limits: Any) -> str:
    return daemon.create(limits=limits)


def test_every_limit_is_promised(daemon: Daemon) -> None:
    capabilities = daemon.call("GET", "/v1/capabilities").json
    # A disk limit takes the pool; tests/e2e/test_pool.py has one.
    assert capabilities["limits"] == {**dict.fromkeys(("memory", "swap", "pids", "cpu", "io"), True), "disk": False}
    assert capabilities["limits_reason"] == ""


def test_a_command_over_the_memory_limit_is_killed_and_the_sandbox_lives_on(daemon: Daemon) -> None:
    sandbox, neighbour = limited(daemon, memory_bytes=LIMIT, swap_bytes=0), daemon.create()
    result = daemon.shell(sandbox, HOG)
    assert (result["oom_killed"], result["exit_code"], result["signal"]) == (True, 137, "SIGKILL")
    assert daemon.shell(sandbox, "echo still here")["stdout"] == "still here\n"
    wait_until(lambda: "oom" in daemon.events(sandbox))
    events = daemon.call("GET", f"/v1/events?limit=100&sandbox={sandbox}").json["events"]
    assert [event["details"]["killed"] for event in events if event["kind"] == "oom"] == [1]
    unlimited = daemon.shell(neighbour, HOG)
    assert (unlimited["oom_killed"], unlimited["exit_code"]) == (False, 0)


def test_a_command_in_the_memory_limit_is_not_taken_for_one_over_it(daemon: Daemon) -> None:
    result = daemon.shell(limited(daemon, memory_bytes=LIMIT), "kill -KILL $$")
    assert (result["oom_killed"], result["signal"]) == (False, "SIGKILL")


def test_forking_for_ever_ends_at_the_process_limit_and_disturbs_nobody(daemon: Daemon) -> None:
    sandbox, neighbour = limited(daemon, pids=20), daemon.create()
    bomb = ["sh", "-c", "while :; do sleep 600 & done"]
    result = daemon.call("POST", f"/v1/sandboxes/{sandbox}/shell", {"argv": bomb}).json
    assert "Cannot fork" in result["stderr"]
    assert result["exit_code"] != 0
    metrics = daemon.call("GET", f"/v1/sandboxes/{sandbox}/metrics").json
    assert metrics["pids"] <= 20
    assert metrics["cgroup"]["pids_refused"] >= 1
    assert daemon.shell(neighbour, "echo fine")["stdout"] == "fine\n"


def test_processor_time_stays_within_its_quota(daemon: Daemon) -> None:
    sandbox = limited(daemon, cpus=0.25)

    def share() -> float:
        result = daemon.shell(sandbox, "while :; do :; done", timeout_ms=3000)
        assert result["timed_out"]
        return float(result["cpu_time_ms"] / result["duration_ms"])

    # The host may stand still while it is measured, but not each time.
    wait_until(lambda: share() == pytest.approx(0.25, rel=0.3))


def test_writes_to_disk_are_slowed_to_their_limit(daemon: Daemon) -> None:
    write = "dd if=/dev/zero of=file bs=64k count=64 oflag=direct 2>/dev/null; rm file"
    assert daemon.shell(limited(daemon, write_bps=2 * MIB), write)["duration_ms"] >= 1500
    free = daemon.create()
    wait_until(lambda: daemon.shell(free, write)["duration_ms"] < 1500)  # unless the host stands still


def test_limits_are_still_in_force_after_the_daemon_was_killed(own_daemon: Daemon) -> None:
    sandbox = limited(own_daemon.start(), memory_bytes=LIMIT, swap_bytes=0)
    own_daemon.kill()
    own_daemon.start()
    result = own_daemon.shell(sandbox, HOG)
    assert result["oom_killed"]


def test_a_deleted_sandbox_has_no_process_at_once_and_no_cgroup_soon(daemon: Daemon) -> None:
    sandbox = limited(daemon, pids=20)
    daemon.shell(sandbox, "setsid sleep 600 >/dev/null 2>&1 &")
    (path,) = Path("/sys/fs/cgroup").rglob(sandbox)
    assert Cgroup(path).pids() != frozenset()
    daemon.call("DELETE", f"/v1/sandboxes/{sandbox}")
    with contextlib.suppress(FileNotFoundError):
        assert Cgroup(path).pids() == frozenset()
    # The directory goes later, since removing it costs what its client need not wait for.
    wait_until(lambda: not path.exists())
