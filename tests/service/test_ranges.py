"""Id ranges: never two sandboxes with the same, none lost, none invented."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sandboxd.config import Config
from sandboxd.errors import StartupError, Unavailable
from sandboxd.kernel.userns import IDS_PER_RANGE
from sandboxd.model import Sandbox, SandboxSpec, SandboxState
from sandboxd.service.sandboxes import ranges as ranges_module
from sandboxd.service.sandboxes.ranges import BLOCKS, IdRanges, SharedRange, claim_block
from sandboxd.service.sandboxes.ranges import IDS_PER_BLOCK as FULL_BLOCK
from tests.support.daemon import CHECKOUT

FIRST, COUNT = 0x70000000, 6


def record(sandbox: str, range_start: int) -> Sandbox:
    spec = SandboxSpec(image="i", image_name="i")
    return Sandbox(id=sandbox, state=SandboxState.RUNNING, spec=spec, created_at=0.0, range_start=range_start)


def test_ranges_do_not_overlap_and_stay_inside_the_block() -> None:
    ranges = IdRanges(FIRST, COUNT)
    taken = [ranges.reserve(f"s{n}").start for n in range(COUNT)]
    assert sorted(taken) == [FIRST + n * IDS_PER_RANGE for n in range(COUNT)]


async def test_when_all_are_taken_the_answer_is_clear_and_one_given_back_is_enough() -> None:
    ranges = IdRanges(FIRST, 2)
    one, _ = ranges.reserve("one"), ranges.reserve("two")
    with pytest.raises(Unavailable, match=r"^cannot create the sandbox: no free id range"):
        ranges.reserve("three")
    await ranges.release("one")
    assert ranges.reserve("three") == one


def test_who_has_a_range_keeps_it() -> None:
    ranges = IdRanges(FIRST, COUNT)
    assert ranges.reserve("one") == ranges.reserve("one") != ranges.reserve("two")


async def test_a_range_of_a_block_that_we_had_before_is_nobodys_when_it_is_given_back() -> None:
    ranges = IdRanges(FIRST, 1)
    await ranges.claim(record("old", FIRST - IDS_PER_RANGE))
    assert ranges.reserve("old").start == FIRST - IDS_PER_RANGE
    await ranges.release("old")
    assert ranges.reserve("new").start == FIRST


class AnyOrder(RuleBasedStateMachine):
    """Taking, giving back and claiming in any order, against a dictionary."""

    @initialize(claimed=st.sets(st.integers(0, COUNT - 1)))
    def begin(self, claimed: set[int]) -> None:
        self.ranges = IdRanges(FIRST, COUNT)
        self.taken = {f"old{n}": FIRST + n * IDS_PER_RANGE for n in claimed}
        self.named = 0
        for sandbox, start in self.taken.items():
            trio.run(self.ranges.claim, record(sandbox, start))

    @rule()
    def take(self) -> None:
        self.named += 1
        if len(self.taken) == COUNT:
            with pytest.raises(Unavailable):
                self.ranges.reserve(f"new{self.named}")
        else:
            start = self.ranges.reserve(f"new{self.named}").start
            assert start not in self.taken.values()
            self.taken[f"new{self.named}"] = start

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        sandbox = data.draw(st.sampled_from(sorted(self.taken)))
        trio.run(self.ranges.release, sandbox)
        del self.taken[sandbox]

    @rule()
    def give_back_what_is_not_taken(self) -> None:
        trio.run(self.ranges.release, "nobody")

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.ranges.taken() == set(self.taken.values())


TestAnyOrder = AnyOrder.TestCase


async def test_without_root_all_share_one() -> None:
    ranges = SharedRange(1)
    assert {ranges.reserve(f"s{n}").start for n in range(5)} == {1}
    await ranges.release("s0")
    assert ranges.reserve("s6").start == 1


# -- blocks of daemons --------------------------------------------------------------------------------------------

BLOCKS_FROM = 0x30000000
"""where no daemon of this machine has its own"""
IDS_PER_BLOCK = 16 * IDS_PER_RANGE


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges_module, "IDS_PER_BLOCK", IDS_PER_BLOCK)


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    return tmp_path / "registry"


def state(tmp_path: Path, number: int) -> Path:
    directory = tmp_path / f"state-{number}"
    directory.mkdir(exist_ok=True)
    return directory


def test_two_state_directories_get_two_blocks_and_keep_them(tmp_path: Path, registry: Path) -> None:
    one, two = state(tmp_path, 1), state(tmp_path, 2)
    with claim_block(one, BLOCKS_FROM, registry) as first, claim_block(two, BLOCKS_FROM, registry) as second:
        assert {first, second} == {BLOCKS_FROM, BLOCKS_FROM + IDS_PER_BLOCK}
    with claim_block(two, BLOCKS_FROM, registry) as again:
        assert again == second
    with claim_block(one, BLOCKS_FROM, registry) as again:
        assert again == first


def test_one_directory_by_two_names_is_one(tmp_path: Path, registry: Path) -> None:
    one = state(tmp_path, 1)
    (tmp_path / "link").symlink_to(one)
    with claim_block(one, BLOCKS_FROM, registry) as first:
        pass
    with claim_block(tmp_path / "link", BLOCKS_FROM, registry) as again:
        assert again == first


def test_the_block_of_a_directory_that_is_gone_is_free(tmp_path: Path, registry: Path) -> None:
    one = state(tmp_path, 1)
    with claim_block(one, BLOCKS_FROM, registry) as first:
        pass
    one.rmdir()
    with claim_block(state(tmp_path, 2), BLOCKS_FROM, registry) as second:
        assert second == first


def test_when_all_daemons_run_the_answer_names_them_and_the_registry(tmp_path: Path, registry: Path) -> None:
    with contextlib.ExitStack() as running:
        for number in range(BLOCKS):
            running.enter_context(claim_block(state(tmp_path, number), BLOCKS_FROM, registry))
        with pytest.raises(StartupError, match=str(registry)) as refused:
            running.enter_context(claim_block(state(tmp_path, BLOCKS), BLOCKS_FROM, registry))
    assert str(state(tmp_path, 7)) in str(refused.value)
    assert Config.model_fields["range_first"].default + BLOCKS * FULL_BLOCK <= 1 << 32


def test_a_block_whose_daemon_is_gone_is_taken_back_and_those_that_are_held_are_not(
    tmp_path: Path, registry: Path
) -> None:
    with contextlib.ExitStack() as running:
        blocks = [
            running.enter_context(claim_block(state(tmp_path, n), BLOCKS_FROM, registry)) for n in range(BLOCKS - 1)
        ]
        with claim_block(state(tmp_path, BLOCKS - 1), BLOCKS_FROM, registry) as left:
            pass  # its directory stays, and nothing lives in it
        with claim_block(state(tmp_path, BLOCKS), BLOCKS_FROM, registry) as taken:
            assert taken == left
            assert taken not in blocks
            # Whose block it was gets none: there is no other.
            with pytest.raises(StartupError), claim_block(state(tmp_path, BLOCKS - 1), BLOCKS_FROM, registry):
                pass


@pytest.mark.needs_root
def test_a_block_in_which_a_process_lives_is_not_taken_back(tmp_path: Path, registry: Path) -> None:
    """Whatever the registry says: the file of a block may be lost, its state directory removed under sandboxes."""
    resident = BLOCKS_FROM + 5 * IDS_PER_BLOCK + 3 * IDS_PER_RANGE + 1000
    with subprocess.Popen(["sleep", "600"], user=resident, group=resident) as process:
        try:
            with contextlib.ExitStack() as running:
                blocks = [
                    running.enter_context(claim_block(state(tmp_path, number), BLOCKS_FROM, registry))
                    for number in range(BLOCKS - 1)
                ]
                assert BLOCKS_FROM + 5 * IDS_PER_BLOCK not in blocks
                with pytest.raises(StartupError):
                    running.enter_context(claim_block(state(tmp_path, BLOCKS), BLOCKS_FROM, registry))
        finally:
            process.kill()


def test_daemons_that_start_at_once_do_not_meet(tmp_path: Path, registry: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from sandboxd.service.sandboxes.ranges import claim_block\n"
        "with claim_block(Path(sys.argv[1]), 0x30000000, Path(sys.argv[2])) as first:\n"
        "    print(first, flush=True); sys.stdin.read()"
    )
    claimants = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(state(tmp_path, number)), str(registry)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=CHECKOUT,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        )
        for number in range(4)
    ]
    blocks = [claimant.stdout.readline() for claimant in claimants if claimant.stdout is not None]
    for claimant in claimants:
        claimant.communicate(timeout=60)
    assert len(set(blocks)) == 4
