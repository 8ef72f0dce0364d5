"""Deadlines by two clocks, and what comes next for a sandbox, with no clock but the test's."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.model import Deadline, ExpiryAction, Instant, Sandbox, SandboxSpec, SandboxState
from sandboxd.service.sandboxes.expiry import (
    Expiry,
    ExpiryReason,
    anchored,
    deadline_after,
    is_later,
    next_expiry,
    now,
    remaining,
    renewed,
    shown,
)

START = Instant(wall=1_000_000.0, uptime=500.0, boot_id="first")
SECONDS = st.integers(0, 10**6).map(float)


def later(seconds: float, *, clock_set_by: float = 0.0) -> Instant:
    return replace(START, wall=START.wall + seconds + clock_set_by, uptime=START.uptime + seconds)


def after_reboot(seconds: float) -> Instant:
    return Instant(wall=START.wall + seconds, uptime=3.0, boot_id="second")


def sandbox(
    deadline: Deadline | None = None, state: SandboxState = SandboxState.RUNNING, **wishes: object
) -> Sandbox:
    spec = SandboxSpec(image="", image_name="base", **wishes)  # type: ignore[arg-type]
    return Sandbox(id="s1", state=state, spec=spec, created_at=0.0, range_start=0, deadline=deadline)


@given(SECONDS, SECONDS, st.floats(-1e9, 1e9))
def test_setting_the_wall_clock_neither_shortens_nor_lengthens_a_lifetime(
    lifetime: float, passed: float, clock_set_by: float
) -> None:
    deadline = deadline_after(lifetime, START)
    assert remaining(deadline, later(passed, clock_set_by=clock_set_by)) == lifetime - passed


@given(SECONDS, SECONDS, SECONDS)
def test_over_a_reboot_the_wall_clock_counts_and_after_it_no_more(lifetime: float, off: float, passed: float) -> None:
    deadline = deadline_after(lifetime, START)
    assert remaining(deadline, after_reboot(off)) == lifetime - off
    again = anchored(deadline, after_reboot(off))
    assert again is not None
    set_back = replace(after_reboot(off), wall=0.0, uptime=3.0 + passed)
    assert remaining(again, set_back) == pytest.approx(lifetime - off - passed)


def test_a_deadline_of_this_boot_is_left_as_it_is() -> None:
    deadline = deadline_after(60, START)
    assert anchored(deadline, later(10)) is deadline
    assert anchored(None, START) is None


def test_a_deadline_is_shown_as_promised_unless_the_clock_was_set() -> None:
    deadline = deadline_after(60, START)
    assert shown(deadline, later(10.25)) == START.wall + 60
    assert shown(deadline, later(10, clock_set_by=0.9)) == START.wall + 60
    assert shown(deadline, later(10, clock_set_by=-3600)) == START.wall + 60 - 3600
    assert shown(None, START) is None


def test_never_is_later_than_any_time() -> None:
    one, two = deadline_after(60, START), deadline_after(61, START)
    assert is_later(two, one, START)
    assert not is_later(one, two, START)
    assert is_later(None, one, START)
    assert not is_later(one, None, START)
    assert not is_later(None, None, START)


def test_a_sandbox_without_a_time_limit_has_no_expiry() -> None:
    assert next_expiry(sandbox(), idle_since=0.0, instant=START) is None


def test_the_lifetime_is_due_when_it_is_over_and_not_before() -> None:
    box = sandbox(deadline_after(60, START), on_timeout=ExpiryAction.STOP)
    for passed in (59.5, 60.0, 61.0):
        expiry = next_expiry(box, idle_since=None, instant=later(passed))
        assert expiry == Expiry(60 - passed, ExpiryReason.LIFETIME, ExpiryAction.STOP)


def test_idle_time_counts_from_the_last_use_while_it_runs_and_is_not_in_use() -> None:
    box = sandbox(idle_timeout=30.0, on_timeout=ExpiryAction.STOP)
    expiry = next_expiry(box, idle_since=later(100).uptime, instant=later(120))
    assert expiry == Expiry(10.0, ExpiryReason.IDLE, ExpiryAction.STOP)
    assert next_expiry(box, idle_since=None, instant=later(120)) is None
    for state in set(SandboxState) - {SandboxState.RUNNING}:
        asleep = replace(box, state=state)
        assert next_expiry(asleep, idle_since=later(100).uptime, instant=later(120)) is None


def test_what_happens_to_an_idle_one_can_differ_and_the_first_to_come_counts() -> None:
    box = sandbox(deadline_after(60, START), idle_timeout=30.0, on_idle=ExpiryAction.PAUSE)
    first = next_expiry(box, idle_since=START.uptime, instant=START)
    assert first == Expiry(30.0, ExpiryReason.IDLE, ExpiryAction.PAUSE)
    first = next_expiry(box, idle_since=later(40).uptime, instant=later(40))
    assert first == Expiry(20.0, ExpiryReason.LIFETIME, ExpiryAction.KILL)


def test_a_used_up_lifetime_begins_anew_and_a_running_one_goes_on() -> None:
    running = deadline_after(5, START)
    assert renewed(sandbox(running, timeout=60.0), later(1)) is running
    assert renewed(sandbox(timeout=60.0), later(1)) == deadline_after(60, later(1))
    assert renewed(sandbox(), later(1)) is None


def test_the_clock_is_that_of_this_boot_and_goes_on() -> None:
    one, two = now(), now()
    assert one.boot_id == two.boot_id
    assert one.uptime < two.uptime
