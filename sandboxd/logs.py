"""Structured logs on stderr: `time level logger message key=value…` for people, or one JSON object per line.

Under systemd the journal adds the time and reads the level from the prefix (sd-daemon(3)).
"""

import json
import logging
import os
import sys
import time

from sandboxd.recent_log import RECENT_LOG, facts_of

_SYSLOG = {"ERROR": "<3>", "WARNING": "<4>", "INFO": "<6>", "DEBUG": "<7>", "CRITICAL": "<2>"}


def set_up(kind: str, level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if kind == "json" else TextFormatter(journal="JOURNAL_STREAM" in os.environ))
    logging.basicConfig(handlers=[handler, RECENT_LOG], level=level.upper(), force=True)


class TextFormatter(logging.Formatter):
    def __init__(self, *, journal: bool) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime
        self._journal = journal

    def formatMessage(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {name}={value!r}" for name, value in facts_of(record).items())
        if self._journal:
            return f"{_SYSLOG[record.levelname]}{record.name}: {record.message}{facts}"
        return super().formatMessage(record) + facts


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
