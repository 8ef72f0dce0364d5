"""Structured logs on stderr: `time level logger message key=value…` for people, or one JSON object per line.

Whatever is logged came from a client or a sandbox, as far as anybody can tell when the line is written: each argument
of each message is made printable and cut to 1 kB, and the lines of a traceback are indented. So every line that
begins with a time is one that the daemon wrote.

Under systemd the journal adds the time and reads the level from the prefix (sd-daemon(3)).
"""

import json
import logging
import os
import sys
import time
from types import TracebackType
from typing import Any

from sandboxd.printable import printable, printable_lines
from sandboxd.recent_log import RECENT_LOG, facts_of

_SYSLOG = {"ERROR": "<3>", "WARNING": "<4>", "INFO": "<6>", "DEBUG": "<7>", "CRITICAL": "<2>"}


class PrintableRecord(logging.LogRecord):
    """A record whose arguments do nothing but say what they are; its message itself is ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.args, tuple):
            self.args = tuple(map(_printable_argument, self.args))


class _Argument:
    """What `%s` and `%r` make of an argument, made printable."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return printable(str(self._value))

    def __repr__(self) -> str:
        return printable(repr(self._value))


def _printable_argument(value: Any) -> Any:
    return value if isinstance(value, int | float) else _Argument(value)


def set_up(kind: str, level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if kind == "json" else TextFormatter(journal="JOURNAL_STREAM" in os.environ))
    logging.setLogRecordFactory(PrintableRecord)
    logging.basicConfig(handlers=[handler, RECENT_LOG], level=level.upper(), force=True)


class TextFormatter(logging.Formatter):
    def __init__(self, *, journal: bool) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime
        self._journal = journal

    def formatMessage(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {name}={printable(repr(value))}" for name, value in facts_of(record).items())
        if self._journal:
            return f"{_SYSLOG[record.levelname]}{record.name}: {record.message}{facts}"
        return super().formatMessage(record) + facts

    def formatException(
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        return printable_lines(super().formatException(ei), indent="    ")


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **facts_of(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)
