"""Tests of every outcome, for test_replay.py to run inside; not collected otherwise, by its name."""

import os
from collections.abc import Iterator

import pytest
import trio


def test_passes() -> None:
    assert os.environ["SANDBOXD_UML"] == "1"


def test_fails() -> None:
    print("said before failing")
    answer = 41
    assert answer == 42


@pytest.mark.parametrize("value", ["one", "two words"])
def test_passes_with_one_parameter(value: str) -> None:
    assert value == "one"


def test_left_out() -> None:
    """By -k. Were it run all the same, everything after it would be missing."""
    os._exit(1)


def test_skips() -> None:
    pytest.skip("for a reason")


@pytest.mark.xfail(reason="a known fault", strict=True)
def test_fails_as_expected() -> None:
    raise AssertionError


@pytest.mark.xfail(reason="no longer a fault", strict=True)
def test_passes_unexpectedly() -> None:
    pass


@pytest.fixture
def broken_before() -> None:
    raise LookupError("broken before")


@pytest.fixture
def broken_after() -> Iterator[None]:
    yield
    raise LookupError("broken after")


def test_errs_before(broken_before: None) -> None:
    pass


def test_errs_after(broken_after: None) -> None:
    pass


async def test_runs_under_trio() -> None:
    await trio.lowlevel.checkpoint()


def test_takes_the_machine_down() -> None:
    with open("/proc/sysrq-trigger", "w") as trigger:
        trigger.write("c")


def test_is_never_reached() -> None:
    pass
