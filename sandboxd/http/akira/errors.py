"""Akira's error body, `{"error": {"code", "message"}}`, and its statuses: 400, 401, 403, 404, 429, 500.

It documents one status for all bad requests, so our 422 is a 400 here. 409, 413 and 503 it does not know; they stay
what they are, since a client can do something about each.
"""

from sandboxd.errors import SandboxdError
from sandboxd.http.akira.schemas import Error, ErrorBody
from sandboxd.http.kit.errors import ErrorAnswer, ErrorFormat

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


def _answer(error: SandboxdError) -> ErrorAnswer:
    status = 400 if error.status == 422 else error.status
    code = _CODES.get(status, "internal_error" if status >= 500 else "invalid_request")
    body = ErrorBody(error=Error(code=code, message=error.message))
    return ErrorAnswer(status=status, body=body.model_dump_json().encode())


ERRORS = ErrorFormat(answer=_answer)
