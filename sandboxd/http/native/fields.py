"""What the wire models of /v1 are made of: constrained fields, the two kinds of model, errors, times.

Times are RFC 3339 in UTC, durations whole milliseconds (`_ms`), sizes bytes (`_bytes`).
"""

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from sandboxd.constraints import DAY_MS as DAY_MS
from sandboxd.constraints import Argument as Argument
from sandboxd.constraints import BackendName as BackendName
from sandboxd.constraints import Description as Description
from sandboxd.constraints import Env as Env
from sandboxd.constraints import Hostname as Hostname
from sandboxd.constraints import ImageName as ImageName
from sandboxd.constraints import Metadata as Metadata
from sandboxd.constraints import Name as Name
from sandboxd.constraints import OptionalPath as OptionalPath
from sandboxd.constraints import Path as Path
from sandboxd.constraints import UserName as UserName
from sandboxd.constraints import without_nul as without_nul


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Response(BaseModel):
    model_config = ConfigDict(frozen=True)


def rfc3339_time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def seconds(milliseconds: int | None) -> float | None:
    """A duration of the API as the daemon counts it."""
    return None if milliseconds is None else milliseconds / 1000


def milliseconds(seconds: float | None) -> int | None:
    """A duration of the daemon's as the API tells it."""
    return None if seconds is None else round(seconds * 1000)
