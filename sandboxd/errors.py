"""One vocabulary of errors for the whole daemon.

    SandboxdError                  kind, message, facts
     ├─ RequestError               the caller asked wrongly; carries an HTTP status hint (4xx)
     │   ├─ InvalidRequest         400  malformed or contradictory input
     │   ├─ Unauthenticated        401  no key, or an unknown one
     │   ├─ Forbidden              403  the key lacks the scope
     │   ├─ NotFound               404  no such sandbox, command, image, key, file, …
     │   ├─ TimedOut               408  the request's body stopped coming
     │   ├─ Conflict               409  the thing exists, or is in a state that forbids this
     │   ├─ TooLarge               413  body, file or output over a limit
     │   ├─ Unprocessable          422  well-formed, but this host or sandbox cannot do it
     │   ├─ TooManyRequests        429  a quota or rate of this caller is used up
     │   └─ Unavailable            503  the daemon is at capacity or going down; the same call may work later
     ├─ BadGateway                 502  what listens on a sandbox's port (if anything does) gave no proper answer
     ├─ GatewayTimeout             504  it gave none in time
     ├─ LaunchFailed               500  a sandbox could not be started though the request was right
     ├─ SandboxLost                410  the sandbox ended while the operation was under way
     └─ StartupError               the daemon cannot start: one sentence for the person, exit status 1

`kind` is a stable machine-readable word, `message` begins with "cannot", names the thing and says what would
fix it, `facts` are machine-readable details. The split between "you erred" and "we failed" follows h11.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar


class SandboxdError(Exception):
    """Base of everything this daemon raises on purpose."""

    status: int = 500
    default_kind: ClassVar[str] = "internal"

    def __init__(self, message: str, *, kind: str | None = None, **facts: Any) -> None:
        super().__init__(message)
        self.kind = kind or self.default_kind
        self.message = message
        self.facts = facts


class RequestError(SandboxdError):
    status = 400
    default_kind = "invalid_request"


class InvalidRequest(RequestError):
    pass


class Unauthenticated(RequestError):
    status = 401
    default_kind = "unauthenticated"


class Forbidden(RequestError):
    status = 403
    default_kind = "forbidden"


class NotFound(RequestError):
    status = 404
    default_kind = "not_found"


class TimedOut(RequestError):
    status = 408
    default_kind = "timed_out"


class Conflict(RequestError):
    status = 409
    default_kind = "conflict"


class TooLarge(RequestError):
    status = 413
    default_kind = "too_large"


class Unprocessable(RequestError):
    status = 422
    default_kind = "unprocessable"


class TooManyRequests(RequestError):
    status = 429
    default_kind = "too_many_requests"


class Unavailable(RequestError):
    status = 503
    default_kind = "unavailable"


class BadGateway(SandboxdError):
    status = 502
    default_kind = "bad_answer"


class GatewayTimeout(SandboxdError):
    status = 504
    default_kind = "no_answer"


class LaunchFailed(SandboxdError):
    default_kind = "launch_failed"


class SandboxLost(SandboxdError):
    status = 410
    default_kind = "sandbox_lost"


class StartupError(SandboxdError):
    default_kind = "startup"


@contextlib.contextmanager
def ungrouped() -> Iterator[None]:
    """Let the domain's error out of a nursery as itself: that there were tasks is an implementation's detail.

    A group with anything else in it passes as it is: a bug, or a cancellation, which must keep its shape.
    """
    try:
        yield
    except ExceptionGroup as group:
        matching, rest = group.split(SandboxdError)
        if rest is not None or matching is None:
            raise
        raise first_leaf(matching) from group


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group of groups, in order; an error that is no group is its own only leaf."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def first_leaf(error: BaseException) -> BaseException:
    """The first of the errors in a group of groups."""
    return next(leaves(error))
