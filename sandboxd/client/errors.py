"""What the client raises.

ClientError
 ├─ DaemonUnreachable   nobody answers at the address; the message says what to do about it
 ├─ ConnectionLost      the connection broke, or said something that is not HTTP, before the answer was complete
 ├─ TimedOut            the daemon was silent for longer than the `timeout` that a blocking client was given
 ├─ InputClosed         the command no longer reads its stdin, or has ended
 ├─ StreamEnded         there is nothing more to receive: the last event has been given
 └─ ApiError            the daemon answered that it cannot: status, kind, message, details
"""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class ClientError(Exception):
    """Base of everything this client raises on purpose; its text is one sentence for a person."""


class DaemonUnreachable(ClientError):
    """Nobody answers at the daemon's address. The message says what a person can do about it."""


class ConnectionLost(ClientError):
    """The connection broke, or what came was no answer, before the answer was complete.

    Whether the daemon did what was asked is not known.
    """


class TimedOut(ClientError, TimeoutError):
    """The daemon was silent for longer than the `timeout` that a blocking client was given."""


class InputClosed(ClientError):
    """A command no longer reads its stdin, or has ended."""


class StreamEnded(ClientError):
    """There is nothing more to receive: the last event has been given."""


class ApiError(ClientError):
    """The daemon refused.

    `status` is the answer's HTTP status, `kind` a stable word for programs (e.g. "not_found"), `message` one sentence
    for a person, and `details` the facts behind it.
    """

    def __init__(self, status: int, kind: str, message: str, details: Mapping[str, Any] = _NOTHING) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.details = details


class WebSocketClosed(Exception):
    """The conversation is over; `code` as in RFC 6455 §7.4, 1006 when the connection broke without a word."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"closed with code {code} {reason}".rstrip())
        self.code = code
        self.reason = reason


def api_error(status: int, body: bytes) -> ApiError:
    """The error in an answer's body; one that is not the daemon's own (a proxy's page) is named by its status."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("error"), str):
        return ApiError(status, "unknown", f"cannot do that: the answer was HTTP {status} without an explanation")
    return error_from(answer, status=status)


def error_from(answer: Mapping[str, Any], *, status: int) -> ApiError:
    """From the JSON that every error carries, in a body, an event or a websocket message."""
    details = answer.get("details")
    return ApiError(
        answer.get("status", status),
        str(answer.get("kind", "unknown")),
        str(answer["error"]),
        details if isinstance(details, dict) else {},
    )
