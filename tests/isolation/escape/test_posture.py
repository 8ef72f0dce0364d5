"""What the kernel says of a sandbox's processes, read from the host: namespaces, ids, capabilities, the filter.

The escapes of the other files are refused one by one; this holds the reasons why. The control of each is an ordinary
process of the host, read in the same way.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from sandboxd.isolation.bwrap.render import CAPABILITIES
from tests.isolation.escape.inside import Sandbox
from tests.support import witnesses

pytestmark = pytest.mark.needs_root

NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")

# linux/capability.h
CAPABILITY_BITS = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_SYS_CHROOT": 18,
    "CAP_SETFCAP": 31,
}
CAP_SYS_RESOURCE = 24
ALLOWED = sum(1 << CAPABILITY_BITS[name] for name in CAPABILITIES)


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def capability_sets(pid: int) -> dict[str, int]:
    fields = status(pid)
    return {name: int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}


def namespaces(pid: int) -> dict[str, str]:
    return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in NAMESPACES}


def shared_namespaces(one: int, other: int) -> set[str]:
    mine, yours = namespaces(one), namespaces(other)
    return {name for name in NAMESPACES if mine[name] == yours[name]}


@contextmanager
def on_the_host() -> Iterator[int]:
    """An ordinary process to compare with."""
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@contextmanager
def command_of(sandbox: Sandbox, *, user: str) -> Iterator[int]:
    """The host pid of a command in the sandbox that lasts until the end of the block."""
    name = "posture-" + user
    start = f"cp /bin/sleep /tmp/{name}; setsid /tmp/{name} 60 >/dev/null 2>&1 </dev/null &"
    done = sandbox.run(f"{start} until pgrep -x {name}; do :; done", user=user)
    assert done.exit_code == 0
    pid = next(pid for pid in descendants(sandbox.init) if name_of(pid) == name)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Those that end meanwhile left out."""
    found = []
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def name_of(pid: int) -> str:
    """Empty if it has ended."""
    try:
        return status(pid)["Name"]
    except OSError:
        return ""


def test_no_namespace_is_shared_with_the_host(sandbox: Sandbox):
    assert shared_namespaces(sandbox.init, os.getpid()) == set()
    with command_of(sandbox, user="user") as command:
        assert shared_namespaces(command, os.getpid()) == set()
    with on_the_host() as process:
        assert shared_namespaces(process, os.getpid()) == set(NAMESPACES)


def test_the_monitor_is_outside_but_powerless(sandbox: Sandbox):
    """bwrap waits beside the host's processes, as nobody in particular: in the sandbox's user namespace."""
    assert not {"user", "mnt"} & shared_namespaces(sandbox.monitor, os.getpid())
    assert namespaces(sandbox.monitor)["user"] == namespaces(sandbox.init)["user"]
    assert status(sandbox.monitor)["NoNewPrivs"] == "1"
    assert status(sandbox.monitor)["Uid"] == status(sandbox.init)["Uid"]
    with on_the_host() as process:
        assert "user" in shared_namespaces(process, os.getpid())


def test_ids_are_a_range_that_is_not_the_hosts(sandbox: Sandbox):
    inside, first, count = map(int, Path(f"/proc/{sandbox.init}/uid_map").read_text().split())
    assert (inside, count) == (0, 65536)
    assert first >= 65536
    assert Path(f"/proc/{sandbox.init}/gid_map").read_text() == Path(f"/proc/{sandbox.init}/uid_map").read_text()
    assert status(sandbox.init)["Uid"].split() == [str(first)] * 4
    assert status(sandbox.init)["Gid"].split() == [str(first)] * 4
    assert status(sandbox.init)["Groups"] == ""
    with command_of(sandbox, user="user") as command:
        assert status(command)["Uid"].split() == [str(first + 1000)] * 4
    with on_the_host() as process:
        assert status(process)["Uid"].split() == ["0"] * 4


def test_root_has_the_capabilities_of_the_list_and_no_way_to_more(sandbox: Sandbox):
    """Nothing is inheritable or ambient (CVE-2022-24769), and the bounding set is cut as well."""
    expected = {"CapInh": 0, "CapPrm": ALLOWED, "CapEff": ALLOWED, "CapBnd": ALLOWED, "CapAmb": 0}
    assert capability_sets(sandbox.init) == expected
    with command_of(sandbox, user="root") as command:
        assert capability_sets(command) == expected
    with on_the_host() as process:
        assert capability_sets(process)["CapBnd"] & ~ALLOWED


def test_other_users_have_no_capability(sandbox: Sandbox):
    with command_of(sandbox, user="user") as command:
        assert capability_sets(command) == dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), 0)


def test_privileges_cannot_grow_and_calls_are_filtered(sandbox: Sandbox):
    with command_of(sandbox, user="root") as command:
        for pid in (sandbox.init, command):
            assert status(pid)["NoNewPrivs"] == "1"
            assert status(pid)["Seccomp"] == "2"
    with on_the_host() as process:
        assert status(process)["NoNewPrivs"] == "0"
        assert status(process)["Seccomp"] == "0"


def test_no_terminal_and_no_session_of_the_hosts(sandbox: Sandbox):
    """A controlling terminal would take TIOCSTI; a shared session, signals."""
    for pid in (sandbox.init, sandbox.monitor):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        session, terminal = int(fields[3]), int(fields[4])
        assert terminal == 0
        assert session == sandbox.monitor
        assert session != os.getsid(0)


def oom_score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def test_a_sandbox_goes_first_when_memory_ends(sandbox: Sandbox):
    """And within it, the commands before the init that keeps their results."""
    daemon = sandbox.daemon.pid
    fork_server = witnesses.fork_server_of(sandbox.daemon)
    with command_of(sandbox, user="user") as command:
        told = [oom_score(pid) for pid in (command, sandbox.init, sandbox.monitor, fork_server, daemon)]
    leader, init, monitor, *ours = told
    assert leader > init >= monitor > max(ours)


def set_oom_score(score: int) -> str:
    return f"attempt(lambda: open('/proc/self/oom_score_adj', 'wb', 0).write(b'{score}'))"


@pytest.mark.parametrize("user", ["root", "user"])
def test_no_command_has_the_daemon_go_before_it(sandbox: Sandbox, user: str):
    """Without CAP_SYS_RESOURCE, which a container's root may lack too, it can become the daemon's equal, no more."""
    daemon = oom_score(sandbox.daemon.pid)
    attacks = {
        "before": set_oom_score(daemon - 1),
        "later": set_oom_score(daemon + 700),
        "equal": set_oom_score(daemon),
    }
    outcomes = sandbox.outcomes(attacks, user=user)
    assert (outcomes["before"], outcomes["later"]) == ("EACCES", "")
    may_pin = bool(int(status(sandbox.daemon.pid)["CapEff"], 16) >> CAP_SYS_RESOURCE & 1) and not sandbox.rootless
    assert outcomes["equal"] == ("EACCES" if may_pin else "")
