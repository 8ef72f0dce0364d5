"""What the kernel counts for the whole host: how much of it one sandbox can take, with all the users it can become.

The table "What is bounded, and what is shared" of the manual (security) has a row for each, also for those that have
no bound of their own.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.isolation.escape.inside import Sandbox, unconfined
from tests.support.daemon import Daemon

pytestmark = pytest.mark.needs_root

# Users that the sandbox's root becomes in turn: a bound for each user alone would be none.
USERS = (0, 1, 1000, 2000, 60000)

# `take` runs in a child for each user, which keeps what it took until all have taken; it returns how many and why not
# more.
AS_MANY_USERS = """
def taken_by_all(take):
    taken, children = [], []
    for user in USERS:
        ours, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            ours.close()
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            theirs.sendall(json.dumps(take()).encode())
            theirs.recv(1)
            os._exit(0)
        theirs.close()
        children.append(ours)
        taken.append(json.loads(ours.recv(1000)))
    return taken
""".replace("USERS", repr(USERS))

TAKE = {
    "inotify": """
def take():
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, max(8192, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
    for count in range(5000):
        ctypes.set_errno(0)
        if libc.inotify_init1(0) < 0:
            return [count, errno.errorcode[ctypes.get_errno()]]
    return [5000, ""]
""",
    "timers": """
def take():
    timer = ctypes.c_int()
    for count in range(LIMIT + 10):
        refused = call(222, 1, None, ctypes.byref(timer))
        if refused:
            return [count, refused]
    return [LIMIT + 10, ""]
""",
    "queues": """
def take():
    for count in range(2000):
        refused = call(240, f"queue-{os.getuid()}-{count}".encode(), os.O_CREAT | os.O_RDWR, 0o600,
                       ctypes.byref((ctypes.c_long * 8)(0, 1, 1)))
        if refused:
            return [count, refused]
    return [2000, ""]
""",
}


@pytest.fixture
def new_sandbox(root_daemon: Daemon) -> Iterator[Callable[[], Sandbox]]:
    yield lambda: Sandbox(root_daemon, root_daemon.create(), rootless=False)
    root_daemon.delete_all()


def sysctl(name: str) -> int:
    return int(Path("/proc/sys", name).read_text())


def take(sandbox: Sandbox, what: str, *, limit: int = 0) -> list[tuple[int, str]]:
    found: list[Any] = sandbox.python(f"LIMIT = {limit}\n{AS_MANY_USERS}{TAKE[what]}report(taken_by_all(take))")
    return [(count, refused) for count, refused in found]


def total(taken: list[tuple[int, str]]) -> int:
    return sum(count for count, _ in taken)


def test_inotify_instances_are_bounded_for_all_its_users_together(new_sandbox: Callable[[], Sandbox]) -> None:
    """The kernel charges them to whoever made the user namespace, who is the sandbox's own first id."""
    one, other = new_sandbox(), new_sandbox()
    limit = sysctl("fs/inotify/max_user_instances")
    taken = take(one, "inotify")
    assert 0 < total(taken) <= limit
    assert {refused for _, refused in taken} == {"EMFILE"}
    assert taken[-1][0] == 0  # nothing was left for the last user
    assert total(take(other, "inotify")) == total(taken)  # the control: another sandbox has as many


def test_timers_are_bounded_for_all_its_users_together(
    new_sandbox: Callable[[], Sandbox],
) -> None:
    one = new_sandbox()
    limit = one.python("report(resource.getrlimit(resource.RLIMIT_SIGPENDING)[1])")
    taken = take(one, "timers", limit=limit)
    assert 0 < total(taken) <= limit
    assert taken[-1] == (0, "EAGAIN")


def test_message_queues_are_bounded_by_its_own_namespace(new_sandbox: Callable[[], Sandbox]) -> None:
    one, other = new_sandbox(), new_sandbox()
    taken = take(one, "queues")
    assert 0 < total(taken) <= sysctl("fs/mqueue/queues_max")
    assert taken[-1][0] == 0
    assert {refused for _, refused in taken} <= {"EMFILE", "ENOSPC"}
    assert total(take(other, "queues")) == total(taken)


NOT_THERE = {
    "kernel AIO (fs.aio-max-nr)": "call(206, 1, ctypes.byref(ctypes.c_ulong()))",
    "keys (kernel.keys.maxkeys)": "call(248, b'user', b'sandboxd-test', b'x', 1, -2)",
    "io_uring": "call(425, 1, ctypes.create_string_buffer(120))",
    "fanotify": "call(300, 0, 0)",
}
NOT_PERMITTED = {
    "namespaces (user.max_…_namespaces)": "call(272, 0x20000)",
    "mounts (fs.mount-max)": "call(165, b'none', b'/mnt', b'tmpfs', 0, None)",
    "bpf": "call(321, 0, None, 0)",
}


def test_what_has_no_bound_for_one_sandbox_is_not_there(new_sandbox: Callable[[], Sandbox]) -> None:
    outcomes = new_sandbox().outcomes({**NOT_THERE, **NOT_PERMITTED})
    assert {name: outcomes[name] for name in NOT_THERE} == dict.fromkeys(NOT_THERE, "ENOSYS")
    assert {name: outcomes[name] for name in NOT_PERMITTED} == dict.fromkeys(NOT_PERMITTED, "EPERM")
    # The control: the host's root gets what is harmless to ask for.
    aio = "kernel AIO (fs.aio-max-nr)"
    assert unconfined(f"report({NOT_THERE[aio]})") == ""


STALL = """
report([libc.sync() or 0, libc.syncfs(os.open("/", os.O_RDONLY)), os.fsync(os.open("/tmp", os.O_RDONLY))])
"""


def test_flushing_the_hosts_disks_does_nothing(new_sandbox: Callable[[], Sandbox]) -> None:
    """Both succeed, as programs expect, and reach no disk: the filter answers (tests/isolation/test_seccomp.py)."""
    assert new_sandbox().python(STALL) == [0, 0, None]
