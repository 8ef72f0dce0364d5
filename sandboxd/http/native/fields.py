"""What the wire models of /v1 are made of: constrained fields, the two kinds of model, errors, times.

Times are RFC 3339 in UTC, durations whole milliseconds (`_ms`), sizes bytes (`_bytes`).
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from sandboxd.errors import SandboxdError

MAX_ENVIRONMENT = 256
DAY_MS = 24 * 3600 * 1000


def without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("it contains a NUL character")
    return text


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it contains a control character")
    return text


def _absolute(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("it must be an absolute path, beginning with /")
    return without_nul(text)


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]
Hostname = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$")]
ImageName = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_printable)]
UserName = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9_.:$-]*$")]
Path = Annotated[str, StringConstraints(max_length=4095), AfterValidator(_absolute)]
OptionalPath = Annotated[
    str, StringConstraints(max_length=4095), AfterValidator(lambda text: text and _absolute(text))
]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,255}$")]
EnvValue = Annotated[str, StringConstraints(max_length=131_000), AfterValidator(without_nul)]
Env = Annotated[dict[EnvName, EnvValue], Field(max_length=MAX_ENVIRONMENT)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(_printable)]
Metadata = Annotated[
    dict[MetadataKey, Annotated[str, StringConstraints(max_length=4096)]], Field(max_length=MAX_ENVIRONMENT)
]
# One argument may have 128 KiB (MAX_ARG_STRLEN in the kernel, with its final NUL).
Argument = Annotated[str, StringConstraints(max_length=131_071), AfterValidator(without_nul)]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Response(BaseModel):
    model_config = ConfigDict(frozen=True)


class ErrorBody(Response):
    """Every 4xx and 5xx."""

    error: str
    kind: str
    details: dict[str, Any]

    @classmethod
    def of(cls, error: SandboxdError) -> Self:
        return cls(error=error.message, kind=error.kind, details=error.facts)


def rfc3339_time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
