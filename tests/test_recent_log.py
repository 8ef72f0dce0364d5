"""The daemon's latest log records in memory."""

import logging

import pytest

from sandboxd.recent_log import RecentLog


@pytest.fixture
def recent() -> RecentLog:
    return RecentLog(capacity=3)


@pytest.fixture
def log(recent: RecentLog) -> logging.Logger:
    logger = logging.Logger("a.test")
    logger.addHandler(recent)
    return logger


def test_a_line_has_what_was_logged(recent: RecentLog, log: logging.Logger) -> None:
    log.warning("cannot %s", "say", extra={"sandbox": "s1"})
    (line,) = recent.after(0, limit=10)
    assert (line.id, line.level, line.logger, line.message) == (1, "warning", "a.test", "cannot say")
    assert line.details == {"sandbox": "s1"}


def test_an_exception_is_told_with_its_traceback(recent: RecentLog, log: logging.Logger) -> None:
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("failed")
    (line,) = recent.after(0, limit=10)
    assert line.details["exception"].endswith("ValueError: why")


def test_only_the_latest_are_kept_and_ids_go_on(recent: RecentLog, log: logging.Logger) -> None:
    for number in range(5):
        log.info("%d", number)
    assert [(line.id, line.message) for line in recent.after(0, limit=10)] == [(3, "2"), (4, "3"), (5, "4")]
    assert recent.last_id == 5


def test_reading_on(recent: RecentLog, log: logging.Logger) -> None:
    for number in range(3):
        log.info("%d", number)
    first = recent.after(0, limit=2)
    assert [line.id for line in first] == [1, 2]
    assert [line.id for line in recent.after(first[-1].id, limit=2)] == [3]
    assert recent.after(3, limit=2) == []
