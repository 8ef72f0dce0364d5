"""Device nodes and sandbox-init's own program: what one holds, watches or measures there, nobody else notices."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxd.config import Config
from sandboxd.daemon import install_init
from sandboxd.kernel.devices import MAX_TERMINALS
from tests.isolation.escape.inside import PRELUDE, Sandbox, unconfined

pytestmark = pytest.mark.needs_root

# What exists of them inside, and reads from these paths, is a device or a program.
PLACES = ("full", "null", "random", "tty", "urandom", "zero", "sandbox-init")

IDENTITIES = """
def identity(path):
    status = os.stat(path)
    return [status.st_dev, status.st_ino]
report({name: identity("/dev/" + name) for name in %r})
"""

HOLD_LOCKS = """
held = []
for path in %r:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    held.append(descriptor)
open("/tmp/holding", "w").close()
time.sleep(600)
"""

LOCKED = """
def try_to_lock(path):
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        return attempt(fcntl.flock, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)
report({path: try_to_lock(path) for path in %r})
"""

NODES = [f"/dev/{name}" for name in PLACES if name not in ("tty", "sandbox-init")]


def hold_locks(sandbox: Sandbox, paths: list[str]) -> None:
    source = f"import fcntl, os, time\n{HOLD_LOCKS % (paths,)}"
    done = sandbox.run(
        "cat >/tmp/hold.py; setsid python3 -I /tmp/hold.py </dev/zero >/tmp/hold.log 2>&1 & "
        "until [ -e /tmp/holding ]; do sleep 0.01; done",
        stdin=source,
    )
    assert done.exit_code == 0, done


def with_own_devices(sandbox: Sandbox) -> Sandbox:
    if sandbox.rootless:
        pytest.skip("a device can be made by root only: this sandbox has the host's, as the manual says")
    return sandbox


def test_no_node_is_the_hosts_or_anothers(new_sandbox: Callable[[], Sandbox]):
    """By file system and inode."""
    attack = IDENTITIES % (PLACES,)
    first, second = new_sandbox(), new_sandbox()
    one, other = first.python(attack), second.python(attack)
    assert one["sandbox-init"] != other["sandbox-init"]
    with_own_devices(first)
    assert [name for name in PLACES if one[name] == other[name]] == []
    host = unconfined(IDENTITIES % (PLACES[:-1],))
    assert [name for name in host if one[name] == host[name]] == []


def test_a_lock_on_a_device_holds_nobody_else_up(new_sandbox: Callable[[], Sandbox]):
    """The control: it does hold up others in the same sandbox."""
    one, other = with_own_devices(new_sandbox()), new_sandbox()
    masked = [path for path in ("/proc/timer_list", "/proc/keys") if os.path.exists(path)]
    hold_locks(one, NODES)
    attack = LOCKED % (NODES,)
    assert set(one.python(attack).values()) == {"EAGAIN"}
    assert set(other.python(attack).values()) == {""}
    assert set(unconfined(attack).values()) == {""}
    # What hides a file of /proc is a device too.
    assert masked
    for sandbox in (one, other):
        inodes = sandbox.python(f"report([os.stat(path).st_dev for path in {masked}])")
        assert os.stat("/dev/null").st_dev not in inodes


WATCH = """
descriptor = libc.inotify_init1(os.O_NONBLOCK)
assert libc.inotify_add_watch(descriptor, b"/dev/null", 0x2) >= 0  # IN_MODIFY
open("/tmp/watching", "w").close()
while not os.path.exists("/tmp/enough"):
    time.sleep(0.01)
try:
    seen = len(os.read(descriptor, 65536))
except BlockingIOError:
    seen = 0
report(seen)
"""


@pytest.mark.parametrize("writer", ["another sandbox", "the host", "itself"])
def test_use_of_a_device_is_seen_by_nobody_else(new_sandbox: Callable[[], Sandbox], writer: str):
    one, other = with_own_devices(new_sandbox()), new_sandbox()
    done = one.run(
        "cat >/tmp/watch.py; setsid python3 -I /tmp/watch.py </dev/zero >/tmp/seen 2>&1 & "
        "until [ -e /tmp/watching ]; do sleep 0.01; done",
        stdin=PRELUDE + WATCH,
    )
    assert done.exit_code == 0, done
    source = "report(os.write(os.open('/dev/null', os.O_WRONLY), b'x'))"
    match writer:
        case "another sandbox":
            other.python(source)
        case "the host":
            unconfined(source)
        case _:
            one.python(source)
    seen = one.run("touch /tmp/enough; until grep -q REPORT /tmp/seen; do sleep 0.01; done; cat /tmp/seen").report
    assert (seen > 0) == (writer == "itself"), seen


def test_the_devices_are_devices(sandbox: Sandbox):
    """The control: nodes of one's own work as the host's do."""
    report = sandbox.python(
        """
        report({
            "null": [len(open("/dev/null", "rb").read()), open("/dev/null", "wb").write(b"x")],
            "zero": list(open("/dev/zero", "rb").read(3)),
            "full": attempt(lambda: os.write(os.open("/dev/full", os.O_WRONLY), b"x")),
            "random": len(set(open("/dev/urandom", "rb").read(64))) > 8,
            "modes": {name: oct(os.stat("/dev/" + name).st_mode) for name in ("null", "tty", "sandbox-init")},
        })
        """.replace("\n        ", "\n"),
        user="user",
    )
    assert report == {
        "null": [0, 1],
        "zero": [0, 0, 0],
        "full": "ENOSPC",
        "random": True,
        "modes": {"null": "0o20666", "tty": "0o20666", "sandbox-init": "0o100555"},
    }


def test_sandbox_init_cannot_be_replaced_or_written(sandbox: Sandbox):
    attacks = {
        "write": "opened('/dev/sandbox-init', os.O_WRONLY)",
        "remove": "attempt(os.unlink, '/dev/sandbox-init')",
        "replace": "attempt(os.rename, '/etc/hostname', '/dev/sandbox-init')",
        "mode": "attempt(os.chmod, '/dev/sandbox-init', 0o777)",
    }
    outcomes = sandbox.outcomes(attacks)
    assert "" not in outcomes.values(), outcomes
    assert sandbox.run("sudo -n id -u", user="user").stdout == "0\n"


def test_the_mount_table_tells_no_path_of_the_host(sandbox: Sandbox):
    """Not even where the daemon lives; the overlay's layers go by short names."""
    table = sandbox.run("cat /proc/self/mountinfo /proc/mounts /proc/self/mountstats").stdout
    assert str(sandbox.daemon.root) not in table
    assert "sandbox-init" in table
    # Each line: id, parent, device, root within its file system, …
    roots = {line.split()[3] for line in sandbox.run("cat /proc/self/mountinfo").stdout.splitlines()}
    roots = {root for root in roots if not root.startswith("/bindfile")}  # the boot id's, by bwrap
    assert roots <= ROOTS, roots - ROOTS


# Whole file systems, those parts of /proc that are read-only or the sandbox's own, and what lies in its /dev.
ROOTS = {"/", *(f"/{name}" for name in PLACES), "/irq", "/sys", "/bus", "/fs", "/sysrq-trigger"}

OPEN_TERMINALS = """
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
held, refused = [], ""
while not refused and len(held) < LIMIT:
    refused = attempt(lambda: held.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)))
report([len(held), refused])
"""


def test_one_sandbox_cannot_take_all_terminals(new_sandbox: Callable[[], Sandbox]):
    """The control: the host gives more than that to one process."""
    limit = f"LIMIT = {MAX_TERMINALS + 10}\n"
    one = new_sandbox()
    assert one.python(limit + OPEN_TERMINALS) == [MAX_TERMINALS, "ENOSPC"]
    assert unconfined(limit + OPEN_TERMINALS)[0] == MAX_TERMINALS + 10
    # They are given back, and another sandbox has its own.
    assert one.python(limit + OPEN_TERMINALS) == [MAX_TERMINALS, "ENOSPC"]
    assert new_sandbox().python("LIMIT = 5\n" + OPEN_TERMINALS) == [5, ""]


@pytest.mark.parametrize("damage", ["other bytes", "short", "long", "mode", "link"])
def test_a_damaged_copy_of_sandbox_init_is_replaced(tmp_path: Path, damage: str):
    """A file of the right name in the runtime directory: the daemon believes its contents only."""
    program = tmp_path / "built"
    program.write_bytes(b"program")
    config = Config(runtime_dir=tmp_path, init=program)
    copy = install_init(config)
    inode = copy.stat().st_ino
    assert install_init(config) == copy
    assert copy.stat().st_ino == inode
    copy.chmod(0o755)
    match damage:
        case "other bytes":
            copy.write_bytes(b"PROGRAM")
        case "short":
            copy.write_bytes(b"prog")
        case "long":
            copy.write_bytes(b"program and more")
        case "link":
            copy.unlink()
            copy.symlink_to("/bin/true")
    if damage in ("other bytes", "short", "long"):
        copy.chmod(0o555)
    assert install_init(config) == copy
    assert (copy.read_bytes(), stat.S_IMODE(copy.lstat().st_mode)) == (b"program", 0o555)
