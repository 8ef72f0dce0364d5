"""What of a head passes between a client and a program, header by header."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.http.kit.ports import by_host, split_query
from sandboxd.http.native.port_paths import by_path
from sandboxd.http.proxy.headers import (
    end_to_end,
    from_another_site,
    to_client,
    to_program,
    token_of_cookies,
    without_token,
)

KEY = "sbx_key"
# What may stand in a header's value without a meaning of its own.
WORDS = st.text(sorted(set(map(chr, range(33, 127))) - set("&=;,")), min_size=1, max_size=8).map(str.encode)


def scope(*headers: tuple[bytes, bytes], path: bytes = b"/", query: bytes = b"", **more: object) -> dict[str, object]:
    found = {"headers": list(headers), "client": ("10.0.0.9", 1), "scheme": "http", "raw_path": path}
    return {"type": "http", "method": "GET", "query_string": query, **found, **more}


def passed(*headers: tuple[bytes, bytes], prefix: str | None = None) -> list[tuple[bytes, bytes]]:
    return to_program(scope(*headers), host=b"h", prefix=prefix, is_secret=lambda text: text == KEY)


@given(st.lists(st.tuples(WORDS, WORDS)), st.lists(WORDS))
def test_only_the_token_leaves_the_query(pairs: list[tuple[bytes, bytes]], tokens: list[bytes]) -> None:
    own = [name + b"=" + value for name, value in pairs]
    mixed = own + [b"sandboxd_token=" + token for token in tokens]
    rest, token = split_query(b"&".join(mixed))
    assert rest == b"&".join(own)
    assert token == (tokens[0] if tokens else None)


@given(st.lists(st.tuples(WORDS, WORDS)), WORDS)
def test_only_the_token_leaves_the_cookies(pairs: list[tuple[bytes, bytes]], token: bytes) -> None:
    own = b"; ".join(name + b"=" + value for name, value in pairs)
    mixed = b"; ".join([b"sandboxd_token=" + token, *([own] if own else [])])
    assert without_token(mixed) == own
    assert token_of_cookies([(b"cookie", mixed)]) == token


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer " + KEY.encode()),
        (b"authorization", b"bearer   " + KEY.encode()),
        (b"x-api-key", KEY.encode()),
        (b"x-sandboxd-token", b"sbp_token"),
        (b"cookie", b"sandboxd_token=sbp_token"),
        (b"connection", b"keep-alive"),
        (b"transfer-encoding", b"chunked"),
        (b"content-length", b"5"),
        (b"expect", b"100-continue"),
        (b"upgrade", b"h2c"),
        (b"http2-settings", b"x"),
        (b"sec-websocket-key", b"x"),
        (b"host", b"other"),
    ],
    ids=str,
)
def test_what_is_the_daemons_stays_here(header: tuple[bytes, bytes]) -> None:
    assert header not in passed(header)
    assert header not in passed(header, prefix="/p")


def test_headers_named_by_connection_stay_on_their_hop_and_forwarding_cannot_be_taken_away() -> None:
    named = (b"connection", b"X-A , x-forwarded-for,close")
    headers = passed(named, (b"x-a", b"1"), (b"x-b", b"2"))
    assert (b"x-a", b"1") not in headers
    assert (b"x-b", b"2") in headers
    assert (b"x-forwarded-for", b"10.0.0.9") in headers
    assert end_to_end([named, (b"x-a", b"1")]) == []


def test_several_cookie_headers_become_one() -> None:
    headers = passed((b"cookie", b"a=1"), (b"cookie", b"sandboxd_token=x; b=2"))
    assert [value for name, value in headers if name == b"cookie"] == [b"a=1; b=2"]


@pytest.mark.parametrize(
    ("given_", "left"),
    [
        (b"a=1; Domain=example.com; Path=/", b"a=1; Path=/"),
        (b"a=1;domain=.example.com", b"a=1"),
        (b"a=1; DOMAIN = x; domain=y; Secure", b"a=1; Secure"),
        (b"a=domain; Path=/domain=x", b"a=domain; Path=/domain=x"),
        (b"domain=1; Path=/", b"domain=1; Path=/"),
    ],
)
def test_a_cookie_is_for_its_own_host(given_: bytes, left: bytes) -> None:
    assert to_client([(b"set-cookie", given_)], prefix=None) == [(b"set-cookie", left)]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (b"/v1/sandboxes/a/ports/80/", ("a", 80, b"/")),
        (b"/v1/sandboxes/a/ports/80/v1/sandboxes/b/ports/81/x", ("a", 80, b"/v1/sandboxes/b/ports/81/x")),
        (b"/v1/sandboxes/a%2Fb/ports/80//%2e%2e/", ("a/b", 80, b"//%2e%2e/")),
        (b"/v1/sandboxes/a/ports/80", ("a", 80, b"")),
        (b"/v1/sandboxes/a/ports/x/", None),
        (b"/v1/sandboxes/a/ports", None),
        (b"/v1/sandboxes/a/ports/123456/", None),
        (b"/x/v1/sandboxes/a/ports/80/", None),
    ],
)
def test_requests_by_path(path: bytes, found: tuple[str, int, bytes] | None) -> None:
    wanted = by_path(scope(path=path))
    assert (wanted and (wanted.sandbox, wanted.port, wanted.path)) == found


@pytest.mark.parametrize(
    ("host", "found"),
    [
        (b"80-s1.example.com", ("s1", 80)),
        (b"80-S1.EXAMPLE.com.:8443", ("s1", 80)),
        (b"80-s1-x.example.com", ("s1-x", 80)),
        (b"80-s1.exampleXcom", None),
        (b"80-s1.example.com.evil.net", None),
        (b"a.80-s1.example.com", None),
        (b"80-s1.x.example.com", None),
        (b"example.com", None),
        (b"80-.example.com", None),
    ],
)
def test_requests_by_host_name(host: bytes, found: tuple[str, int] | None) -> None:
    wanted = by_host("example.com")(scope((b"host", host)))
    assert (wanted and (wanted.sandbox, wanted.port)) == found


def test_a_whole_url_as_the_target() -> None:
    wanted = by_host("example.com")(scope((b"host", b"80-s1.example.com"), path=b"http://x/a/b"))
    assert wanted is not None
    assert wanted.path == b"/a/b"


@pytest.mark.parametrize(
    ("headers", "foreign"),
    [
        ([], False),
        ([(b"origin", b"http://80-a.localhost")], False),
        ([(b"origin", b"https://80-b.localhost")], True),
        ([(b"origin", b"null")], True),
        ([(b"sec-fetch-site", b"same-site"), (b"sec-fetch-mode", b"navigate")], False),
        ([(b"sec-fetch-site", b"same-site"), (b"sec-fetch-mode", b"cors")], True),
        ([(b"sec-fetch-site", b"same-origin"), (b"sec-fetch-mode", b"cors")], False),
    ],
)
def test_who_asks_for_whom(headers: list[tuple[bytes, bytes]], foreign: bool) -> None:
    assert from_another_site([(b"host", b"80-a.localhost"), *headers]) is foreign
