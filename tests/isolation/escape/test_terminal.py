"""Taking over a terminal: TIOCSTI (CVE-2017-5226), TIOCLINUX (CVE-2023-28100), the console, line disciplines."""

import pytest

from tests.isolation.escape.inside import PRELUDE, Sandbox, plain_bwrap, unconfined

pytestmark = pytest.mark.needs_root

# A child gets a terminal of its own, as a command with a PTY has, and makes the request there. By the raw call, which
# passes on 64 bits.
ON_A_TERMINAL = """
import pty
def on_a_terminal(request, argument):
    read_end, write_end = os.pipe()
    pid, master = pty.fork()
    if pid == 0:
        os.write(write_end, json.dumps(call(16, 0, ctypes.c_ulong(request), argument)).encode())
        os._exit(0)
    answer = json.loads(os.read(read_end, 100))
    os.waitpid(pid, 0)
    return answer
"""

REQUESTS = {
    "TIOCSTI": (0x5412, "b'x'"),
    "TIOCLINUX": (0x541C, "b'\\x02'"),
    "TIOCCONS": (0x541D, "0"),
    "TIOCSETD": (0x5423, "ctypes.byref(ctypes.c_int(0))"),
}
# The kernel drops the upper half of the number, and a filter that does not is walked around (CVE-2019-7303).
UPPER_HALVES = (0, 1, 0xDEADBEEF)


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_that_take_over_a_terminal_are_refused(sandbox: Sandbox, name: str):
    number, argument = REQUESTS[name]
    numbers = [upper << 32 | number for upper in UPPER_HALVES]
    attack = ON_A_TERMINAL + f"report([on_a_terminal(number, {argument}) for number in {numbers}])"
    assert sandbox.python(attack) == ["EPERM"] * len(numbers)
    if name != "TIOCCONS":  # the control would redirect this machine's console
        assert "EPERM" not in unconfined(attack)


TYPE_FOR_THE_OWNER = """
outcome = opened("/dev/tty")
if not outcome:
    outcome = call(16, os.open("/dev/tty", os.O_RDWR), 0x5412, b"x")
report(outcome)
"""

# Runs COMMAND on a new terminal, as a person would, and passes on what it reported.
START_ON_A_TERMINAL = """
import pty
pid, master = pty.fork()
if pid == 0:
    os.execvp(COMMAND[0], COMMAND)
seen = b""
while not attempt(lambda: globals().update(more=os.read(master, 4096))) and more:
    seen += more
os.waitpid(pid, 0)
report(json.loads(seen.decode().partition("REPORT")[2].split()[0]))
"""


def test_a_command_without_a_terminal_has_none_to_reach(sandbox: Sandbox):
    """Not even the one that the daemon was started on. The control: bwrap without --new-session, on a terminal."""
    assert sandbox.python(TYPE_FOR_THE_OWNER) == "ENXIO"
    command = [*plain_bwrap(), "python3", "-I", "-c", PRELUDE + TYPE_FOR_THE_OWNER]
    assert unconfined(f"COMMAND = {command!r}" + START_ON_A_TERMINAL) == ""
