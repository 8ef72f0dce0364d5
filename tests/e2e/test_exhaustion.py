"""No space, no ids, no processes: a clear answer, and work again when there is room."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandboxd.service.sandboxes.slots import READY
from tests.conftest import daemon_as_user
from tests.support import ordinary_user, witnesses
from tests.support.background import Background
from tests.support.daemon import CHECKOUT, Daemon, running
from tests.support.waiting import wait_until

SANDBOXES = "/v1/sandboxes"


@pytest.fixture
def cramped(own_root_daemon: Daemon) -> Daemon:
    """A daemon whose state directory is a file system of 24 MiB."""
    if os.geteuid() != 0 or not os.path.exists("/dev/loop-control"):
        pytest.skip("needs root and a loop device")
    own_root_daemon.state.mkdir()
    script = str(CHECKOUT / "tests" / "support" / "small_disk.py")
    own_root_daemon.prefix = (sys.executable, "-I", "-S", script, str(own_root_daemon.state), "24", "--")
    return own_root_daemon.start()


def test_a_full_disk(cramped: Daemon) -> None:
    daemon = cramped
    greedy = daemon.create()
    full = daemon.shell(greedy, "head -c 64M /dev/zero > ~/zeros")
    assert full["exit_code"] != 0
    assert "No space left" in full["stderr"]
    answers = [daemon.call("POST", SANDBOXES) for _ in range(3)]
    for answer in answers:
        if answer.status != 201:  # a few blocks may be left, as directories go
            assert answer.status == 503, answer.data
            assert answer.json["kind"] == "no_space"
            assert "delete sandboxes or snapshots" in answer.json["error"]
    assert any(answer.status == 503 for answer in answers)
    # What exists can be asked, used, and above all deleted: that is what makes room.
    assert daemon.view(greedy)["status"] == "running"
    assert daemon.shell(greedy, "echo well")["stdout"] == "well\n"
    daemon.delete_all()
    wait_until(lambda: daemon.call("POST", SANDBOXES).status == 201)
    assert "Traceback" not in daemon.log
    daemon.delete_all()


def test_a_command_whose_output_finds_no_room_goes_on(cramped: Daemon) -> None:
    """What could not be kept is counted, and how it ended is known all the same."""
    greedy = cramped.create()
    background = Background(cramped, cramped.create())
    command = background.start(
        "echo first; read l; head -c 8M /dev/zero | tr '\\0' x; read l; echo last; exit 3", stdin=True
    )
    wait_until(lambda: background.stdout(command) == "first\n")
    cramped.shell(greedy, "head -c 64M /dev/zero > ~/zeros")
    background.post(command, "stdin", {"data": "\n\n"})
    view = background.ended(command)
    assert (view["status"], view["exit_code"]) == ("exited", 3)
    kept = background.stdout(command)
    assert kept.startswith("first\n")
    assert len(kept) < 8_000_000
    assert view["unlogged_bytes"] == len("first\nlast\n") + 8 * 1024 * 1024 - len(kept)
    assert "Traceback" not in cramped.log
    cramped.delete_all()


def test_a_sandbox_that_uses_up_its_processes_hurts_nobody_else(daemon: Daemon) -> None:
    greedy, other = daemon.create(), daemon.create()
    script = (
        "import os, time\n"
        "count = 0\n"
        "try:\n"
        "    while True:\n"
        "        if os.fork() == 0: time.sleep(600)\n"
        "        count += 1\n"
        "except OSError as error: print(count, error.strerror, flush=True)\n"
        "os.kill(0, 9)\n"
    )
    result = daemon.shell(greedy, f"exec python3 -c '{script}'", timeout_ms=50_000)
    count, _, reason = result["stdout"].strip().partition(" ")
    assert reason == "Resource temporarily unavailable"
    assert 100 < int(count) <= 4096
    for sandbox in (other, greedy):  # an ordinary user's share the bound, and thousands take a while to die
        wait_until(lambda sandbox=sandbox: says_well(daemon, sandbox))  # type: ignore[misc]


def says_well(daemon: Daemon, sandbox: str) -> bool:
    answer = daemon.call("POST", f"{SANDBOXES}/{sandbox}/shell", {"cmd": "echo well"})
    return answer.status == 200 and answer.json["stdout"] == "well\n"


def limit_processes(daemon: Daemon, most: int) -> None:
    """Of its user: at 1 neither the daemon nor its fork server can make another process or thread."""
    for pid in (daemon.pid, witnesses.fork_server_of(daemon)):
        ordinary_user.run(["prlimit", "--pid", str(pid), f"--nproc={most}:"])


def test_a_full_process_table(user_image_dir: Path) -> None:
    """What needs no process works; the rest is refused for what it is, whoever finds it so; and then all is well."""
    with running(daemon_as_user(user_image_dir)) as daemon:
        one, still = daemon.create(name="one"), daemon.create(name="still")
        daemon.shell(one, "echo kept > ~/file")
        assert daemon.call("POST", f"{SANDBOXES}/one/snapshot", {"name": "good"}).status == 201
        assert daemon.call("POST", f"{SANDBOXES}/still/stop").status == 200
        wait_until(lambda: witnesses.has_its_slots(daemon, running=1))
        limit_processes(daemon, 1)
        for _ in range(READY):  # these were made before
            daemon.create()
        refused: list[tuple[str, str, object]] = [
            ("POST", SANDBOXES, {}),
            ("POST", SANDBOXES, {"snapshot": "good"}),
            ("POST", f"{SANDBOXES}/one/clone", {}),
            ("POST", f"{SANDBOXES}/still/start", None),
            ("POST", f"{SANDBOXES}/one/restore", {"snapshot": "good"}),
            ("GET", "/v1/snapshots/good/export", None),
        ]
        for method, path, body in refused:
            answer = daemon.call(method, path, body)
            assert (answer.status, answer.json["kind"]) == (503, "no_processes"), (path, answer.data)
        made = [view["id"] for view in daemon.views("status=running")]
        for verb, body in (("snapshot", None), ("pause", None), ("resume", None), ("shell", {"cmd": "echo well"})):
            with ThreadPoolExecutor(READY) as pool:
                answers = pool.map(lambda each: daemon.call("POST", f"{SANDBOXES}/{each}/{verb}", body), made)  # noqa: B023
            for answer in answers:  # a thread is free for some of them
                assert answer.status in {200, 201} or answer.json["kind"] in {"no_processes", "conflict"}, answer.data
        daemon.delete(still)
        wait_until(lambda: "cannot remove what was thrown away yet" in daemon.log)
        limit_processes(daemon, 4000)
        assert daemon.alive
        # Refused was its restore, after it had been stopped or before; and maybe its resume.
        wait_until(lambda: daemon.view("one")["status"] in {"stopped", "paused", "running"})
        for verb in {"stopped": ["start"], "paused": ["resume"], "running": []}[daemon.view("one")["status"]]:
            assert daemon.call("POST", f"{SANDBOXES}/one/{verb}").status == 200
        assert daemon.shell("one", "cat ~/file")["stdout"] == "kept\n"
        assert daemon.shell(daemon.create(), "echo well")["stdout"] == "well\n"
        assert witnesses.disagreement(daemon) == {}
        assert "Traceback" not in daemon.log


def limit_namespaces(daemon: Daemon, name: str, most: int) -> None:
    """Of those that may be made in the user namespace that an ordinary user's daemon lives in."""
    script = f"echo {most} > /proc/sys/user/{name}"
    ordinary_user.run(["nsenter", "-t", str(daemon.pid), "-U", "--preserve-credentials", "sh", "-c", script])


def test_a_limit_on_namespaces_is_not_taken_for_a_full_disk(user_image_dir: Path) -> None:
    """The kernel says ENOSPC of both."""
    with running(daemon_as_user(user_image_dir)) as daemon:
        for name in ("max_mnt_namespaces", "max_net_namespaces"):
            wait_until(lambda: len(witnesses.slots(daemon)) == READY)
            limit_namespaces(daemon, name, 1)
            answers = [daemon.call("POST", SANDBOXES) for _ in range(READY + 1)]
            assert {answer.json["kind"] for answer in answers if answer.status != 201} == {"no_namespaces"}
            assert {answer.status for answer in answers} <= {201, 503}
            limit_namespaces(daemon, name, 100_000)
            assert daemon.shell(daemon.create(), "echo well")["stdout"] == "well\n"
        assert witnesses.disagreement(daemon) == {}


def test_a_low_soft_limit_of_descriptors_does_not_bound_the_sandboxes(own_root_daemon: Daemon) -> None:
    """The usual 1024 would end at some 480 of them: the daemon raises its own limit as far as it may."""
    own_root_daemon.prefix = ("prlimit", "--nofile=128:4096", "--")
    own_root_daemon.start()
    sandboxes = [own_root_daemon.create() for _ in range(80)]
    assert own_root_daemon.shell(sandboxes[-1], "ulimit -Sn")["stdout"] == "1024\n"
