"""What of a message's head passes between a client and a program in a sandbox: pure functions over raw headers.

The daemon stands between two parties that trust neither each other nor it. From the client to the program nothing may
pass that opens the daemon (keys, tokens); from the program to a browser nothing that gives the program power over an
origin it shares with others.

    by host name   every port of every sandbox is an origin of its own: the browser keeps them apart, and all that has
                   to be prevented is cookies for the whole domain. This is the form for browsers.
    by path        the origin is that of the daemon's own API. Pages get an opaque origin instead (CSP `sandbox`), so
                   that their scripts have no cookies, no storage and no service worker; headers that act on the whole
                   origin are dropped, and cookies in both directions.
"""

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sandboxd.http.kit.ports import TOKEN_NAME

RawHeaders = list[tuple[bytes, bytes]]

TOKEN_HEADER = b"x-sandboxd-token"

# RFC 9110 §7.6.1, and what is only ever meant for the next hop.
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# The framing is ours to say; a client that waits for 100 has had it from us; the handshake is made anew.
_OURS = frozenset({b"host", b"content-length", b"expect", b"http2-settings", TOKEN_HEADER})
_FORWARDED = frozenset({b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-prefix"})
_HANDSHAKE = b"sec-websocket-"

# Of an answer: its date, and that it was not the program which refused.
_OURS_TO_SAY = frozenset({b"date", b"x-sandboxd-error"})

# Headers that act on an origin, not on one answer.
_ACTS_ON_ORIGIN = frozenset(
    {
        b"accept-ch",
        b"alt-svc",
        b"clear-site-data",
        b"nel",
        b"origin-agent-cluster",
        b"report-to",
        b"reporting-endpoints",
        b"secure-session-registration",
        b"service-worker-allowed",
        b"set-cookie",
        b"set-login",
        b"strict-transport-security",
        b"use-as-dictionary",
    }
)
# Everything a page may want but the daemon's origin.
_SANDBOXED_PAGE = (
    b"sandbox allow-downloads allow-forms allow-modals allow-orientation-lock allow-pointer-lock allow-popups "
    b"allow-presentation allow-scripts"
)
_COOKIE_DOMAIN = re.compile(rb";\s*domain\s*(=[^;]*)?(?=;|$)", re.IGNORECASE)


def first(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    return next((value for found, value in headers if found == name), None)


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """Without those that are for this hop only, named by the standard or by Connection."""
    headers = list(headers)
    named = {token.strip().lower() for name, value in headers if name == b"connection" for token in value.split(b",")}
    return [(name, value) for name, value in headers if name not in _HOP_BY_HOP and name not in named]


def to_program(
    scope: Mapping[str, Any], *, host: bytes, prefix: str | None, is_secret: Callable[[str], bool]
) -> RawHeaders:
    """A request's headers for the program, without framing. `prefix`: of the path; None for one by host name."""
    given: RawHeaders = scope["headers"]
    kept = [
        (name, value)
        for name, value in end_to_end(given)
        if not (name in _OURS or name in _FORWARDED or name == b"cookie" or name.startswith(_HANDSHAKE))
        and not _is_credential(name, value, is_secret)
    ]
    cookies = b"" if prefix is not None else without_token(b"; ".join(v for n, v in given if n == b"cookie"))
    if cookies:
        kept.append((b"cookie", cookies))
    return [(b"host", host), *kept, *_forwarded(scope, prefix)]


def _is_credential(name: bytes, value: bytes, is_secret: Callable[[str], bool]) -> bool:
    """Whether this is a key of the daemon's. Anything else in these headers is the program's own affair."""
    text = value.decode("latin-1").strip()
    if name == b"x-api-key":
        return is_secret(text)
    if name != b"authorization":
        return False
    scheme, _, credentials = text.partition(" ")
    if scheme.lower() == "basic":
        return any(is_secret(part) for part in _basic(credentials))
    return is_secret(credentials.strip()) or is_secret(text)


def _basic(credentials: str) -> tuple[str, str]:
    """The user name and the password of Basic authentication (RFC 7617), empty where it is none."""
    try:
        user, _, password = base64.b64decode(credentials).decode("latin-1").partition(":")
    except ValueError:
        return "", ""
    return user, password


def _forwarded(scope: Mapping[str, Any], prefix: str | None) -> RawHeaders:
    """Where the request came from, behind what proxies before us said about it."""
    given = scope["headers"]
    client = scope["client"][0].encode() if scope["client"] else b"unknown"
    chain = [value for name, value in given if name == b"x-forwarded-for"]
    scheme = b"https" if scope["scheme"] in ("https", "wss") else b"http"
    forwarded = [
        (b"x-forwarded-for", b", ".join([*chain, client])),
        (b"x-forwarded-proto", first(given, b"x-forwarded-proto") or scheme),
        (b"x-forwarded-host", first(given, b"x-forwarded-host") or first(given, b"host") or b""),
    ]
    return [*forwarded, (b"x-forwarded-prefix", prefix.encode())] if prefix is not None else forwarded


def to_client(headers: Iterable[tuple[bytes, bytes]], *, prefix: str | None) -> RawHeaders:
    """A response's headers for the client, without what is ours to say."""
    kept = [(name, value) for name, value in end_to_end(headers) if name not in _OURS_TO_SAY]
    if prefix is None:
        return [(n, _COOKIE_DOMAIN.sub(b"", v) if n == b"set-cookie" else v) for n, v in kept if n != b"alt-svc"]
    kept = [
        (name, _located(value, prefix) if name == b"location" else value)
        for name, value in kept
        if name not in _ACTS_ON_ORIGIN
    ]
    return [*kept, (b"content-security-policy", _SANDBOXED_PAGE)]


def _located(location: bytes, prefix: str) -> bytes:
    """A redirect to another of the program's paths, which it does not know the beginning of."""
    inner = location.startswith(b"/") and not location.startswith(b"//")
    return prefix.encode() + location if inner else location


# -- the token --------------------------------------------------------------------------------------------------


def without_token(cookies: bytes) -> bytes:
    pairs = (pair.strip() for pair in cookies.split(b";"))
    return b"; ".join(pair for pair in pairs if pair and pair.partition(b"=")[0].strip() != TOKEN_NAME)


def token_of_cookies(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    pairs = (
        pair.strip().partition(b"=") for name, value in headers if name == b"cookie" for pair in value.split(b";")
    )
    return next((value for name, _, value in pairs if name == TOKEN_NAME), None)


def from_another_site(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a browser sent this for a page of another origin: then a cookie proves nothing about who asks.

    Under a domain of one's own all sandboxes are the same *site*, so SameSite does not keep them apart.
    """
    headers = list(headers)
    origin = first(headers, b"origin")
    if origin is not None:
        return origin.partition(b"://")[2] != first(headers, b"host")
    site, mode = first(headers, b"sec-fetch-site"), first(headers, b"sec-fetch-mode")
    return site in (b"cross-site", b"same-site") and mode != b"navigate"
