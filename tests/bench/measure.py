"""Trials taken turn by turn, and what becomes of their numbers.

Systems are interleaved so that a noisy minute of the machine hits all of them: fast ones run in every round, slow
ones in evenly spread rounds, and every second round goes backwards.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# Of each system, before anything counts: caches fill, lazy imports happen.
WARM_UPS = 2
MOST_TRIALS = 400
FEWEST_TRIALS = 5
# A system that fails this often without a success in between is broken here; more of the same teaches nothing.
MOST_FAILURES = 5


class TrialFailed(Exception):
    """One trial did not do what it should have; the text says what happened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    system: str
    run: Callable[[], float | None]
    """returns what was measured, or None to have its own duration taken, in ms"""


@dataclass(slots=True, kw_only=True)
class Figure:
    """One line of the report: what one system did in one row."""

    row: str
    system: str
    unit: str
    values: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    higher_is_better: bool = False
    note: str = ""

    def percentile(self, percent: float) -> float:
        """By nearest rank, from the bad end's view: p95 is worse than 95 % of the values. NaN without values."""
        if not self.values:
            return math.nan
        ordered = sorted(self.values, reverse=self.higher_is_better)
        return ordered[min(len(ordered) - 1, max(0, math.ceil(percent / 100 * len(ordered)) - 1))]

    @property
    def best(self) -> float:
        if not self.values:
            return math.nan
        return max(self.values) if self.higher_is_better else min(self.values)

    @property
    def given_up(self) -> bool:
        return len(self.failures) >= MOST_FAILURES and not self.values

    def attempt(self, trial: Trial, *, counts: bool = True) -> float:
        """Run the trial once; its duration in seconds. A failure is kept, whether it was to count or not."""
        begun = time.perf_counter()
        try:
            measured = trial.run()
        except (TrialFailed, OSError) as failure:
            self.failures.append(str(failure) or type(failure).__name__)
            return time.perf_counter() - begun
        took = time.perf_counter() - begun
        if counts:
            self.values.append(took * 1000 if measured is None else measured)
        return took


def interleave(figures: Sequence[Figure], trials: Sequence[Trial], *, seconds: float, in_a_row: int = 1) -> None:
    """Fill each trial's figure, spending about `seconds` in all, an equal share on each.

    `in_a_row`: how often at each turn. A first trial finds the processor's caches as the others have left them.
    """
    pairs = list(zip(figures, trials, strict=True))
    share = seconds / max(1, len(pairs)) / in_a_row
    counts = [_affordable(figure, trial, share) for figure, trial in pairs]
    rounds = max(counts, default=0)
    for number in range(rounds):
        turn = list(zip(pairs, counts, strict=True))
        for (figure, trial), count in turn if number % 2 == 0 else reversed(turn):
            if not _due(number, count, rounds):
                continue
            for _ in range(in_a_row):
                if not figure.given_up:
                    figure.attempt(trial)


def _affordable(figure: Figure, trial: Trial, share: float) -> int:
    took = [figure.attempt(trial, counts=False) for _ in range(WARM_UPS)]
    return max(FEWEST_TRIALS, min(MOST_TRIALS, int(share / min(took))))


def _due(number: int, count: int, rounds: int) -> bool:
    """Whether a system with `count` trials in all has one in this round: they are spread evenly."""
    return (number + 1) * count // rounds > number * count // rounds


def concurrently(work: Callable[[], object], *, workers: int, times: int) -> tuple[float, list[str]]:
    """Do `work` `times` times in `workers` threads. Returns how often per second it succeeded, and the failures."""
    remaining = iter(range(times))
    guard = threading.Lock()
    failures: list[str] = []
    done = 0

    def one_worker() -> None:
        nonlocal done
        while True:
            with guard:
                if next(remaining, None) is None:
                    return
            try:
                work()
            except (TrialFailed, OSError) as failure:
                with guard:
                    failures.append(str(failure) or type(failure).__name__)
            else:
                with guard:
                    done += 1

    threads = [threading.Thread(target=one_worker) for _ in range(workers)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done / (time.perf_counter() - begun), failures
