"""How the native API says errors: `{"error", "kind", "details"}`; websockets close with 4000 + status after it."""

from typing import Any, Self

from sandboxd.errors import SandboxdError
from sandboxd.http.kit.errors import Close, ErrorAnswer, ErrorFormat, HttpError
from sandboxd.http.kit.streams import to_json
from sandboxd.http.native.fields import Response


class ErrorBody(Response):
    """Every 4xx and 5xx."""

    error: str
    kind: str
    details: dict[str, Any]

    @classmethod
    def of(cls, error: SandboxdError) -> Self:
        """The error as a client reads it."""
        message = error.message
        if isinstance(error, HttpError) and error.status == 404:
            message += "; GET /v1/docs lists what there is"
        return cls(error=message, kind=error.kind, details=error.facts)


def _close(error: SandboxdError) -> Close:
    """4000 and the status, where the client can do something about it."""
    return Close(4000 + error.status if error.status < 500 else 1011, error.message)


def _answer(error: SandboxdError) -> ErrorAnswer:
    return ErrorAnswer(status=error.status, body=ErrorBody.of(error).model_dump_json().encode())


def _last_message(error: SandboxdError) -> str:
    facts = ErrorBody.of(error).model_dump(mode="json")
    return to_json({"type": "error", **facts, "status": error.status})


ERRORS = ErrorFormat(answer=_answer, close=_close, last_message=_last_message)
