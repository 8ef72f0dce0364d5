"""Token buckets by any clock, and what a quota has room for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.config import SandboxConfig
from sandboxd.errors import TooManyRequests, Unavailable, Unprocessable
from sandboxd.model import ApiKey, Limits, Quota, Sandbox, SandboxSpec, SandboxState, Scope
from sandboxd.service.access import quotas
from sandboxd.service.access.holdings import holdings
from sandboxd.service.access.quotas import MINUTE, TokenBucket, check_all, with_shares
from sandboxd.service.sandboxes.expiry import deadline_after, now

RATES = st.integers(1, 1000)
# Pauses between requests, in seconds: none, short, and long ones; a clock that is set back too.
PAUSES = st.lists(st.one_of(st.just(0.0), st.floats(0, 3), st.floats(0, 200), st.floats(-5, 0)), max_size=400)


def check_key(key: ApiKey, wanted: SandboxSpec, sandboxes: list[Sandbox]) -> None:
    quotas.check_key(key, wanted, sandboxes, holdings(key.id, sandboxes, ()))


def key(**quota: int) -> ApiKey:
    return ApiKey(id="key1", name="k", scopes=frozenset({Scope.WRITE}), created_at=0.0, quota=Quota(**quota))


def spec(owner: str | None = "key1", **limits: int) -> SandboxSpec:
    return SandboxSpec(image="", image_name="base", owner=owner, limits=Limits(**limits))  # type: ignore[arg-type]


def sandbox(wish: SandboxSpec, *, seconds_left: float | None = None) -> Sandbox:
    deadline = None if seconds_left is None else deadline_after(seconds_left, now())
    return Sandbox(id="s", state=SandboxState.STOPPED, spec=wish, created_at=0.0, range_start=0, deadline=deadline)


@given(RATES, PAUSES)
def test_a_bucket_never_gives_more_than_it_held_and_what_came_since(rate: int, pauses: list[float]) -> None:
    bucket, clock, latest, given_out = TokenBucket.full(rate, 0.0), 0.0, 0.0, 0
    for pause in pauses:
        clock += pause
        latest = max(latest, clock)
        given_out += bucket.take(clock) == 0
        assert given_out <= rate + latest * rate / MINUTE + 1e-6


@given(RATES, PAUSES)
def test_who_waits_as_long_as_is_said_is_served_and_not_before(rate: int, pauses: list[float]) -> None:
    bucket, clock = TokenBucket.full(rate, 0.0), 0.0
    for pause in pauses:
        clock += max(0.0, pause)
        wait = bucket.take(clock)
        if wait:
            assert wait <= MINUTE / rate + 1e-9
            early = TokenBucket(bucket.per_minute, bucket.tokens, bucket.at)
            assert early.take(clock + wait * 0.5) > 0
            clock += wait + 1e-6
            assert bucket.take(clock) == 0


@given(RATES)
def test_a_minute_fills_it_to_the_brim_and_no_further(rate: int) -> None:
    bucket = TokenBucket.full(rate, 0.0)
    for start in (0.0, 10 * MINUTE):
        assert [bucket.take(start) == 0 for _ in range(rate + 1)] == [True] * rate + [False]


def test_a_quota_counts_what_its_key_has_in_whatever_state() -> None:
    own, others = sandbox(spec()), sandbox(spec(owner="key2"))
    check_key(key(sandboxes=2), spec(), [own, others, sandbox(spec(owner=None))])
    with pytest.raises(TooManyRequests) as caught:
        check_key(key(sandboxes=2), spec(), [own, own])
    assert (caught.value.kind, caught.value.facts["retry_after"]) == ("quota_exceeded", 60)


def test_the_time_to_wait_is_that_of_the_first_lifetime_to_end() -> None:
    first = now()
    held = [sandbox(spec(), seconds_left=seconds) for seconds in (5000, 1000)] + [sandbox(spec())]
    with pytest.raises(TooManyRequests) as caught:
        check_key(key(sandboxes=3), spec(), held)
    passed = now().uptime - first.uptime
    assert 1000 - passed <= caught.value.facts["retry_after"] <= 1000


@pytest.mark.parametrize("name", ["memory", "disk"])
def test_memory_and_disk_are_counted_as_promised(name: str) -> None:
    held = [sandbox(spec(**{name: 60})), sandbox(spec(owner="key2", **{name: 60}))]
    check_key(key(**{name: 100}), spec(**{name: 40}), held)
    with pytest.raises(TooManyRequests):
        check_key(key(**{name: 100}), spec(**{name: 41}), held)


def test_who_asks_for_no_limit_under_a_quota_gets_an_equal_share_or_is_told_to_ask() -> None:
    assert with_shares(Limits(), Quota(memory=100, sandboxes=4)) == Limits(memory=25)
    assert with_shares(Limits(memory=7), Quota(memory=100, disk=80, sandboxes=4)) == Limits(memory=7, disk=20)
    assert with_shares(Limits(), Quota(sandboxes=4)) == Limits()
    with pytest.raises(Unprocessable) as caught:
        with_shares(Limits(), Quota(memory=100))
    assert caught.value.kind == "limit_needed"


def test_a_full_daemon_is_unavailable_whoever_asks() -> None:
    held = [sandbox(spec(memory=1 << 20)), sandbox(spec(owner=None, memory=1 << 20))]
    check_all(SandboxConfig(max_sandboxes=3, max_memory=3 << 20), spec(memory=1 << 20), held)
    with pytest.raises(Unavailable):
        check_all(SandboxConfig(max_sandboxes=2), spec(), held)
    with pytest.raises(Unavailable) as caught:
        check_all(SandboxConfig(max_memory=3 << 20), spec(memory=(1 << 20) + 1), held)
    assert caught.value.kind == "at_capacity"
    with pytest.raises(Unprocessable):
        check_all(SandboxConfig(max_disk=3 << 20), spec(), held)
