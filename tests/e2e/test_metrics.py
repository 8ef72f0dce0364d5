"""What a sandbox uses, as far as any host can tell. Limits and counters are tested in tests/uml."""

import pytest

from tests.support.daemon import Daemon
from tests.support.sandbox import Box
from tests.support.waiting import wait_until


@pytest.fixture
def box(daemon: Daemon) -> Box:
    return Box(daemon, daemon.create())


def metrics(box: Box) -> dict[str, object]:
    answer = box.daemon.call("GET", f"/v1/sandboxes/{box.id}/metrics")
    assert answer.status == 200, answer.data
    return dict(answer.json)


def test_an_idle_sandbox_uses_next_to_nothing(box: Box) -> None:
    told = metrics(box)
    assert 0 < told["mem_used_mb"] < 50
    assert 0 < told["mem_pct"] < 10
    assert 1 <= told["pids"] <= 5
    assert told["uptime_s"] > 0
    assert (told["net_rx_bytes"], told["net_tx_bytes"]) == (0, 0)
    assert set(told["limits"].values()) == {None}


def test_memory_and_processes_are_those_of_the_sandbox(box: Box) -> None:
    before = metrics(box)
    box.shell("setsid python3 -c 'import time; d = b\"x\" * (64 << 20); time.sleep(600)' > /dev/null 2>&1 &")
    wait_until(lambda: metrics(box)["mem_used_mb"] > before["mem_used_mb"] + 60)
    assert metrics(box)["pids"] > before["pids"]


def test_a_busy_sandbox_shows_in_its_processor_time(box: Box) -> None:
    box.shell("setsid sh -c 'while :; do :; done' > /dev/null 2>&1 &")
    wait_until(lambda: metrics(box)["cpu_pct"] > 5)


def test_loopback_is_no_traffic(box: Box) -> None:
    box.shell("python3 -c 'import socket as s; a = s.create_server((\"127.0.0.1\", 0)); b = s.create_connection("
              "a.getsockname()); b.send(b\"x\" * 10000)'")  # fmt: skip
    assert metrics(box)["net_tx_bytes"] == 0


def test_what_is_no_running_sandbox_has_no_metrics(daemon: Daemon) -> None:
    assert daemon.call("GET", "/v1/sandboxes/unknown/metrics").status == 404
