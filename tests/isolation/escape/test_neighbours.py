"""Other sandboxes, and other processes of the host."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.isolation.escape.inside import Sandbox, plain_bwrap, unconfined
from tests.support.background import Background

pytestmark = pytest.mark.needs_root

COMMANDS = """
found = []
for entry in os.listdir("/proc"):
    if entry.isdigit():
        try:
            found.append(open(f"/proc/{entry}/cmdline").read())
        except OSError:
            pass
report(found)
"""


def start_marked(sandbox: Sandbox, mark: str) -> None:
    """Leave a process running that is recognised by its arguments."""
    done = sandbox.run(
        f"setsid sh -c 'sleep 60; : {mark}' >/dev/null 2>&1 </dev/null & until pgrep -f {mark}; do :; done"
    )
    assert done.exit_code == 0


def test_processes_of_others_are_not_seen(new_sandbox: Callable[[], Sandbox]):
    one, other = new_sandbox(), new_sandbox()
    start_marked(one, "neighbour-mark")
    assert [command for command in other.python(COMMANDS) if "neighbour-mark" in command] == []
    assert len(other.python(COMMANDS)) <= 5
    assert [command for command in one.python(COMMANDS) if "neighbour-mark" in command] != []
    assert [command for command in unconfined(COMMANDS) if "neighbour-mark" in command] != []


SIGNAL_ALL = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
outcomes = [attempt(os.kill, pid, 0) for pid in PIDS]
everyone = attempt(os.kill, -1, signal.SIGTERM)
report(outcomes)
"""


def test_processes_of_the_host_cannot_be_signalled(sandbox: Sandbox):
    """By their own pids, and by "everybody". The control reaches them, with signal 0."""
    with subprocess.Popen(["sleep", "60"]) as victim:
        pids = [victim.pid, os.getpid(), sandbox.monitor, sandbox.init]
        assert set(sandbox.python(f"PIDS = {pids}" + SIGNAL_ALL)) == {"ESRCH"}
        assert victim.poll() is None
        assert set(unconfined(f"report([attempt(os.kill, pid, 0) for pid in {pids}])")) == {""}
        victim.kill()


@pytest.mark.parametrize("user", ["root", "user"])
def test_pid_1_takes_no_signal_from_inside(sandbox: Sandbox, user: str):
    """The kernel keeps a namespace's init from signals that it has no handler for, SIGKILL among them."""
    numbers = [number for number in range(1, 65) if number not in (32, 33)]
    sandbox.python(f"report([attempt(os.kill, 1, number) for number in {numbers}])", user=user)
    assert sandbox.run("echo alive").stdout == "alive\n"
    # In its own time: killed before it could say that the command has started, the keeper makes that an error.
    commands = Background(sandbox.daemon, sandbox.id)
    killer = commands.start("read go; kill -9 -1", user=user, stdin=True)
    commands.post(killer, "stdin", {"data": "\n"})
    commands.ended(killer)
    assert sandbox.run("echo alive").stdout == "alive\n"
    # The control: the same signal ends a child.
    child = "child = subprocess.Popen(['sleep', '60']); os.kill(child.pid, 9); report(child.wait())"
    assert sandbox.python(child, user=user) == -9


def test_no_two_sandboxes_share_an_id(new_sandbox: Callable[[], Sandbox]):
    """So that whatever one of them gets hold of, it is a stranger there. (An ordinary user has one range only.)"""
    one, other = new_sandbox(), new_sandbox()
    first, second = (int(Path(f"/proc/{sandbox.init}/uid_map").read_text().split()[1]) for sandbox in (one, other))
    if one.rootless:
        assert first == second
    else:
        assert abs(first - second) >= 65536


def test_files_of_another_sandbox_are_not_there(new_sandbox: Callable[[], Sandbox]):
    one, other = new_sandbox(), new_sandbox()
    one.run("umask 0; for top in /tmp /dev/shm /root /home/user /var/tmp /run; do echo secret >$top/of-one; done")
    find = "report([top for top, _, files in os.walk('/') if 'of-one' in files])"
    assert other.python(find) == []
    assert sorted(one.python(find)) == ["/dev/shm", "/home/user", "/root", "/run", "/tmp", "/var/tmp"]


SHARED_MEMORY = """
KEY = 0x5AB0DD
def attach(flags):
    ctypes.set_errno(0)
    return libc.shmget(KEY, 4096, flags) >= 0
"""


def test_shared_memory_of_others_is_not_there(new_sandbox: Callable[[], Sandbox]):
    one, other = new_sandbox(), new_sandbox()
    assert one.python(SHARED_MEMORY + "report(attach(0o1666))") is True
    assert other.python(SHARED_MEMORY + "report(attach(0o666))") is False
    assert one.python(SHARED_MEMORY + "report(attach(0o666))") is True


def test_the_monitor_is_not_seen_from_inside(sandbox: Sandbox):
    """Nor is any process outside: pid 1 has no parent. The control: bwrap without a pid namespace."""
    attack = "report([open('/proc/1/stat').read().rpartition(')')[2].split()[1], os.path.exists(f'/proc/{PID}')])"
    assert sandbox.python(f"PID = {sandbox.monitor}\n" + attack) == ["0", False]
    prefix = [option for option in plain_bwrap() if option != "--unshare-pid"]
    assert unconfined(f"PID = {sandbox.monitor}\n" + attack, prefix=prefix)[1] is True
