"""The daemon's latest log records, kept in memory for `sandboxctl log`, which cannot read its stderr."""

import itertools
import logging
import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sandboxd.printable import printable, printable_lines

CAPACITY = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    id: int
    """grows by one per line; starts anew with the daemon"""
    at: float
    level: str
    logger: str
    message: str
    details: Mapping[str, Any]


_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def facts_of(record: logging.LogRecord) -> dict[str, Any]:
    """What was given as `extra`."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class RecentLog(logging.Handler):
    """Keeps the last `capacity` records. May be used from any thread, as handlers are."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        super().__init__()
        self._lines: deque[LogLine] = deque(maxlen=capacity)
        self._ids = itertools.count(1)

    def emit(self, record: logging.LogRecord) -> None:
        details = {name: printable(str(value)) for name, value in facts_of(record).items()}
        if record.exc_info:
            details["exception"] = printable_lines("".join(traceback.format_exception(*record.exc_info)).rstrip())
        line = LogLine(
            id=next(self._ids),
            at=record.created,
            level=record.levelname.lower(),
            logger=record.name,
            message=record.getMessage(),
            details=details,
        )
        self._lines.append(line)  # under the lock that `handle` holds

    def after(self, number: int, *, limit: int) -> list[LogLine]:
        """At most `limit` lines that came after the one with that id, the oldest first."""
        self.acquire()
        try:
            return [line for line in self._lines if line.id > number][:limit]
        finally:
            self.release()

    @property
    def last_id(self) -> int:
        return self._lines[-1].id if self._lines else 0


RECENT_LOG = RecentLog()
"""Of this process: logging is process-wide too."""
