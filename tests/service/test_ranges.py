"""Id ranges: never two sandboxes with the same, none lost, none invented."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sandboxd.errors import StartupError, Unavailable
from sandboxd.kernel.userns import IDS_PER_RANGE
from sandboxd.service.sandboxes.ranges import BLOCKS, IDS_PER_BLOCK, IdRanges, SharedRange, claim_block
from tests.support.daemon import CHECKOUT

FIRST, COUNT = 0x70000000, 6


def test_ranges_do_not_overlap_and_stay_inside_the_block() -> None:
    ranges = IdRanges(FIRST, COUNT)
    taken = [ranges.take() for _ in range(COUNT)]
    assert sorted(taken) == [FIRST + n * IDS_PER_RANGE for n in range(COUNT)]


def test_when_all_are_taken_the_answer_is_clear_and_one_given_back_is_enough() -> None:
    ranges = IdRanges(FIRST, 2)
    one, _ = ranges.take(), ranges.take()
    with pytest.raises(Unavailable, match=r"^cannot create the sandbox: no free id range"):
        ranges.take()
    ranges.give_back(one)
    assert ranges.take() == one


class AnyOrder(RuleBasedStateMachine):
    """Taking, giving back and claiming in any order, against a set."""

    @initialize(claimed=st.sets(st.integers(0, COUNT - 1)))
    def begin(self, claimed: set[int]) -> None:
        self.ranges = IdRanges(FIRST, COUNT)
        self.taken = {FIRST + n * IDS_PER_RANGE for n in claimed}
        self.ranges.claim(self.taken)

    @rule()
    def take(self) -> None:
        if len(self.taken) == COUNT:
            with pytest.raises(Unavailable):
                self.ranges.take()
        else:
            start = self.ranges.take()
            assert start not in self.taken
            self.taken.add(start)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        start = data.draw(st.sampled_from(sorted(self.taken)))
        self.ranges.give_back(start)
        self.taken.discard(start)

    @rule(start=st.integers(FIRST - 10, FIRST + COUNT * IDS_PER_RANGE))
    def give_back_what_is_not_taken(self, start: int) -> None:
        if start not in self.taken:
            self.ranges.give_back(start)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.ranges.taken() == self.taken


TestAnyOrder = AnyOrder.TestCase


def test_without_root_all_share_one() -> None:
    ranges = SharedRange(1)
    assert {ranges.take() for _ in range(5)} == {1}
    ranges.give_back(1)
    assert ranges.take() == 1


# -- blocks of daemons --------------------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    return tmp_path / "registry"


def state(tmp_path: Path, number: int) -> Path:
    directory = tmp_path / f"state-{number}"
    directory.mkdir(exist_ok=True)
    return directory


def test_two_state_directories_get_two_blocks_and_keep_them(tmp_path: Path, registry: Path) -> None:
    one, two = state(tmp_path, 1), state(tmp_path, 2)
    first, second = claim_block(one, FIRST, registry), claim_block(two, FIRST, registry)
    assert {first, second} == {FIRST, FIRST + IDS_PER_BLOCK}
    assert claim_block(one, FIRST, registry) == first
    assert claim_block(two, FIRST, registry) == second


def test_one_directory_by_two_names_is_one(tmp_path: Path, registry: Path) -> None:
    one = state(tmp_path, 1)
    (tmp_path / "link").symlink_to(one)
    assert claim_block(one, FIRST, registry) == claim_block(tmp_path / "link", FIRST, registry)


def test_the_block_of_a_directory_that_is_gone_is_free(tmp_path: Path, registry: Path) -> None:
    one = state(tmp_path, 1)
    first = claim_block(one, FIRST, registry)
    one.rmdir()
    assert claim_block(state(tmp_path, 2), FIRST, registry) == first


def test_when_all_blocks_are_claimed_the_answer_names_the_registry(tmp_path: Path, registry: Path) -> None:
    for number in range(BLOCKS):
        claim_block(state(tmp_path, number), FIRST, registry)
    with pytest.raises(StartupError, match=str(registry)):
        claim_block(state(tmp_path, BLOCKS), FIRST, registry)
    assert FIRST + BLOCKS * IDS_PER_BLOCK <= 1 << 32


def test_daemons_that_start_at_once_do_not_meet(tmp_path: Path, registry: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from sandboxd.service.sandboxes.ranges import claim_block\n"
        "print(claim_block(Path(sys.argv[1]), 0, Path(sys.argv[2])))"
    )
    claimants = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(state(tmp_path, number)), str(registry)],
            stdout=subprocess.PIPE,
            cwd=CHECKOUT,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        )
        for number in range(4)
    ]
    blocks = [claimant.communicate(timeout=60)[0] for claimant in claimants]
    assert len(set(blocks)) == 4
