"""System call profiles: OCI JSON in, a classic BPF program for bwrap out.

Rules of a profile may overlap, and the OCI text leaves open which of them then counts. Here the order in the file
means nothing; these four steps do:

    1. refusals with arguments      ioctl(…, TIOCSTI) is refused although ioctl is let in
    2. permissions                  socket(AF_UNIX, …), read
    3. refusals without arguments   every socket that step 2 did not let in gets EAFNOSUPPORT
    4. the default action

libseccomp compiles one step at a time; it cannot hold two of them in one filter, since there a rule without
arguments displaces those with arguments. The programs are then chained into one: what a step leaves undecided
becomes a jump to the next.

Whatever does not come through the kernel's own 64-bit interface ends the process: i386 calls (int 0x80) and, on
x86-64, the x32 numbers. Both would otherwise walk around every rule.
"""

import fcntl
import logging
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from sandboxd.errors import StartupError

log = logging.getLogger(__name__)

ActionName = Literal[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_LOG",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRAP",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_KILL_PROCESS",
]
OperatorName = Literal[
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
]
ArchitectureName = Literal["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"]
Errno = Annotated[int, Field(ge=1, le=4095)]
Unsigned64 = Annotated[int, Field(ge=0, lt=1 << 64)]

UNDECIDED: Final = 0x7FF0FFFE  # SCMP_ACT_TRACE(0xfffe): an action that no profile can name
EPERM: Final = 1  # what SCMP_ACT_ERRNO means without errnoRet, as in runc

# Calls that Debian 12's libseccomp may not know by name. A call added since Linux 5.1 has the same number on every
# architecture (include/uapi/asm-generic/unistd.h).
YOUNG_SYSCALLS: Final = {
    "cachestat": 451,
    "fchmodat2": 452,
    "map_shadow_stack": 453,
    "futex_wake": 454,
    "futex_wait": 455,
    "futex_requeue": 456,
    "statmount": 457,
    "listmount": 458,
    "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
    "mseal": 462,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_getattr": 468,
    "file_setattr": 469,
}

_INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter: code, jump if true, jump if false, constant
_UNKNOWN: Final = -1  # __NR_SCMP_ERROR
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_JUMP: Final = 0x05  # BPF_JMP | BPF_JA
_MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS of the kernel
# libseccomp's SCMP_FLTATR_CTL_OPTIMIZE: a binary tree over the numbers. The kernel runs the filter for every number
# when it is loaded, to cache the answers; with a flat list that costs a sandbox's start a millisecond.
_BINARY_TREE: Final = 2
_ALL_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class _Part(BaseModel):
    # Unknown keys are refused: a rule that is not understood must not become a rule that is not there.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, alias_generator=to_camel)


class Argument(_Part):
    """A comparison of one argument. For MASKED_EQ, as everywhere in OCI: argument & value == value_two."""

    index: Annotated[int, Field(ge=0, le=5)]
    value: Unsigned64
    value_two: Unsigned64 = 0
    op: OperatorName


class Rule(_Part):
    names: tuple[str, ...] = Field(min_length=1)
    action: ActionName
    errno_ret: Errno | None = None
    args: tuple[Argument, ...] = ()
    comment: str = ""

    @property
    def permits(self) -> bool:
        return self.action in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG")

    @model_validator(mode="after")
    def _can_be_compiled(self) -> "Rule":
        _check_errno(self.action, self.errno_ret)
        if len({argument.index for argument in self.args}) < len(self.args):
            raise ValueError("a rule can compare an argument only once; for 'or', write two rules")
        return self


class Profile(_Part):
    """The fields of an OCI `linux.seccomp` object that need neither a supervisor nor a container engine."""

    comment: str = ""
    default_action: ActionName
    default_errno_ret: Errno | None = None
    architectures: tuple[ArchitectureName, ...] = Field(min_length=1)
    syscalls: tuple[Rule, ...] = ()

    @model_validator(mode="after")
    def _can_be_compiled(self) -> "Profile":
        _check_errno(self.default_action, self.default_errno_ret)
        return self


def _check_errno(action: ActionName, errno: int | None) -> None:
    if errno is not None and action != "SCMP_ACT_ERRNO":
        raise ValueError(f"an errno goes with SCMP_ACT_ERRNO, not with {action}")


def compile_profile(path: Path) -> bytes:
    """The classic BPF program of the profile at `path`, for this machine's architecture.

    It takes some milliseconds: compile once, keep the bytes. Names of calls that this architecture lacks are
    passed over, and with a note in the log those that are not known here at all: the default action answers both.
    Raises StartupError for a profile that cannot be read, understood or compiled.
    """
    profile = read_profile(path)
    seccomp = _load_libseccomp()
    try:
        _check_architecture(profile, seccomp)
        return _chain(_steps(profile, _Compiler(seccomp)))
    except (ValueError, OSError) as error:
        raise _unusable(path, str(error)) from error


def profile_descriptor(program: bytes) -> int:
    """The program in a sealed memory file, positioned at its start; the caller closes it.

    Each sandbox needs one of its own: bwrap reads the descriptor to the end, and a duplicate shares the position.
    """
    descriptor = os.memfd_create("seccomp", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.pwrite(descriptor, program, 0)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _ALL_SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_profile(path: Path) -> Profile:
    try:
        return Profile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise _unusable(path, f"{place}: {first['msg']}") from error


def _unusable(path: Path, reason: str) -> StartupError:
    return StartupError(f"cannot use the system call profile {path}: {reason}", kind="seccomp_profile")


def _load_libseccomp() -> ModuleType:
    # Imported late because the module looks for the shared library at import, and raises RuntimeError without it.
    try:
        import pyseccomp
    except RuntimeError as error:
        raise StartupError("cannot load libseccomp: install the package libseccomp2", kind="libseccomp") from error
    module: ModuleType = pyseccomp
    return module


def _check_architecture(profile: Profile, seccomp: ModuleType) -> None:
    """Only the native architecture is ever let in; a profile says for which ones its rules were written."""
    tokens = [getattr(seccomp.Arch, name.removeprefix("SCMP_ARCH_")) for name in profile.architectures]
    if seccomp.system_arch() not in tokens:
        raise ValueError(f"it is for {', '.join(profile.architectures)}, which this machine is not")


def _steps(profile: Profile, compiler: "_Compiler") -> Iterable[bytes]:
    """The programs of steps 1, 2 and 3 with 4, in this order."""
    permissions = [rule for rule in profile.syscalls if rule.permits]
    refusals = [rule for rule in profile.syscalls if not rule.permits]
    yield compiler.compile([rule for rule in refusals if rule.args], default=UNDECIDED)
    yield compiler.compile(permissions, default=UNDECIDED)
    last = compiler.action(profile.default_action, profile.default_errno_ret)
    yield compiler.compile([rule for rule in refusals if not rule.args], default=last)


class _Compiler:
    """libseccomp, one filter at a time."""

    def __init__(self, seccomp: ModuleType) -> None:
        self._seccomp = seccomp

    def action(self, name: ActionName, errno: int | None) -> int:
        if name == "SCMP_ACT_ERRNO":
            return int(self._seccomp.ERRNO(errno or EPERM))
        return int(getattr(self._seccomp, name.removeprefix("SCMP_ACT_")))

    def compile(self, rules: Sequence[Rule], *, default: int) -> bytes:
        syscall_filter = self._seccomp.SyscallFilter(default)
        syscall_filter.set_attr(self._seccomp.Attr.ACT_BADARCH, self._seccomp.KILL_PROCESS)
        syscall_filter.set_attr(self._seccomp.Attr.CTL_OPTIMIZE, _BINARY_TREE)
        for rule in rules:
            action = self.action(rule.action, rule.errno_ret)
            if action == default:
                continue  # libseccomp refuses to be told what it does anyway
            arguments = [self._argument(argument) for argument in rule.args]
            for number in self._numbers(rule.names):
                syscall_filter.add_rule(action, number, *arguments)
        return _export(syscall_filter)

    def _argument(self, argument: Argument) -> Any:
        operator = getattr(self._seccomp, argument.op.removeprefix("SCMP_CMP_"))
        return self._seccomp.Arg(argument.index, operator, argument.value, argument.value_two)

    def _numbers(self, names: Iterable[str]) -> Iterable[int]:
        for name in names:
            number = self._seccomp.resolve_syscall(self._seccomp.Arch.NATIVE, name)
            if number == _UNKNOWN:
                number = YOUNG_SYSCALLS.get(name, _UNKNOWN)
            if number == _UNKNOWN:
                log.warning("system call %s is not known here: the profile's default action answers it", name)
            if number >= 0:  # other negative numbers: a call that only other architectures have
                yield number


def _export(syscall_filter: Any) -> bytes:
    with os.fdopen(os.memfd_create("seccomp-export", os.MFD_CLOEXEC), "rb") as file:
        syscall_filter.export_bpf(file)
        file.seek(0)
        return file.read()


def _chain(steps: Iterable[bytes]) -> bytes:
    """One program of several: where a step returns UNDECIDED it now jumps to the first instruction of the next.

    A jump reaches forward only and steps keep nothing in scratch memory, so each starts as if it were alone.
    """
    program: list[tuple[int, int, int, int]] = []
    for step in steps:
        for at, instruction in enumerate(program):
            if instruction == (_RETURN, 0, 0, UNDECIDED):
                program[at] = (_JUMP, 0, 0, len(program) - at - 1)
        program += _INSTRUCTION.iter_unpack(step)
    if len(program) > _MAX_INSTRUCTIONS:
        raise ValueError(f"it compiles to {len(program)} instructions; the kernel takes {_MAX_INSTRUCTIONS}")
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
