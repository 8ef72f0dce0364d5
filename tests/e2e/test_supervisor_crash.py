"""What supervises one sandbox dies, in whatever state that sandbox is: bwrap, sandbox-init, the fork server."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from sandboxd.service.sandboxes.slots import READY
from tests.e2e.test_crash import restart, start_to_die_at, stopped
from tests.e2e.test_crash_sleep import bring_to
from tests.e2e.test_lifecycle import SANDBOXES
from tests.e2e.test_sleep import TICKS, changed, let_end, stubborn
from tests.support import witnesses
from tests.support.daemon import Answer, Daemon
from tests.support.waiting import wait_until


@contextlib.contextmanager
def under_way(daemon: Daemon, sandbox: str, verb: str, body: object, state: str) -> Iterator[Future[Answer]]:
    """The block runs while that is being done; afterwards its answer is there."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(daemon.call, "POST", f"{SANDBOXES}/{sandbox}/{verb}", body)
        wait_until(lambda: daemon.view(sandbox)["status"] == state)
        yield answer


def assert_whole(daemon: Daemon, sandbox: str) -> None:
    """It can be brought to run, has its files, and is gone without a trace when it is deleted."""
    bring_to(daemon, sandbox, "running")
    assert daemon.shell(sandbox, "cat ~/file")["stdout"] == "kept\n"
    assert witnesses.disagreement(daemon, ignore=("monitors",)) == {}
    daemon.delete(sandbox)
    assert witnesses.disagreement(daemon, ignore=witnesses.IN_THE_BACKGROUND) == {}


VICTIMS = [witnesses.monitor_of, witnesses.init_of]


@pytest.mark.parametrize("victim", VICTIMS, ids=["bwrap", "sandbox-init"])
def test_sigkill_while_paused(daemon: Daemon, victim: Callable[[str], int]) -> None:
    sandbox = daemon.create()
    daemon.shell(sandbox, f"echo kept > ~/file; {TICKS}")
    changed(daemon, sandbox, "pause")
    os.kill(victim(sandbox), signal.SIGKILL)
    if victim is witnesses.monitor_of:
        assert changed(daemon, sandbox, "resume") == "running"
    else:
        wait_until(lambda: daemon.view(sandbox)["status"] == "exited")
        assert changed(daemon, sandbox, "start") == "running"
    assert_whole(daemon, sandbox)


@pytest.mark.parametrize("victim", VICTIMS, ids=["bwrap", "sandbox-init"])
def test_sigkill_while_a_stop_is_under_way(daemon: Daemon, victim: Callable[[str], int]) -> None:
    """Whoever ends the processes: the stop is one that was asked for, and is recorded as that."""
    sandbox = stubborn(daemon)
    daemon.shell(sandbox, "echo kept > ~/file")
    with under_way(daemon, sandbox, "stop", {"grace_ms": 600_000}, "stopping") as answer:
        os.kill(victim(sandbox), signal.SIGKILL)
        if victim is witnesses.monitor_of:
            let_end(daemon, sandbox)
        assert (answer.result().status, answer.result().json["status"]) == (200, "stopped")
    assert daemon.events(sandbox) == ["created", "started", "stopped"]
    changed(daemon, sandbox, "start")
    assert_whole(daemon, sandbox)


def test_sigkill_of_the_fork_server_while_a_start_is_under_way(own_daemon: Daemon) -> None:
    """The start fails and is undone; the next one finds a new fork server."""
    daemon = own_daemon.start()
    sandbox = daemon.create()
    daemon.shell(sandbox, "echo kept > ~/file")
    changed(daemon, sandbox, "stop")
    wait_until(lambda: len(witnesses.slots(daemon)) == READY)  # so that it is asked for nothing else
    fork_server = witnesses.fork_server_of(daemon)
    with stopped(fork_server), under_way(daemon, sandbox, "start", None, "starting") as answer:
        os.kill(fork_server, signal.SIGKILL)
        assert (answer.result().status, answer.result().json["kind"]) == (503, "fork_server_lost")
    assert daemon.view(sandbox)["status"] == "stopped"
    assert changed(daemon, sandbox, "start") == "running"
    assert_whole(daemon, sandbox)


def test_a_crash_of_the_daemon_once_an_end_is_recorded(own_daemon: Daemon) -> None:
    """What the machine held is given back by the next one, and its end is told once."""
    daemon = own_daemon.start()
    sandbox = daemon.create()
    daemon.shell(sandbox, "echo kept > ~/file")
    start_to_die_at(daemon, "exited:confirmed")
    os.kill(witnesses.init_of(sandbox), signal.SIGKILL)
    assert daemon.wait() == -signal.SIGKILL
    restart(daemon)
    assert daemon.view(sandbox)["status"] == "exited"
    assert daemon.events(sandbox) == ["created", "started", "exited"]
    wait_until(lambda: witnesses.ask(daemon)["cgroups"] == frozenset())
    assert changed(daemon, sandbox, "start") == "running"
    assert_whole(daemon, sandbox)
