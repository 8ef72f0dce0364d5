"""The daemon's log on the wire."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import Field

from sandboxd.http.native.fields import Request, Response, rfc3339_time
from sandboxd.recent_log import LogLine


class LogView(Response):
    id: int
    at: datetime
    level: str
    logger: str
    message: str
    details: dict[str, Any]

    @classmethod
    def of(cls, line: LogLine) -> Self:
        return cls.model_construct(
            id=line.id,
            at=rfc3339_time(line.at),
            level=line.level,
            logger=line.logger,
            message=line.message,
            details=dict(line.details),
        )


class LogList(Response):
    records: list[LogView]
    next_after: int
    """give it as `after` to read on"""


class LogQuery(Request):
    after: Annotated[int, Field(ge=0, le=2**62)] | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    follow: bool = False
    """stream lines as they are written (SSE); so does `Accept: text/event-stream`"""
