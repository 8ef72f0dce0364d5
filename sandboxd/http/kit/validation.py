"""What clients send, as models; what is wrong with it, field by field, in the domain's errors."""

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from sandboxd.errors import InvalidRequest, SandboxdError, Unprocessable

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


def validate_arguments(model: type[M], arguments: dict[str, str]) -> M:
    """A query as a model. Raises: Unprocessable."""
    return _validated(lambda: model.model_validate(arguments), "the query")


def validate_body(model: type[M], data: bytes) -> M:
    """A request's body as a model. Raises: InvalidRequest for what is no JSON, Unprocessable."""
    return _validated(lambda: model.model_validate_json(data), "the request body")


def validate_message(kind: type[M], data: str | bytes) -> M:
    """A websocket's message as a model. Raises: InvalidRequest, Unprocessable."""
    return _validated(lambda: kind.model_validate_json(data), "the message")


def validate_one_of(kinds: TypeAdapter[T], data: str | bytes) -> T:
    """A websocket's message as one of several models. Raises: InvalidRequest, Unprocessable."""
    return _validated(lambda: kinds.validate_json(data), "the message")


def _validated(validate: Callable[[], T], what: str) -> T:
    try:
        return validate()
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors(include_url=False, include_context=False)]
        malformed = any(item["type"] == "json_invalid" for item in error.errors())
        kind: type[SandboxdError] = InvalidRequest if malformed else Unprocessable
        summary = "; ".join(f"{problem['field']}: {problem['problem']}" for problem in problems[:5])
        raise kind(f"cannot use {what}: {summary}", kind="invalid_request", problems=problems[:20]) from error


def _problem(item: Any) -> dict[str, str]:
    field = ".".join(str(part)[:100] for part in item["loc"]) or "(whole)"
    return {"field": field, "problem": "unknown field" if item["type"] == "extra_forbidden" else item["msg"]}
