"""Sizes, durations, assignments: what people write, and what is shown to them."""

import unicodedata
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.cli.values import (
    parse_assignments,
    parse_duration,
    parse_lifetime,
    parse_size,
    printable,
    show_age,
    show_seconds,
    show_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1k", 1024),
        ("512M", 512 << 20),
        ("1.5GiB", 3 << 29),
        ("2tb", 2 << 40),
        ("7 MB", 7 << 20),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "1X", "1MM", "nan", "inf", "1e3", "0x10", "1 2", "१"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@given(st.integers(0, 2**60))
def test_bytes_are_exact(size: int) -> None:
    assert parse_size(str(size)) == size


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("30s", 30_000),
        ("30", 30_000),
        ("0.5", 500),
        ("250ms", 250),
        ("1h30m", 5_400_000),
        ("2d", 172_800_000),
        ("1.5m", 90_000),
    ],
)
def test_durations_are_read(text: str, milliseconds: int) -> None:
    assert parse_duration(text) == milliseconds


@pytest.mark.parametrize("text", ["", "s", "-5s", "5x", "1h 30m", "5sec", "१s", "nan", "0", "0s", "0.0001s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a duration|too short"):
        parse_duration(text)


def test_a_lifetime_may_have_no_end() -> None:
    assert parse_lifetime("none") is None
    assert parse_lifetime("1s") == 1000


def test_assignments_keep_all_after_the_first_equals_sign() -> None:
    assert parse_assignments(["A=1", "B=x=y", "C="]) == {"A": "1", "B": "x=y", "C": ""}


def test_a_name_alone_is_inherited_if_it_is_set() -> None:
    assert parse_assignments(["HOME", "NOT_SET"], inherit={"HOME": "/root"}) == {"HOME": "/root"}


@pytest.mark.parametrize("item", ["=x", "", "NAME"])
def test_what_is_no_assignment_is_refused(item: str) -> None:
    with pytest.raises(ValueError, match="not KEY=VALUE"):
        parse_assignments([item])


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 29, "1.5 GiB"), (2**60, "1048576.0 TiB")],
)
def test_sizes_are_shown(size: int, text: str) -> None:
    assert show_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.2s"), (9.9, "9.9s"), (61, "1m 1s"), (3600, "1h"), (90_000, "1d 1h"), (86_460, "1d")],
)
def test_durations_are_shown_by_their_two_largest_units(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text


def test_an_age_is_shown_the_same_for_past_and_future() -> None:
    now = datetime.now(UTC)
    assert show_age(now - timedelta(hours=2, seconds=1)) == "2h"
    assert show_age(now + timedelta(hours=2, seconds=1)) == "2h"
    assert show_age(None) == "-"


@given(st.text())
def test_nothing_printable_moves_a_terminals_cursor(text: str) -> None:
    shown = printable(text)
    assert not [char for char in shown if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp")]
    assert printable(shown) == shown


def test_an_escape_sequence_is_made_visible() -> None:
    assert printable("\x1b]0;owned\x07") == "\\x1b]0;owned\\x07"
