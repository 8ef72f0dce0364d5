"""A reader of the classic BPF that seccomp runs, so that tests can ask a filter about any call without making it."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from sandboxd.kernel import classic_bpf as bpf

_INSTRUCTION = struct.Struct("=HBBI")


def refused(errno: int) -> int:
    return bpf.RET_ERRNO | errno


@dataclass(frozen=True, slots=True)
class Call:
    """struct seccomp_data: a system call as the filter sees it."""

    number: int
    arguments: Sequence[int] = ()
    architecture: int = 0xC000003E

    def encode(self) -> bytes:
        words = [*self.arguments, *[0] * (6 - len(self.arguments))]
        return struct.pack("=IIQ6Q", self.number & 0xFFFFFFFF, self.architecture, 0, *words)


def answer(program: bytes, call: Call) -> int:
    """What the filter returns for the call."""
    instructions = list(_INSTRUCTION.iter_unpack(program))
    data = call.encode()
    accumulator = at = 0
    while True:
        code, if_true, if_false, constant = instructions[at]
        at += 1
        if code == bpf.RETURN:
            return constant
        if code == bpf.LOAD:
            (accumulator,) = struct.unpack_from("=I", data, constant)
        elif code == bpf.AND:
            accumulator &= constant
        elif code == bpf.JUMP:
            at += constant
        else:
            at += if_true if _holds(code, accumulator, constant) else if_false


def _holds(code: int, accumulator: int, constant: int) -> bool:
    if code == bpf.JUMP_EQUAL:
        return accumulator == constant
    if code == bpf.JUMP_GREATER:
        return accumulator > constant
    if code == bpf.JUMP_GREATER_EQUAL:
        return accumulator >= constant
    raise ValueError(f"cannot interpret BPF instruction {code:#x}")
