"""The arithmetic of the benchmark: a figure that is wrong is worse than none."""

import math
from collections import Counter

import pytest

from tests.bench.measure import (
    FEWEST_TRIALS,
    MOST_FAILURES,
    WARM_UPS,
    Figure,
    Trial,
    TrialFailed,
    concurrently,
    interleave,
)
from tests.bench.report import Aim


def figure(*values: float, higher_is_better: bool = False) -> Figure:
    return Figure(row="r", system="s", unit="u", values=list(values), higher_is_better=higher_is_better)


def test_percentiles_count_from_the_good_end() -> None:
    times = figure(*range(1, 101))
    assert (times.percentile(50), times.percentile(95), times.percentile(99), times.best) == (50, 95, 99, 1)
    rates = figure(*range(1, 101), higher_is_better=True)
    assert (rates.percentile(50), rates.percentile(95), rates.best) == (51, 6, 100)
    assert math.isnan(figure().percentile(50))


@pytest.mark.parametrize(("value", "met"), [(9.9, True), (10.1, False)])
def test_an_aim_is_an_upper_bound_for_times_and_a_lower_one_for_rates(value: float, met: bool) -> None:
    aim = Aim(row="r", bound=10, unit="u")
    assert aim.met(figure(value)) is met
    assert aim.met(figure(value, higher_is_better=True)) is not met


def test_an_aim_with_failures_is_missed() -> None:
    failed = figure(1.0)
    failed.failures.append("once")
    assert not Aim(row="r", bound=10, unit="u").met(failed)


def test_each_system_gets_its_trials_and_a_broken_one_is_given_up() -> None:
    calls: Counter[str] = Counter()

    def works() -> float:
        calls["works"] += 1
        return 1.0

    def breaks() -> float:
        calls["breaks"] += 1
        raise TrialFailed("no")

    figures = [figure(), figure()]
    interleave(figures, [Trial(system="a", run=works), Trial(system="b", run=breaks)], seconds=0)
    assert figures[0].values == [1.0] * FEWEST_TRIALS
    assert calls["works"] == FEWEST_TRIALS + WARM_UPS
    assert figures[1].failures == ["no"] * MOST_FAILURES


def test_concurrent_work_is_done_as_often_as_asked_and_failures_are_told() -> None:
    done = iter(range(100))

    def work() -> None:
        if next(done) % 10 == 0:
            raise TrialFailed("tenth")

    rate, failures = concurrently(work, workers=4, times=50)
    assert rate > 0
    assert failures == ["tenth"] * 5
    assert next(done) == 50


def test_trials_in_a_row_follow_each_other() -> None:
    order: list[str] = []

    def trial(name: str) -> Trial:
        return Trial(system=name, run=lambda: order.append(name))

    figures = [figure(), figure()]
    interleave(figures, [trial("a"), trial("b")], seconds=0, in_a_row=3)
    assert order[2 * WARM_UPS :][:9] == ["a"] * 3 + ["b"] * 6
    assert [len(each.values) for each in figures] == [3 * FEWEST_TRIALS] * 2
