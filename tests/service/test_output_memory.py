"""What is kept of output, and how the memory for it is shared out."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import TooManyRequests, Unavailable
from sandboxd.service.output_memory import STEP, KeptOutput, OutputMemory

KIB = 1024


def kept(written: list[bytes], limit: int, memory: OutputMemory | None = None) -> KeptOutput:
    output = KeptOutput((memory or OutputMemory(1 << 20)).share(None), limit)
    for each in written:
        output.add(each)
    return output


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(0, 60))
def test_beginning_and_end_are_kept(written: list[bytes], limit: int) -> None:
    output, whole = kept(written, limit), b"".join(written)
    beginning, end = (b"".join(part) for part in output.parts())
    assert output.total == len(whole)
    assert output.omitted == max(0, len(whole) - limit)
    if output.omitted:
        assert (len(beginning), len(end)) == (limit // 2, limit - limit // 2)
        assert whole.startswith(beginning)
        assert whole.endswith(end)
    else:
        assert (beginning, end) == (whole, b"")
    assert base64.b64decode("".join(output.base64())) == beginning + end
    assert output.head == len(beginning)


def test_text_says_what_was_left_out_and_breaks_no_character() -> None:
    assert "".join(kept(["é".encode() * 100_000], 1 << 19).text()) == "é" * 100_000
    assert "".join(kept([b"0123456789"], 4).text()) == "01\n[6 bytes left out]\n89"
    assert "".join(kept(["éééé".encode()], 6).text()) == "é\ufffd\n[2 bytes left out]\n\ufffdé"


def test_a_share_grows_and_is_given_back_with_what_is_in_it() -> None:
    memory = OutputMemory(64 * KIB)
    output: Any = kept([b"x" * 20 * KIB], 60 * KIB, memory)
    assert memory.used == 32 * KIB
    del output
    assert memory.used == 0


def test_output_that_finds_no_room_is_left_out_and_the_reason_is_known() -> None:
    memory = OutputMemory(64 * KIB)
    first = kept([b"x" * 30 * KIB], 60 * KIB, memory)
    second = kept([b"abcd" * 10 * KIB], 60 * KIB, memory)
    assert (first.omitted, first.starved) == (0, False)
    assert (second.omitted, second.starved) == (8 * KIB, True)
    assert memory.used == 64 * KIB
    with pytest.raises(Unavailable, match="output_memory"):
        memory.share(None)


def test_one_key_has_half() -> None:
    memory = OutputMemory(8 * STEP)
    shares = [memory.share("one") for _ in range(4)]
    with pytest.raises(TooManyRequests, match="this key"):
        memory.share("one")
    other = memory.share("other")
    shares[0].give_back()
    shares[0].give_back()
    assert memory.used == 4 * STEP
    assert other.cover(2 * STEP)
    memory.share("one")
