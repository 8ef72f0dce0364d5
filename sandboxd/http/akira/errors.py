"""Akira's error body, `{"error": {"code", "message"}}`, and its statuses: 400, 401, 403, 404, 429, 500.

It documents one status for all bad requests, so our 422 is a 400 here. 409, 413 and 503 it does not know; they stay
what they are, since a client can do something about each.
"""

import logging

from quart.wrappers import Response
from werkzeug.exceptions import HTTPException

from sandboxd.errors import SandboxdError
from sandboxd.http.akira.schemas import Error, ErrorBody
from sandboxd.http.kit.routes import render

log = logging.getLogger(__name__)

_CODES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    413: "too_large",
    429: "rate_limit_exceeded",
    503: "unavailable",
}


def explain(error: Exception) -> Response:
    if isinstance(error, SandboxdError):
        return _answer(error.status, error.message, retry_after=error.facts.get("retry_after", 1))
    if isinstance(error, HTTPException):
        return _answer(error.code or 500, f"cannot serve this: {error.description}")
    log.error("request failed", exc_info=error)
    return _answer(500, "cannot serve this: the daemon failed, its log says why")


def _answer(status: int, message: str, *, retry_after: object = 1) -> Response:
    status = 400 if status == 422 else status
    code = _CODES.get(status, "internal_error" if status >= 500 else "invalid_request")
    response = render(ErrorBody(error=Error(code=code, message=message)), status)
    if status in (429, 503):
        response.headers["retry-after"] = str(retry_after)
    return response
