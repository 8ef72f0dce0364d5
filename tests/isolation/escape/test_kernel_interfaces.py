"""System calls that give power over the machine, or reach kernel code that a sandbox has no business in."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.isolation.escape.inside import Sandbox, unconfined_outcomes

pytestmark = pytest.mark.needs_root

# The arguments are chosen so that root of the host gets another answer (which is the control), yet nothing happens
# there: wrong magic numbers, empty lists, files that do not exist.
NOT_PERMITTED = {
    "bpf": "call(321, 0, None, 0)",
    "perf_event_open": "call(298, None, 0, -1, -1, 0)",
    "open_by_handle_at": "call(304, -100, ctypes.create_string_buffer(bytes([8]) + bytes(20)), 0)",
    "name_to_handle_at": "call(303, -100, b'/', ctypes.create_string_buffer(160), ctypes.byref(ctypes.c_int()), 0)",
    "kexec_load": "call(246, 0, 1 << 20, None, 0)",
    "kexec_file_load": "call(320, -1, -1, 0, None, 1 << 20)",
    "init_module": "call(175, None, 0, b'')",
    "finit_module": "call(313, -1, b'', 0)",
    "delete_module": "call(176, b'sandboxd_none', 0)",
    "reboot": "call(169, 0, 0, 0, 0)",
    "swapon": "call(167, b'/sandboxd-none', 0)",
    "swapoff": "call(168, b'/sandboxd-none')",
    "acct": "call(163, b'/sandboxd-none')",
    "quotactl": "call(179, 0, b'/sandboxd-none', 0, None)",
    "settimeofday": "call(164, None, None)",
    "clock_settime": "call(227, 99, struct.pack('QQ', 0, 0))",
    "sethostname": "call(170, b'', -1)",
    "syslog": "call(103, 10, None, 0)",
    "iopl": "call(172, 0)",
    "ioperm": "call(173, 0, 1, 0)",
    "personality": "call(135, 0x400000)",
}
NOT_IMPLEMENTED = {
    "io_uring_setup": "call(425, 1, ctypes.create_string_buffer(120))",
    "io_uring_enter": "call(426, -1, 0, 0, 0, 0, 0)",
    "io_uring_register": "call(427, -1, 0, 0, 0)",
    "add_key": "call(248, b'user', b'sandboxd-test', b'x', 1, -2)",
    "keyctl": "call(250, 0, -3, 0)",
    "request_key": "call(249, b'user', b'sandboxd-none', None, 0)",
    "userfaultfd": "call(323, 0o2000000)",
    "fanotify_init": "call(300, 0, 0)",
    "process_vm_readv": "call(310, os.getpid(), None, 0, None, 0, 0)",
    "pidfd_getfd": "call(438, os.pidfd_open(os.getpid()), 0, 0)",
    "kcmp": "call(312, os.getpid(), os.getpid(), 0, 0, 0)",
    "modify_ldt": "call(154, 0, ctypes.create_string_buffer(16), 16)",
}


@pytest.mark.parametrize("user", ["root", "user"])
def test_power_over_the_machine_is_refused(sandbox: Sandbox, user: str):
    assert sandbox.outcomes(NOT_PERMITTED, user=user) == dict.fromkeys(NOT_PERMITTED, "EPERM")
    control = unconfined_outcomes(NOT_PERMITTED)
    assert [name for name, outcome in control.items() if outcome == "EPERM"] == []


@pytest.mark.parametrize("user", ["root", "user"])
def test_facilities_that_a_sandbox_does_without_look_unimplemented(sandbox: Sandbox, user: str):
    assert sandbox.outcomes(NOT_IMPLEMENTED, user=user) == dict.fromkeys(NOT_IMPLEMENTED, "ENOSYS")
    control = unconfined_outcomes(NOT_IMPLEMENTED)
    assert [name for name, outcome in control.items() if outcome == "ENOSYS"] == []


INT_80 = """
#include <stdio.h>
int main(void) {
    int pid;
    __asm__ volatile("int $0x80" : "=a"(pid) : "a"(20) : "memory");
    return pid > 0 ? 0 : 1;
}
"""


def test_the_32_bit_interface_ends_the_process(sandbox: Sandbox, compiled: Callable[[str], Path]):
    """getpid by the i386 number, which the filter's numbers say nothing about."""
    program = compiled(INT_80)
    sandbox.place(program, "/tmp/int80")
    assert sandbox.run("exec /tmp/int80").signal == "SIGSYS"
    assert subprocess.run([program], check=False).returncode == 0
