"""The default profile call by call, the compiler against a model of its four steps, and both in the kernel."""

import errno
import fcntl
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyseccomp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import StartupError
from sandboxd.isolation.bwrap import seccomp
from sandboxd.isolation.bwrap.seccomp import Argument, Rule, compile_profile, profile_descriptor, read_profile
from sandboxd.kernel.classic_bpf import RET_ALLOW as ALLOW
from sandboxd.kernel.classic_bpf import RET_KILL_PROCESS as KILL_PROCESS
from tests.kernel.bpf_reader import Call, answer, refused

DEFAULT = Path(__file__).parents[2] / "seccomp" / "default.json"
MACHINES = {pyseccomp.Arch.X86_64: "SCMP_ARCH_X86_64", pyseccomp.Arch.AARCH64: "SCMP_ARCH_AARCH64"}
NATIVE = pyseccomp.system_arch()
I386 = 0x40000003
X32_BIT = 0x40000000

on_x86_64 = pytest.mark.skipif(pyseccomp.Arch.X86_64 != NATIVE, reason="x86-64 only")


@pytest.fixture(scope="module")
def program() -> bytes:
    return compile_profile(DEFAULT)


def number(name: str) -> int:
    resolved = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    return seccomp.YOUNG_SYSCALLS[name] if resolved == -1 else resolved


def ask(program: bytes, name: str, *arguments: int) -> int:
    return answer(program, Call(number(name), arguments, NATIVE))


def profile(**fields: Any) -> dict[str, Any]:
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": [MACHINES[NATIVE]],
        "syscalls": [],
    } | fields


def compiled(tmp_path: Path, **fields: Any) -> bytes:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile(**fields)))
    return compile_profile(path)


def rule(action: str, *names: str, **fields: Any) -> dict[str, Any]:
    return {"names": list(names), "action": f"SCMP_ACT_{action}", **fields}


# -- the default profile ------------------------------------------------------------------------------------------


def known_syscalls() -> set[str]:
    """Every call that libseccomp or our own table can name, on the architectures the profile is for."""
    names = set(seccomp.YOUNG_SYSCALLS)
    for architecture in MACHINES:
        for candidate in range(500):
            try:
                names.add(pyseccomp.resolve_syscall(architecture, candidate).decode())
            except ValueError:
                continue
    return names


def test_every_known_call_is_considered_exactly_once():
    """Rules with arguments may be besides, but each call has one verdict without: none is forgotten, none has two."""
    with_arguments, without = set(), []
    for entry in read_profile(DEFAULT).syscalls:
        if entry.args:
            with_arguments.update(entry.names)
        else:
            without.extend(entry.names)
    assert len(without) == len(set(without))
    assert set(without) == known_syscalls()
    assert with_arguments <= set(without)


def test_every_group_gives_its_reason():
    assert [entry.names for entry in read_profile(DEFAULT).syscalls if len(entry.comment) < 15] == []


@pytest.mark.parametrize(
    "name", ["read", "openat", "execve", "ptrace", "fchmodat2", "mseal", "landlock_add_rule", "ioctl"]
)
def test_ordinary_calls_pass(program: bytes, name: str):
    assert ask(program, name) == ALLOW


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, errno.ENOSYS) for name in ("io_uring_setup", "io_uring_enter", "io_uring_register")),
        *((name, errno.ENOSYS) for name in ("keyctl", "add_key", "request_key", "userfaultfd", "clone3")),
        *((name, errno.ENOSYS) for name in ("process_vm_readv", "pidfd_getfd", "kcmp", "mbind", "fanotify_init")),
        *((name, errno.ENOSYS) for name in ("memfd_secret", "statmount", "modify_ldt", "lookup_dcookie")),
        *(
            (name, errno.EPERM)
            for name in ("mount", "umount2", "pivot_root", "fsopen", "move_mount", "mount_setattr")
        ),
        *(
            (name, errno.EPERM)
            for name in ("open_tree", "open_tree_attr", "unshare", "setns", "bpf", "perf_event_open")
        ),
        *(
            (name, errno.EPERM)
            for name in ("open_by_handle_at", "name_to_handle_at", "kexec_load", "kexec_file_load")
        ),
        *(
            (name, errno.EPERM)
            for name in ("init_module", "finit_module", "delete_module", "reboot", "swapon", "acct")
        ),
        *((name, errno.EPERM) for name in ("settimeofday", "clock_settime", "quotactl", "syslog", "vhangup", "iopl")),
    ],
)
def test_dangerous_calls_are_refused(program: bytes, name: str, expected: int):
    if number(name) >= 0:
        assert ask(program, name) == refused(expected)


@pytest.mark.parametrize("unheard_of", [470, 512, 999, 0x3FFFFFFF])
def test_a_call_from_the_future_looks_unimplemented(program: bytes, unheard_of: int):
    assert answer(program, Call(unheard_of, (), NATIVE)) == refused(errno.ENOSYS)


@on_x86_64
@pytest.mark.parametrize("call", [Call(20, (), I386), Call(39 | X32_BIT), Call(512 | X32_BIT)])
def test_other_interfaces_of_the_kernel_end_the_process(program: bytes, call: Call):
    assert answer(program, call) == KILL_PROCESS


NAMESPACES = {
    "NEWNS": 0x20000,
    "NEWCGROUP": 0x2000000,
    "NEWUTS": 0x4000000,
    "NEWIPC": 0x8000000,
    "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
}
FORK = 0x01200011  # CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD, as glibc forks
THREAD = 0x003D0F00  # as pthread_create clones


@pytest.mark.parametrize("flags", [FORK, THREAD, 17, 0x4111], ids=hex)
def test_clone_makes_processes_and_threads(program: bytes, flags: int):
    assert ask(program, "clone", flags) == ALLOW


@pytest.mark.parametrize("flag", NAMESPACES.values(), ids=NAMESPACES)
@pytest.mark.parametrize("base", [0, FORK, 1 << 40], ids=hex)
def test_clone_makes_no_namespace(program: bytes, flag: int, base: int):
    assert ask(program, "clone", base | flag) == refused(errno.EPERM)


@pytest.mark.parametrize(
    "request_number", [0x5412, 0x541C, 0x541D, 0x5423], ids=["TIOCSTI", "TIOCLINUX", "TIOCCONS", "TIOCSETD"]
)
@pytest.mark.parametrize("above", [0, 1, 0xFFFFFFFF, 0x80000000])
def test_terminal_injection_is_refused_whatever_the_upper_bits(program: bytes, request_number: int, above: int):
    """The kernel cuts the request to 32 bits; a filter that compares 64 lets these through (CVE-2019-7303)."""
    assert ask(program, "ioctl", 0, above << 32 | request_number) == refused(errno.EPERM)


@pytest.mark.parametrize("request_number", [0x5401, 0x5411, 0x5413, 0x541B, 0x541E, 0x8914, 0x40049409], ids=hex)
def test_other_terminal_and_file_requests_pass(program: bytes, request_number: int):
    assert ask(program, "ioctl", 0, request_number) == ALLOW


UNIX, INET, INET6, NETLINK, PACKET, ALG, VSOCK = 1, 2, 10, 16, 17, 38, 40
STREAM, DGRAM, RAW, SEQPACKET = 1, 2, 3, 5
CLOEXEC_NONBLOCK = 0x80800


@pytest.mark.parametrize(
    "arguments",
    [
        (UNIX, STREAM, 0),
        (UNIX, SEQPACKET | CLOEXEC_NONBLOCK, 0),
        (INET, STREAM, 0),
        (INET, STREAM | CLOEXEC_NONBLOCK, 6),
        (INET, DGRAM, 17),
        (INET, DGRAM, 1),
        (INET6, STREAM, 6),
        (INET6, DGRAM, 58),
        (NETLINK, RAW | CLOEXEC_NONBLOCK, 0),
        (0xDEAD_0000_0002, STREAM, 0),  # the kernel looks at 32 bits of an int, and so must the filter
    ],
)
def test_ordinary_sockets_pass(program: bytes, arguments: tuple[int, ...]):
    assert ask(program, "socket", *arguments) == ALLOW


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((INET, RAW, 1), errno.EPERM),
        ((INET6, RAW | CLOEXEC_NONBLOCK, 58), errno.EPERM),
        ((PACKET, RAW, 0x300), errno.EAFNOSUPPORT),
        ((1 << 32 | PACKET, RAW, 0x300), errno.EAFNOSUPPORT),
        ((ALG, SEQPACKET, 0), errno.EAFNOSUPPORT),
        ((VSOCK, STREAM, 0), errno.EAFNOSUPPORT),
        ((NETLINK, RAW, 9), errno.EAFNOSUPPORT),  # audit: useradd gives up on any other errno
        ((INET, STREAM, 132), errno.EAFNOSUPPORT),  # SCTP
        ((INET, STREAM, 262), errno.EAFNOSUPPORT),  # MPTCP
        ((INET, 10, 0), errno.EAFNOSUPPORT),  # SOCK_PACKET
        ((0, STREAM, 0), errno.EAFNOSUPPORT),
    ],
)
def test_other_sockets_are_refused(program: bytes, arguments: tuple[int, ...], expected: int):
    assert ask(program, "socket", *arguments) == refused(expected)


def test_socketpair_is_for_unix_sockets(program: bytes):
    assert ask(program, "socketpair", UNIX, STREAM, 0) == ALLOW
    assert ask(program, "socketpair", 30, STREAM, 0) == refused(errno.EAFNOSUPPORT)  # AF_TIPC


@pytest.mark.parametrize("persona", [0, 8, 0x20000, 0x20008, 0xFFFFFFFF, 0xFFFFFFFF_FFFFFFFF], ids=hex)
def test_harmless_personalities_pass(program: bytes, persona: int):
    assert ask(program, "personality", persona) == ALLOW


@pytest.mark.parametrize(
    "persona", [0x400000, 0x40000, 0x60008, 0x100000, 0x200000, 0x440000, 1, 0xFFFFFFFE], ids=hex
)
def test_weakening_personalities_are_refused(program: bytes, persona: int):
    assert ask(program, "personality", persona) == refused(errno.EPERM)


def test_flushing_everything_succeeds_and_does_nothing(program: bytes):
    for name in ("sync", "syncfs"):
        assert ask(program, name, 0) == refused(0)
    assert ask(program, "fsync", 0) == ask(program, "fdatasync", 0) == ALLOW


@pytest.mark.parametrize("name", ["io_setup", "io_submit", "io_getevents", "file_getattr", "file_setattr"])
def test_what_is_shared_by_the_host_or_new_is_not_there(program: bytes, name: str):
    assert ask(program, name, 0) == refused(errno.ENOSYS)


def test_asynchronous_io_can_be_let_in(tmp_path: Path):
    """As seccomp/README.md tells."""
    profile = json.loads(DEFAULT.read_text())
    (rule,) = [rule for rule in profile["syscalls"] if "io_setup" in rule["names"]]
    rule["action"] = "SCMP_ACT_ALLOW"
    del rule["errnoRet"]
    path = tmp_path / "aio.json"
    path.write_text(json.dumps(profile))
    changed = compile_profile(path)
    assert ask(changed, "io_setup", 1) == ALLOW
    assert ask(changed, "io_uring_setup", 1) == refused(errno.ENOSYS)


# -- the compiler against a model ---------------------------------------------------------------------------------

NAMES = ("read", "write", "openat", "ioctl", "socket", "getpid")
values = st.sampled_from([0, 1, 2, 5, 0x5412, 0xFFFFFFFF, 1 << 32, (1 << 32) + 1, (1 << 64) - 1])
operators = st.sampled_from(["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"])


@st.composite
def comparisons(draw: st.DrawFn) -> dict[str, Any]:
    operator = draw(operators)
    value = draw(values)
    two = draw(values) if operator == "MASKED_EQ" else 0
    return {"index": draw(st.integers(0, 2)), "op": f"SCMP_CMP_{operator}", "value": value, "valueTwo": two}


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    action = draw(st.sampled_from(["ALLOW", "ALLOW", "ERRNO", "KILL_PROCESS"]))
    args = draw(st.lists(comparisons(), max_size=2, unique_by=lambda comparison: comparison["index"]))
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    return rule(action, *names, args=args) | (
        {"errnoRet": draw(st.sampled_from([1, 13]))} if action == "ERRNO" else {}
    )


def matches(argument: Argument, arguments: tuple[int, ...]) -> bool:
    actual = arguments[argument.index]
    if argument.op == "SCMP_CMP_MASKED_EQ":
        return actual & argument.value == argument.value_two
    return {
        "SCMP_CMP_NE": actual != argument.value,
        "SCMP_CMP_LT": actual < argument.value,
        "SCMP_CMP_LE": actual <= argument.value,
        "SCMP_CMP_EQ": actual == argument.value,
        "SCMP_CMP_GE": actual >= argument.value,
        "SCMP_CMP_GT": actual > argument.value,
    }[argument.op]


def expected_answer(parsed: list[Rule], name: str, arguments: tuple[int, ...]) -> int:
    """What the four steps of the module's docstring say."""
    matching = [entry for entry in parsed if name in entry.names and all(matches(a, arguments) for a in entry.args)]
    steps = (
        [entry for entry in matching if entry.args and not entry.permits],
        [entry for entry in matching if entry.permits],
        [entry for entry in matching if not entry.args and not entry.permits],
    )
    first = next(filter(None, steps), None)
    if first is None:
        return refused(38)
    if first[0].permits:
        return ALLOW
    if any(entry.action == "SCMP_ACT_KILL_PROCESS" for entry in first):
        return KILL_PROCESS
    return refused(min(entry.errno_ret or 0 for entry in first))


@given(
    entries=st.lists(rules(), max_size=8),
    calls=st.lists(st.tuples(st.sampled_from(NAMES), st.tuples(values, values, values)), min_size=1, max_size=20),
)
def test_the_compiled_program_agrees_with_the_four_steps(
    tmp_path_factory: pytest.TempPathFactory, entries: list[dict[str, Any]], calls: list[tuple[str, tuple[int, ...]]]
):
    program = compiled(tmp_path_factory.mktemp("profile"), syscalls=entries)
    parsed = [Rule.model_validate_json(json.dumps(entry)) for entry in entries]
    for name, arguments in calls:
        assert ask(program, name, *arguments) == expected_answer(parsed, name, arguments)


# -- profiles that cannot be used ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"syscalls": [rule("ALLOW", "read", includes={"caps": ["CAP_SYS_PTRACE"]})]}, "syscalls.0.includes"),
        ({"archMap": []}, "archMap"),
        ({"flags": ["SECCOMP_FILTER_FLAG_LOG"]}, "flags"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "defaultAction"),
        ({"defaultAction": "SCMP_ACT_ALLOW"}, "an errno goes with SCMP_ACT_ERRNO"),
        ({"architectures": ["SCMP_ARCH_X86"]}, "architectures.0"),
        ({"architectures": []}, "architectures"),
        ({"syscalls": [rule("ALLOW")]}, "syscalls.0.names"),
        ({"syscalls": [rule("ALLOW", "read", errnoRet=1)]}, "syscalls.0"),
        ({"syscalls": [rule("ERRNO", "read", errnoRet=5000)]}, "syscalls.0.errnoRet"),
        ({"syscalls": [rule("ALLOW", "read", args=[{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}])]}, "index"),
        ({"syscalls": [rule("ALLOW", "read", args=[{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}])]}, "value"),
        (
            {"syscalls": [rule("ALLOW", "read", args=[{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}] * 2)]},
            "only once",
        ),
    ],
)
def test_what_is_not_understood_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], complaint: str):
    with pytest.raises(StartupError, match=r"^cannot use the system call profile .*profile\.json: ") as caught:
        compiled(tmp_path, **fields)
    assert complaint in caught.value.message


def test_a_profile_of_another_architecture_is_refused(tmp_path: Path):
    other = next(name for architecture, name in MACHINES.items() if architecture != NATIVE)
    with pytest.raises(StartupError, match=f"it is for {other}"):
        compiled(tmp_path, architectures=[other])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"syscalls": 3}'])
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(StartupError, match=r"^cannot use the system call profile "):
        compile_profile(path)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(StartupError, match="No such file"):
        compile_profile(tmp_path / "absent.json")


def test_an_unknown_name_is_passed_over_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        program = compiled(tmp_path, syscalls=[rule("ALLOW", "read", "warp_drive")])
    assert "warp_drive" in caplog.text
    assert ask(program, "read") == ALLOW


def test_names_of_other_architectures_are_passed_over_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    foreign = next(name for name in ("s390_pci_mmio_read", "riscv_flush_icache") if number(name) < 0)
    compiled(tmp_path, syscalls=[rule("ALLOW", foreign)])
    assert caplog.records == []


def test_a_permissive_default_makes_a_deny_list(tmp_path: Path):
    fields = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("ERRNO", "mount")]}
    path = tmp_path / "deny.json"
    path.write_text(json.dumps({"architectures": [MACHINES[NATIVE]]} | fields))
    program = compile_profile(path)
    assert ask(program, "mount") == refused(errno.EPERM)
    assert ask(program, "umount2") == ALLOW


# -- the descriptor -----------------------------------------------------------------------------------------------


def test_each_descriptor_reads_the_whole_program_and_cannot_be_changed(program: bytes):
    first, second = profile_descriptor(program), profile_descriptor(program)
    try:
        assert os.read(first, len(program) + 1) == program
        assert os.read(second, len(program) + 1) == program
        assert not os.get_inheritable(first)
        with pytest.raises(PermissionError):
            os.pwrite(first, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(first, 0)
        with pytest.raises(PermissionError):
            fcntl.fcntl(first, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    finally:
        os.close(first)
        os.close(second)


# -- in the kernel ------------------------------------------------------------------------------------------------

# Runs calls under a filter read from stdin and reports what each gave: errno, or 0.
UNDER_FILTER = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
program = sys.stdin.buffer.read()
buffer = ctypes.create_string_buffer(program, len(program))
class Fprog(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
fprog = Fprog(len(program) // 8, ctypes.addressof(buffer))
if program:
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(fprog)) == 0
results = []
for number, *arguments in json.loads(sys.argv[1]):
    ctypes.set_errno(0)
    libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments))
    results.append(ctypes.get_errno())
print(json.dumps(results))
"""


def errors_of(program: bytes, *calls: tuple[int, ...]) -> list[int]:
    command = [sys.executable, "-I", "-S", "-c", UNDER_FILTER, json.dumps(calls)]
    done = subprocess.run(command, input=program, capture_output=True, check=True)
    return json.loads(done.stdout)


def test_the_kernel_enforces_the_default_profile(program: bytes):
    """Calls that succeed or fail otherwise without the filter (the control) and are refused under it."""
    calls = [
        (number("io_uring_setup"), 1, 0),
        (number("socket"), VSOCK, STREAM, 0),
        (number("ioctl"), 0, 1 << 32 | 0x5412, 0),
        (number("userfaultfd"), 0x80000),
        (number("clone3"), 0, 0),
        (number("personality"), 0x400000),
        (number("personality"), 0x40000),
        (number("io_setup"), 1, 0),
        (number("syncfs"), -1),
        (number("getpid"),),
    ]
    enforced = [errno.ENOSYS, errno.EAFNOSUPPORT, errno.EPERM, errno.ENOSYS, errno.ENOSYS, errno.EPERM]
    enforced += [errno.EPERM, errno.ENOSYS, 0, 0]
    assert errors_of(program, *calls) == enforced
    free = errors_of(b"", *calls)
    assert [one for one, other in zip(free, enforced, strict=True) if one == other] == [0]


@on_x86_64
def test_the_kernel_ends_a_process_that_uses_x32_numbers(program: bytes):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        errors_of(program, (39 | X32_BIT,))
    assert caught.value.returncode == -31  # SIGSYS
    assert errors_of(b"", (39 | X32_BIT,)) in ([0], [errno.ENOSYS])
