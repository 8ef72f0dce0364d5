"""Assembled filters against the table they were made from, number by number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.kernel.classic_bpf import (
    MAX_INSTRUCTIONS,
    RET_ALLOW,
    RET_KILL_PROCESS,
    Block,
    Comparison,
    Interval,
    Rule,
    assemble,
)
from tests.kernel.bpf_reader import Call, answer, refused

NATIVE = 0xC000003E

words = st.sampled_from([0, 1, 7, 8, 0xFFFFFFFF, 1 << 32, (1 << 32) + 7, (1 << 63) + 8, (1 << 64) - 1]) | st.integers(
    0, (1 << 64) - 1
)
actions = st.integers(1, 200).map(refused)


@st.composite
def tables(draw: st.DrawFn) -> list[Interval]:
    starts = draw(st.lists(st.integers(1, 0xFFFFFFFF) | st.integers(1, 400), max_size=120, unique=True))
    return [Interval(first, Block(draw(actions))) for first in [0, *sorted(starts)]]


@given(table=tables(), number=st.integers(0, 0xFFFFFFFF))
def test_every_number_gets_its_interval(table: list[Interval], number: int):
    program = assemble(table, architecture=NATIVE)
    edges = {at for interval in table for at in (interval.first - 1, interval.first) if at >= 0}
    for asked in {number, *edges}:
        expected = [interval.block.final for interval in table if interval.first <= asked][-1]
        assert answer(program, Call(asked)) == expected


@given(
    operator=st.sampled_from(["EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ"]), value=words, mask=words, actual=words
)
def test_comparisons_are_of_64_unsigned_bits(operator, value: int, mask: int, actual: int):
    block = Block(refused(1), (Rule((Comparison(3, operator, value, mask),), RET_ALLOW),))
    holds = {
        "EQ": actual == value,
        "NE": actual != value,
        "LT": actual < value,
        "LE": actual <= value,
        "GT": actual > value,
        "GE": actual >= value,
        "MASKED_EQ": actual & mask == value,
    }[operator]
    program = assemble([Interval(0, block)], architecture=NATIVE)
    assert answer(program, Call(5, (0, 0, 0, actual))) == (RET_ALLOW if holds else refused(1))


@given(arguments=st.tuples(*[st.integers(0, 2)] * 6), wanted=st.tuples(*[st.integers(0, 2)] * 6))
def test_a_rule_needs_all_its_comparisons(arguments: tuple[int, ...], wanted: tuple[int, ...]):
    comparisons = tuple(Comparison(index, "GE", value) for index, value in enumerate(wanted))
    program = assemble([Interval(0, Block(refused(1), (Rule(comparisons, RET_ALLOW),)))], architecture=NATIVE)
    holds = all(actual >= value for actual, value in zip(arguments, wanted, strict=True))
    assert answer(program, Call(0, arguments)) == (RET_ALLOW if holds else refused(1))


def test_the_first_rule_that_applies_counts_over_any_distance():
    """A block far longer than a conditional jump reaches, before another interval."""
    rules = tuple(Rule((Comparison(0, "EQ", value),), refused(value)) for value in range(1, 200))
    program = assemble([Interval(0, Block(RET_ALLOW, rules)), Interval(10, Block(refused(300)))], architecture=NATIVE)
    assert answer(program, Call(9, (199,))) == refused(199)
    assert answer(program, Call(9, (200,))) == RET_ALLOW
    assert answer(program, Call(10, (199,))) == refused(300)


def test_another_architecture_ends_the_process():
    program = assemble([Interval(0, Block(RET_ALLOW))], architecture=NATIVE)
    assert answer(program, Call(0, architecture=0x40000003)) == RET_KILL_PROCESS


def test_a_filter_that_the_kernel_would_refuse_is_refused():
    table = [Interval(first, Block(refused(first % 2 + 1))) for first in range(MAX_INSTRUCTIONS)]
    with pytest.raises(ValueError, match="4096"):
        assemble(table, architecture=NATIVE)
