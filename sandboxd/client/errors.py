"""What the client raises.

ClientError
 ├─ DaemonUnreachable   nobody answers at the address; the message says what to do about it
 ├─ ConnectionLost      the connection broke, or said something that is not HTTP, before the answer was complete
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
    pass


class ConnectionLost(ClientError):
    pass


class ApiError(ClientError):
    """The daemon's refusal. `kind` is a stable word for programs, `details` are its facts."""

    def __init__(self, status: int, kind: str, message: str, details: Mapping[str, Any] = _NOTHING) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.details = details


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
