"""Seccomp filters as classic BPF: from "what each system call number gets" to the program the kernel runs.

Why not libseccomp: 2.5.4 (Debian 12) compiles some sets of rules wrongly once one call has several with comparisons
of order, and a filter that is wrong is worse than none. What is needed is small. A filter is a table of intervals of
numbers, each with a block: rules tried in order, then a final action. The program finds the interval by binary
search, so most calls cost some ten instructions, and blocks that are alike share one interval.

Classic BPF jumps forward only, by at most 255 for a conditional jump; code is therefore composed from the end, where
every distance is already known. The data is struct seccomp_data (linux/seccomp.h), read as on little-endian machines.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
JUMP: Final = 0x05  # BPF_JMP | BPF_JA
JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
JUMP_GREATER: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
JUMP_GREATER_EQUAL: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
RETURN: Final = 0x06  # BPF_RET | BPF_K

MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS

RET_KILL_PROCESS: Final = 0x80000000
RET_KILL_THREAD: Final = 0x00000000
RET_TRAP: Final = 0x00030000
RET_ERRNO: Final = 0x00050000
RET_LOG: Final = 0x7FFC0000
RET_ALLOW: Final = 0x7FFF0000

_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jump if true, jump if false, constant
_LONGEST_CONDITIONAL_JUMP = 255

Instruction = tuple[int, int, int, int]
Operator = Literal["EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Holds if argument `index` (0 to 5), as 64 unsigned bits, compares so; MASKED_EQ: argument & mask == value."""

    index: int
    operator: Operator
    value: int
    mask: int = 0xFFFFFFFF_FFFFFFFF


@dataclass(frozen=True, slots=True)
class Rule:
    """The action, if all comparisons hold."""

    comparisons: tuple[Comparison, ...]
    action: int


@dataclass(frozen=True, slots=True)
class Block:
    """What one call gets: the action of the first rule that applies, or else the final one."""

    final: int
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Interval:
    """Numbers from `first` up to the next interval's."""

    first: int
    block: Block


def assemble(intervals: Sequence[Interval], *, architecture: int) -> bytes:
    """The program. Calls of any architecture but this AUDIT_ARCH_* end the process.

    The intervals are in rising order and begin at 0. Raises ValueError for more than the kernel takes.
    """
    code = [
        (LOAD, 0, 0, _ARCHITECTURE),
        (JUMP_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, RET_KILL_PROCESS),
        (LOAD, 0, 0, _NUMBER),
        *_search(_merged(intervals)),
    ]
    if len(code) > MAX_INSTRUCTIONS:
        raise ValueError(f"the filter has {len(code)} instructions, and the kernel takes {MAX_INSTRUCTIONS}")
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


def _merged(intervals: Sequence[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for interval in intervals:
        if not merged or merged[-1].block != interval.block:
            merged.append(interval)
    return merged


def _search(intervals: Sequence[Interval]) -> list[Instruction]:
    if len(intervals) == 1:
        return _block(intervals[0].block)
    middle = len(intervals) // 2
    below = _search(intervals[:middle])
    above = _search(intervals[middle:])
    return [*_branch(intervals[middle].first, over=len(below)), *below, *above]


def _branch(number: int, *, over: int) -> list[Instruction]:
    """Skip the next `over` instructions if the loaded word is at least `number`."""
    if over <= _LONGEST_CONDITIONAL_JUMP:
        return [(JUMP_GREATER_EQUAL, over, 0, number)]
    return [(JUMP_GREATER_EQUAL, 0, 1, number), (JUMP, 0, 0, over)]


def _block(block: Block) -> list[Instruction]:
    code: list[Instruction] = [(RETURN, 0, 0, block.final)]
    for rule in reversed(block.rules):
        code = _rule(rule) + code
    return code


def _rule(rule: Rule) -> list[Instruction]:
    """Code that returns the action, or comes out at its end."""
    code: list[Instruction] = [(RETURN, 0, 0, rule.action)]
    for comparison in reversed(rule.comparisons):
        code = _comparison(comparison, fail=len(code)) + code
    return code


def _comparison(comparison: Comparison, *, fail: int) -> list[Instruction]:
    """Code that comes out at its end if the comparison holds, and `fail` instructions beyond its end if not.

    The kernel compares 32 bits at a time: the upper half first, and the lower only where the upper leaves it open.
    """
    # "not greater or equal" instead of "less", and so on: the same code with its two ways out exchanged.
    operator, holds, fails = comparison.operator, 0, fail
    if operator in _OPPOSITE:
        operator, holds, fails = _OPPOSITE[operator], fail, 0
    upper, lower = divmod(comparison.value, 1 << 32)
    upper_at = _ARGUMENTS + 8 * comparison.index + 4
    lower_at = upper_at - 4
    if operator == "MASKED_EQ":
        upper_mask, lower_mask = divmod(comparison.mask, 1 << 32)
        return [
            (LOAD, 0, 0, upper_at),
            (AND, 0, 0, upper_mask),
            (JUMP_EQUAL, 0, 3 + fails, upper),
            (LOAD, 0, 0, lower_at),
            (AND, 0, 0, lower_mask),
            (JUMP_EQUAL, holds, fails, lower),
        ]
    if operator == "EQ":
        return [
            (LOAD, 0, 0, upper_at),
            (JUMP_EQUAL, 0, 2 + fails, upper),
            (LOAD, 0, 0, lower_at),
            (JUMP_EQUAL, holds, fails, lower),
        ]
    return [
        (LOAD, 0, 0, upper_at),
        (JUMP_GREATER, 3 + holds, 0, upper),
        (JUMP_EQUAL, 0, 2 + fails, upper),
        (LOAD, 0, 0, lower_at),
        (JUMP_GREATER if operator == "GT" else JUMP_GREATER_EQUAL, holds, fails, lower),
    ]


_OPPOSITE: Final[dict[Operator, Operator]] = {"NE": "EQ", "LT": "GE", "LE": "GT"}
