"""What the holders of keys may use, over TCP: rates, quotas, and sandboxes of their own."""

import time
from typing import Any

import pytest

from tests.e2e.test_keys import bearer, daemon_and_port, port, tcp, tcp_daemon
from tests.support.daemon import Answer, Daemon

SANDBOXES = "/v1/sandboxes"
__all__ = ["daemon_and_port", "port", "tcp_daemon"]


class Holder:
    """Somebody with a key."""

    def __init__(self, daemon: Daemon, port: int, **terms: Any) -> None:
        answer = daemon.call("POST", "/v1/keys", {"name": "holder", **terms})
        assert answer.status == 201, answer.data
        self.key = answer.json
        self._port = port

    def call(self, method: str, path: str, body: Any = None) -> Answer:
        return tcp(self._port, method, path, body, bearer(self.key["key"]))

    def create(self, **wishes: Any) -> str:
        answer = self.call("POST", SANDBOXES, wishes)
        assert answer.status == 201, answer.data
        return str(answer.json["id"])

    def listed(self) -> list[str]:
        return [view["id"] for view in self.call("GET", SANDBOXES).json["sandboxes"]]


def test_tiers_are_named_and_can_be_bent(tcp_daemon: Daemon, port: int) -> None:
    def quota(**terms: Any) -> tuple[int | None, int | None]:
        shown = Holder(tcp_daemon, port, **terms).key["quota"]
        return shown["requests_per_minute"], shown["max_sandboxes"]

    assert quota(tier="beta") == (60, 10)
    assert quota(tier="pro") == (300, 50)
    assert quota() == quota(tier="unlimited") == (None, None)
    assert quota(tier="beta", max_sandboxes=3) == (60, 3)
    assert quota(requests_per_minute=7) == (7, None)
    assert tcp_daemon.call("POST", "/v1/keys", {"name": "x", "tier": "golden"}).status == 422


def test_more_requests_than_a_key_may_send_are_told_when_to_come_back(tcp_daemon: Daemon, port: int) -> None:
    holder = Holder(tcp_daemon, port, requests_per_minute=30)
    began = time.monotonic()
    answers = [holder.call("GET", "/v1/capabilities") for _ in range(40)]
    refused = [answer for answer in answers if answer.status == 429]
    assert [answer.status for answer in answers[:30]] == [200] * 30
    assert len(refused) >= 9 - (time.monotonic() - began) / 2
    assert refused[0].json["kind"] == "rate_limited"
    assert int(refused[0].headers["retry-after"]) in {1, 2}
    other = Holder(tcp_daemon, port, requests_per_minute=30)
    assert other.call("GET", "/v1/capabilities").status == 200
    assert tcp_daemon.call("GET", "/v1/capabilities").status == 200
    time.sleep(int(refused[-1].headers["retry-after"]))  # as it was told
    assert holder.call("GET", "/v1/capabilities").status == 200


def test_a_key_with_all_its_sandboxes_is_told_so_until_one_is_gone(tcp_daemon: Daemon, port: int) -> None:
    holder = Holder(tcp_daemon, port, max_sandboxes=2)
    first, second = holder.create(timeout_ms=90_000), holder.create()
    holder.call("POST", f"{SANDBOXES}/{second}/stop", {"grace_ms": 0})
    full = holder.call("POST", SANDBOXES)
    assert (full.status, full.json["kind"]) == (429, "quota_exceeded")
    assert 60 <= int(full.headers["retry-after"]) <= 90
    clone = holder.call("POST", f"{SANDBOXES}/{first}/clone", {})
    assert clone.status == 429
    Holder(tcp_daemon, port, max_sandboxes=1).create()
    assert tcp_daemon.call("POST", SANDBOXES).status == 201
    assert holder.call("DELETE", f"{SANDBOXES}/{first}").status == 200
    holder.create()
    tcp_daemon.delete_all()


def test_a_key_may_be_kept_to_its_own(tcp_daemon: Daemon, port: int) -> None:
    one, two = (Holder(tcp_daemon, port, own=True) for _ in range(2))
    everybody, administrator = Holder(tcp_daemon, port), Holder(tcp_daemon, port, own=True, scopes=["admin"])
    mine, theirs = one.create(name="mine"), two.create()
    assert (one.listed(), two.listed()) == ([mine], [theirs])
    assert everybody.listed() == administrator.listed() == [mine, theirs]
    for method, rest in (("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("GET", "/metrics"), ("GET", "/commands")):
        for name in (mine, "mine"):
            answer = two.call(method, f"{SANDBOXES}/{name}{rest}")
            assert (answer.status, answer.json["kind"]) == (404, "not_found"), rest
    assert one.call("POST", f"{SANDBOXES}/mine/shell", {"cmd": "echo well"}).json["stdout"] == "well\n"
    assert two.call("GET", "/v1/events").status == 403
    assert two.call("GET", f"/v1/events?sandbox={mine}").status == 404
    assert two.call("GET", f"/v1/events?sandbox={theirs}").status == 200
    snapshot = one.call("POST", f"{SANDBOXES}/mine/snapshot", {}).json["id"]
    assert [each["id"] for each in one.call("GET", "/v1/snapshots").json["snapshots"]] == [snapshot]
    assert two.call("GET", "/v1/snapshots").json["snapshots"] == []
    assert two.call("DELETE", f"/v1/snapshots/{snapshot}").status == 404
    assert two.call("POST", SANDBOXES, {"snapshot": snapshot}).status == 404
    assert two.call("POST", f"{SANDBOXES}/{theirs}/restore", {"snapshot": snapshot}).status == 404
    assert one.call("DELETE", f"/v1/snapshots/{snapshot}").status == 200
    tcp_daemon.delete_all()


@pytest.mark.parametrize("terms", [{"max_memory_bytes": 1 << 30, "max_sandboxes": 4}])
def test_a_quota_of_memory_gives_equal_shares_where_memory_can_be_limited(
    tcp_daemon: Daemon, port: int, terms: dict[str, int]
) -> None:
    holder = Holder(tcp_daemon, port, **terms)
    answer = holder.call("POST", SANDBOXES)
    if tcp_daemon.call("GET", "/v1/capabilities").json["limits"]["memory"]:
        assert answer.json["limits"]["memory_bytes"] == 1 << 28
        assert holder.call("POST", SANDBOXES, {"limits": {"memory_bytes": 1 << 30}}).status == 429
    else:
        assert (answer.status, answer.json["kind"]) == (422, "limit_not_enforceable")
    tcp_daemon.delete_all()
