"""The requests on one HTTP connection, each judged before it passes."""

import random

import pytest

from sandboxd.gateway.requests import RequestGuard, RequestRefused
from sandboxd.gateway.sniff import Sighting
from tests.network.test_sniff import mutated

GOOD = b"GET /a HTTP/1.1\r\nHost: good.com\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nHost: good.com\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"PUT /c HTTP/1.1\r\nHost: good.com\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
EVIL = b"GET /secret HTTP/1.1\r\nHost: evil.com\r\n\r\n"
WEBSOCKET = b"GET /w HTTP/1.1\r\nHost: good.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def judge(seen: Sighting) -> str:
    return seen.contradictory or ("" if seen.name in (None, "good.com") else "no rule allows it")


def guard() -> RequestGuard:
    return RequestGuard(judge)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_what_is_allowed_passes_as_it_came(size: int) -> None:
    everything = GOOD + POST + CHUNKED + POST
    one = guard()
    passed = b"".join(one.feed(everything[at : at + size]) for at in range(0, len(everything), size))
    if size == 10_000:
        assert passed == everything
    assert passed.replace(b"\r\n", b"").count(b"hello"[:1]) >= 3  # cut chunks stay chunks
    assert passed.count(b"Host: good.com") == 4


@pytest.mark.parametrize("before", [b"", GOOD, POST, CHUNKED, GOOD * 50])
def test_a_later_request_for_another_name_does_not_pass(before: bytes) -> None:
    one = guard()
    assert one.feed(before) == before
    with pytest.raises(RequestRefused, match="no rule allows it"):
        one.feed(EVIL)


@pytest.mark.parametrize(
    "smuggled",
    [
        b"POST / HTTP/1.1\r\nHost: good.com\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        + EVIL,
        b"POST / HTTP/1.1\r\nHost: good.com\r\nContent-Length: 4\r\nContent-Length: 80\r\n\r\nabcd" + EVIL,
        b"POST / HTTP/1.1\r\nHost: good.com\r\nTransfer-Encoding: xchunked\r\n\r\n" + EVIL,
        b"POST / HTTP/1.1\r\nHost: good.com\r\nContent-Length: +4\r\n\r\nabcd" + EVIL,
        b"GET / HTTP/1.1\r\nHost: good.com\r\nX: a\rb\r\n\r\n" + EVIL,
        b"GET / HTTP/1.1\r\nHost: good.com\r\nContent-Length: 0\r\n\r\n" + EVIL,
        b"GET / HTTP/1.1\nHost: good.com\n\n" + EVIL,
    ],
)
def test_nothing_is_smuggled_behind_a_length_of_two_meanings(smuggled: bytes) -> None:
    with pytest.raises(RequestRefused):
        guard().feed(smuggled)


def test_what_is_no_request_does_not_pass() -> None:
    one = guard()
    one.feed(GOOD)
    with pytest.raises(RequestRefused):
        one.feed(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not HTTP\r\n\r\n")


def test_a_websocket_is_opaque_once_its_server_agrees() -> None:
    one = guard()
    assert one.feed(WEBSOCKET) == WEBSOCKET
    assert one.waits_for_server
    assert one.feed(b"early") == b""
    assert one.server_answers(b"HTTP/1.1 101 Switching Protocols\r\n") == b"early"
    assert one.feed(EVIL) == EVIL


def test_a_websocket_that_its_server_declines_opens_nothing() -> None:
    one = guard()
    one.feed(WEBSOCKET)
    one.server_answers(b"HTTP/1.1 200 OK\r\n")
    assert one.feed(GOOD) == GOOD
    with pytest.raises(RequestRefused):
        one.feed(EVIL)


def test_a_websocket_that_is_not_first_is_refused() -> None:
    one = guard()
    one.feed(GOOD)
    with pytest.raises(RequestRefused, match="first"):
        one.feed(WEBSOCKET)


def test_other_upgrades_are_left_away() -> None:
    one = guard()
    h2c = b"GET / HTTP/1.1\r\nHost: good.com\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    assert one.feed(h2c) == h2c.replace(b"Upgrade: h2c\r\n", b"")
    with pytest.raises(RequestRefused):
        one.feed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")


def test_no_bytes_make_it_fail() -> None:
    chance = random.Random(5)
    outcomes = set()
    for _ in range(5000):
        one, data = guard(), mutated(chance, chance.choice([GOOD + EVIL, POST + GOOD, CHUNKED + POST, WEBSOCKET]))
        try:
            passed = b"".join(one.feed(data[at : at + 40]) for at in range(0, len(data), 40))
            outcomes.add("passed")
        except RequestRefused:
            passed = b""
            outcomes.add("refused")
        assert b"\r\nHost: evil.com" not in passed
    assert outcomes == {"passed", "refused"}
