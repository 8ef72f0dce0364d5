"""Events: what happened to sandboxes, as pages of the past and as a stream."""

import pytest

from tests.support.daemon import Daemon
from tests.support.sse import stream

pytestmark = pytest.mark.any_user

EVENTS = "/v1/events"


def last_id(daemon: Daemon) -> int:
    """Of the newest event: where `from now on` begins."""
    after = 0
    while page := daemon.call("GET", f"{EVENTS}?after={after}&limit=1000").json["events"]:
        after = page[-1]["id"]
    return int(after)


def test_a_sandboxs_life_is_told_in_order(daemon: Daemon) -> None:
    start = last_id(daemon)
    sandbox = daemon.create(name="told")
    daemon.delete(sandbox)
    page = daemon.call("GET", f"{EVENTS}?after={start}").json
    assert [(event["kind"], event["sandbox"]) for event in page["events"]] == [
        ("created", sandbox),
        ("started", sandbox),
        ("deleted", sandbox),
    ]
    assert page["events"][0]["details"] == {"image": "base", "name": "told"}
    identifiers = [event["id"] for event in page["events"]]
    assert identifiers == sorted(set(identifiers))
    assert page["next_after"] == identifiers[-1]
    moments = [event["at"] for event in page["events"]]
    assert moments == sorted(moments)


def test_pages_follow_one_another(daemon: Daemon) -> None:
    start = last_id(daemon)
    for _ in range(2):
        daemon.delete(daemon.create())
    kinds, after = [], start
    while (page := daemon.call("GET", f"{EVENTS}?after={after}&limit=2").json)["events"]:
        assert len(page["events"]) <= 2
        kinds += [event["kind"] for event in page["events"]]
        after = page["next_after"]
    assert kinds == ["created", "started", "deleted"] * 2
    assert daemon.call("GET", f"{EVENTS}?after={after}").json == {"events": [], "next_after": after}


def test_events_of_one_sandbox_only(daemon: Daemon) -> None:
    one, _ = daemon.create(), daemon.create()
    assert daemon.events(one) == ["created", "started"]
    assert daemon.events("unknown") == []


@pytest.mark.parametrize("how", ["query", "accept"])
def test_a_stream_tells_what_happens_from_now_on(daemon: Daemon, how: str) -> None:
    daemon.delete(daemon.create())
    path, headers = (f"{EVENTS}?follow=true", {}) if how == "query" else (EVENTS, {"accept": "text/event-stream"})
    with stream(daemon, "GET", path, headers=headers) as events:
        sandbox = daemon.create()
        daemon.delete(sandbox)
        told = events.take(3)
    assert [(event.kind, event.data["sandbox"]) for event in told] == [
        ("created", sandbox),
        ("started", sandbox),
        ("deleted", sandbox),
    ]
    assert [event.id for event in told] == [str(event.data["id"]) for event in told]


def test_a_stream_resumes_where_a_client_was_cut_off(daemon: Daemon) -> None:
    with stream(daemon, "GET", f"{EVENTS}?follow=true") as events:
        sandbox = daemon.create()
        (first,) = events.take(1)
    daemon.delete(sandbox)
    with stream(daemon, "GET", f"{EVENTS}?follow=true", headers={"last-event-id": first.id or ""}) as events:
        assert [event.kind for event in events.take(2)] == ["started", "deleted"]


def test_a_stream_can_be_of_one_sandbox_only(daemon: Daemon) -> None:
    sandbox = daemon.create()
    with stream(daemon, "GET", f"{EVENTS}?follow=true&after=0&sandbox={sandbox}") as events:
        daemon.delete(daemon.create())
        daemon.delete(sandbox)
        assert [event.kind for event in events.take(3)] == ["created", "started", "deleted"]


def test_a_long_past_is_streamed_whole(daemon: Daemon) -> None:
    """More than one read of the store has to be, without a gap between the past and the present."""
    start = last_id(daemon)
    for _ in range(40):
        daemon.delete(daemon.create())
    with stream(daemon, "GET", f"{EVENTS}?follow=true&after={start}") as events:
        daemon.delete(daemon.create())
        told = events.take(41 * 3)
    assert [event.kind for event in told] == ["created", "started", "deleted"] * 41


def test_event_numbers_go_on_after_a_restart(own_root_daemon: Daemon) -> None:
    daemon = own_root_daemon.start()
    daemon.delete(daemon.create())
    before = last_id(daemon)
    assert daemon.stop() == 0
    daemon.start()
    sandbox = daemon.create()
    page = daemon.call("GET", f"{EVENTS}?after={before}").json["events"]
    assert [(event["id"], event["sandbox"]) for event in page] == [(before + 1, sandbox), (before + 2, sandbox)]


def test_a_stream_ends_properly_when_the_daemon_stops(own_root_daemon: Daemon) -> None:
    daemon = own_root_daemon.start()
    with stream(daemon, "GET", f"{EVENTS}?follow=true") as events:
        assert daemon.stop() == 0
        assert list(events) == []
