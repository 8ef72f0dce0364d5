"""Errors on their way to a client: whatever was raised becomes one of the domain's, which each dialect says its way.

A dialect has one `ErrorFormat`: how it says an error as an HTTP answer, as the end of a websocket, and as the last
bytes of a stream whose headers are sent already.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from werkzeug.exceptions import HTTPException

from sandboxd.errors import SandboxdError

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS: Final = 1
# RFC 6455 §5.5: a control frame carries 125 bytes, two of them the code.
MAX_REASON_BYTES: Final = 123

_REASONS: Final = {
    404: "there is nothing at this path",
    405: "this path does not take that method",
    408: "the request's body stopped coming",
    413: "the request's body is too large",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorAnswer:
    """An error as an HTTP answer: the body in the dialect's shape; headers that every dialect sends are added."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Close:
    """A websocket's close frame. Codes: RFC 6455 §7.4 and the IANA registry; 4000-4999 are for applications."""

    code: int
    reason: str = ""

    def __post_init__(self) -> None:
        if not ((1000 <= self.code <= 1014 and self.code not in (1004, 1005, 1006)) or 3000 <= self.code <= 4999):
            raise ValueError(f"cannot send websocket close code {self.code}: RFC 6455 reserves it")

    @property
    def short_reason(self) -> str:
        """The reason cut to what a close frame can carry, at a character's edge."""
        return self.reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")


def close_for(error: SandboxdError) -> Close:
    """The close frame for an error: 1008 when the peer erred, 1011 when the daemon did."""
    return Close(1008 if error.status < 500 else 1011, error.message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorFormat:
    """How a dialect says an error."""

    answer: Callable[[SandboxdError], ErrorAnswer]
    """instead of the answer that was asked for"""
    close: Callable[[SandboxdError], Close] = close_for
    """at the end of a websocket"""
    last_message: Callable[[SandboxdError], str | None] = lambda _: None
    """on a websocket, before it is closed; None: nothing"""
    end_stream: Callable[[SandboxdError], bytes] = lambda _: b""
    """as the last bytes of a stream that the daemon ends: because it stops, or the key was revoked"""


class HttpError(SandboxdError):
    """What the HTTP framework refuses: a path that does not exist, a method, a body that does not come."""

    def __init__(self, error: HTTPException) -> None:
        self.status = error.code or 500
        reason = _REASONS.get(self.status, error.description)
        super().__init__(f"cannot serve this: {reason}", kind=error.name.lower().replace(" ", "_"))
        self.allow = dict(error.get_headers()).get("Allow")


def to_domain(error: Exception) -> SandboxdError:
    """An error in the domain's terms. One that is our own fault goes to the log, and the client gets a short word."""
    if isinstance(error, SandboxdError):
        if error.status >= 500 and error.status != 503:
            log.error("%s %s", error.message, error.facts)
        return error
    if isinstance(error, HTTPException):
        return HttpError(error)
    log.error("request failed", exc_info=error)
    return SandboxdError("cannot serve this: the daemon failed, its log says why")


def headers_of(error: SandboxdError) -> dict[str, str]:
    """The headers that HTTP gives a meaning for this status, in every dialect."""
    headers = {}
    if error.status == 401:
        headers["www-authenticate"] = 'Bearer realm="sandboxd"'
    if error.status in {429, 503}:
        headers["retry-after"] = str(error.facts.get("retry_after", RETRY_AFTER_SECONDS))
    if isinstance(error, HttpError) and error.allow:
        headers["allow"] = error.allow
    return headers


def answer_to(error: Exception, format_: ErrorFormat) -> ErrorAnswer:
    """The whole HTTP answer for whatever was raised."""
    known = to_domain(error)
    answer = format_.answer(known)
    return ErrorAnswer(
        status=answer.status,
        body=answer.body,
        headers={**headers_of(known), **answer.headers},
        content_type=answer.content_type,
    )
