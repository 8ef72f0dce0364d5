"""System call profiles: OCI JSON in, a classic BPF program for bwrap out.

Rules of a profile may overlap, and the OCI text leaves open which of them then counts. Here the order in the file
means nothing; these four steps do, for each call:

    1. refusals with arguments      ioctl(…, TIOCSTI) is refused although ioctl is let in
    2. permissions                  socket(AF_UNIX, …), read
    3. refusals without arguments   every socket that step 2 did not let in gets EAFNOSUPPORT
    4. the default action

Of two that apply in one step, the stricter counts, as between two filters in the kernel.

Whatever does not come through the kernel's own 64-bit interface ends the process: i386 calls (int 0x80) and, on
x86-64, the x32 numbers. Both would otherwise walk around every rule.
"""

import fcntl
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from sandboxd.errors import StartupError
from sandboxd.kernel import classic_bpf as bpf

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
Errno = Annotated[int, Field(ge=0, le=4095)]  # 0: the call does nothing and succeeds
Unsigned64 = Annotated[int, Field(ge=0, lt=1 << 64)]

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

_UNKNOWN: Final = -1  # __NR_SCMP_ERROR
_ALL_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

_AUDIT_ARCHITECTURES: Final = {"SCMP_ARCH_X86_64": 0xC000003E, "SCMP_ARCH_AARCH64": 0xC00000B7}
# x86-64 has a second set of numbers for x32 programs. 0xffffffff is what a tracer sets for "skip this call".
_X32_NUMBERS: Final = 0x40000000
_SKIPPED_CALL: Final = 0xFFFFFFFF

_OPERATORS: Final[dict[str, bpf.Operator]] = {
    "SCMP_CMP_NE": "NE",
    "SCMP_CMP_LT": "LT",
    "SCMP_CMP_LE": "LE",
    "SCMP_CMP_EQ": "EQ",
    "SCMP_CMP_GE": "GE",
    "SCMP_CMP_GT": "GT",
}
_ACTIONS: Final[dict[str, int]] = {
    "SCMP_ACT_ALLOW": bpf.RET_ALLOW,
    "SCMP_ACT_LOG": bpf.RET_LOG,
    "SCMP_ACT_TRAP": bpf.RET_TRAP,
    "SCMP_ACT_KILL": bpf.RET_KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": bpf.RET_KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": bpf.RET_KILL_PROCESS,
}


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
    try:
        architecture = _native_architecture(profile)
        return bpf.assemble(list(_intervals(profile, architecture)), architecture=architecture)
    except ValueError as error:
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


def _libseccomp() -> ModuleType:
    # Imported late because the module looks for the shared library at import, and raises RuntimeError without it.
    try:
        import pyseccomp
    except RuntimeError as error:
        raise StartupError("cannot load libseccomp: install the package libseccomp2", kind="libseccomp") from error
    module: ModuleType = pyseccomp
    return module


def _native_architecture(profile: Profile) -> int:
    """The only architecture that is let in. A profile names those for which its rules were written."""
    native: int = _libseccomp().system_arch()
    if native not in (_AUDIT_ARCHITECTURES[name] for name in profile.architectures):
        raise ValueError(f"it is for {', '.join(profile.architectures)}, and this machine is neither")
    return native


def _intervals(profile: Profile, architecture: int) -> Iterator[bpf.Interval]:
    """Every system call number with what it gets, in rising order."""
    default = bpf.Block(_action(profile.default_action, profile.default_errno_ret))
    blocks = {
        number: _block(rules, default)
        for name, rules in _by_name(profile).items()
        if (number := _number(name)) is not None
    }
    if architecture == _AUDIT_ARCHITECTURES["SCMP_ARCH_X86_64"]:
        blocks |= {_X32_NUMBERS: bpf.Block(bpf.RET_KILL_PROCESS), _SKIPPED_CALL: default}
    yield bpf.Interval(0, default)
    for number in sorted(blocks):
        yield bpf.Interval(number, blocks[number])
        if number + 1 not in blocks and number < _X32_NUMBERS:
            yield bpf.Interval(number + 1, default)


def _by_name(profile: Profile) -> dict[str, list[Rule]]:
    by_name: dict[str, list[Rule]] = {}
    for rule in profile.syscalls:
        for name in rule.names:
            by_name.setdefault(name, []).append(rule)
    return by_name


def _number(name: str) -> int | None:
    seccomp = _libseccomp()
    number: int = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
    if number == _UNKNOWN:
        number = YOUNG_SYSCALLS.get(name, _UNKNOWN)
    if number == _UNKNOWN:
        log.warning("system call %s is not known here: the profile's default action answers it", name)
    return number if number >= 0 else None  # other negative numbers stand for calls that other architectures have


def _block(rules: Iterable[Rule], default: bpf.Block) -> bpf.Block:
    """One call's rules in the order of the four steps, up to the first that needs no arguments."""
    conditional: list[bpf.Rule] = []
    for rule in sorted(rules, key=_precedence):
        action = _action(rule.action, rule.errno_ret)
        if not rule.args:
            return bpf.Block(action, tuple(conditional))
        conditional.append(bpf.Rule(tuple(_comparison(argument) for argument in rule.args), action))
    return bpf.Block(default.final, tuple(conditional))


def _precedence(rule: Rule) -> tuple[int, int]:
    step = 2 if rule.permits else 1 if rule.args else 3
    action = _action(rule.action, rule.errno_ret)
    strictness = action - (1 << 32) if action >> 31 else action  # the kernel compares actions as signed numbers
    return step, strictness


def _action(name: ActionName, errno: int | None) -> int:
    return bpf.RET_ERRNO | (EPERM if errno is None else errno) if name == "SCMP_ACT_ERRNO" else _ACTIONS[name]


def _comparison(argument: Argument) -> bpf.Comparison:
    if argument.op == "SCMP_CMP_MASKED_EQ":
        return bpf.Comparison(argument.index, "MASKED_EQ", argument.value_two, argument.value)
    return bpf.Comparison(argument.index, _OPERATORS[argument.op], argument.value)
