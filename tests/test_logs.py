"""What a log line looks like, whatever is logged."""

import io
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.logs import JsonFormatter, PrintableRecord, TextFormatter
from sandboxd.printable import LINE_LIMIT, printable, printable_lines

FORGED = "\n2026-01-01T00:00:00.000Z WARNING sandboxd: all is lost"
HOSTILE = f"\x1b[2J\x9b\u202e\u2028\r\udc80{FORGED}"


@pytest.fixture(params=[TextFormatter(journal=False), TextFormatter(journal=True), JsonFormatter()])
def out(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """What loggers called `hostile` write."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(request.param)
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(PrintableRecord)
    logger = logging.getLogger("hostile")
    logger.addHandler(handler)
    logger.propagate = False  # pytest's own handler would keep what is no UTF-8, which ends a worker of xdist
    yield out
    logger.propagate = True
    logger.removeHandler(handler)
    logging.setLogRecordFactory(before)


class Hostile:
    def __str__(self) -> str:
        return HOSTILE


@pytest.mark.parametrize("template", ["of %s", "of %r"])
@pytest.mark.parametrize("value", [HOSTILE, Hostile(), OSError(HOSTILE)], ids=["text", "object", "error"])
def test_what_is_logged_stays_on_its_line(out: io.StringIO, template: str, value: object) -> None:
    logging.getLogger("hostile").warning(template, value, extra={"fact": value})
    (line,) = out.getvalue().splitlines()
    assert line.isprintable()


def test_what_is_logged_is_cut(out: io.StringIO) -> None:
    logging.getLogger("hostile").warning("of %s", "x" * 10**6)
    assert len(out.getvalue()) < LINE_LIMIT + 200


def test_numbers_are_logged_as_numbers(out: io.StringIO) -> None:
    logging.getLogger("hostile").warning("%d of %.1f, %5s", 1, 2.0, "x")
    assert "1 of 2.0, x" in out.getvalue().replace("    x", "x")


def test_no_line_of_an_exception_passes_for_another_entry(out: io.StringIO) -> None:
    try:
        raise ValueError(HOSTILE.replace("\udc80", ""))
    except ValueError:
        logging.getLogger("hostile").exception("failed")
    first, *others = out.getvalue().splitlines()
    assert "failed" in first
    assert all(line.startswith("    ") and line.isprintable() for line in others)


@given(text=st.text(max_size=3000))
def test_any_text_becomes_one_printable_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= LINE_LIMIT + 1
    assert len(printable_lines(text).split("\n")) <= 200
    if text.isprintable() and len(text) <= LINE_LIMIT:
        assert shown == text
