"""Random lives of many sandboxes over a real daemon, held against a model of what there must be.

After every step: the API knows exactly the model's sandboxes, and processes, cgroups and files agree with it. In
between the daemon is killed and restarted, with commands in the background that have to live through it.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from tests.conftest import daemon_as_root
from tests.support import witnesses
from tests.support.daemon import Daemon, running
from tests.support.waiting import wait_until

SANDBOXES = "/v1/sandboxes"
NAMES = ["one", "two", "three"]
# What is worth its time: a run of these takes about half a minute, most of it restarts.
EXAMPLES = 8
STEPS = 14
# What each change makes of a sandbox, by the state it is in; what is not here is refused.
CHANGES = {
    "pause": {"running": "paused"},
    "resume": {"paused": "running"},
    "stop": {"running": "stopped", "paused": "stopped"},
    "start": {"stopped": "running", "exited": "running"},
}


@dataclass
class Expected:
    """A sandbox as the model has it."""

    id: str
    name: str | None
    files: dict[str, str] = field(default_factory=dict)
    background: int = 0
    """processes that run in it though no client follows them"""
    status: str = "running"


class Sandboxes(RuleBasedStateMachine):
    daemon: ClassVar[Daemon]
    sandboxes = Bundle("sandboxes")

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[str, Expected] = {}

    def name_is_taken(self, name: str | None) -> bool:
        return name is not None and any(each.name == name for each in self.alive.values())

    @rule(target=sandboxes, name=st.sampled_from([None, None, *NAMES]))
    def create(self, name: str | None) -> Expected:
        answer = self.daemon.call("POST", SANDBOXES, {"name": name, "metadata": {"name": name or "none"}})
        if self.name_is_taken(name):
            assert answer.status == 409
            return next(each for each in self.alive.values() if each.name == name)
        assert answer.status == 201, answer.data
        made = Expected(answer.json["id"], name)
        self.alive[made.id] = made
        return made

    @rule(name=st.sampled_from(NAMES), milliseconds=st.integers(1, 300))
    def create_short_lived(self, name: str, milliseconds: int) -> None:
        answer = self.daemon.call("POST", SANDBOXES, {"name": name, "timeout_ms": milliseconds})
        assert answer.status == (409 if self.name_is_taken(name) else 201)
        if answer.status == 201:
            wait_until(lambda: self.daemon.call("GET", f"{SANDBOXES}/{answer.json['id']}").status == 404)

    @rule(sandbox=consumes(sandboxes))
    def delete(self, sandbox: Expected) -> None:
        answer = self.daemon.call("DELETE", f"{SANDBOXES}/{sandbox.id}")
        assert answer.status == (200 if self.alive.pop(sandbox.id, None) else 404)

    @rule(sandbox=sandboxes, file=st.sampled_from("ab"), text=st.text("xyz", max_size=5))
    def write(self, sandbox: Expected, file: str, text: str) -> None:
        answer = self.daemon.call(
            "POST", f"{SANDBOXES}/{sandbox.id}/shell", {"cmd": f"cat > ~/{file}", "stdin": text}
        )
        assert answer.status == self.status_of_use(sandbox)
        if answer.status == 200:
            sandbox.files[file] = text

    def status_of_use(self, sandbox: Expected) -> int:
        """What whoever needs its machine is answered."""
        if sandbox.id not in self.alive:
            return 404
        return 200 if sandbox.status == "running" else 409

    @rule(sandbox=sandboxes, verb=st.sampled_from(sorted(CHANGES)))
    def change(self, sandbox: Expected, verb: str) -> None:
        answer = self.daemon.call("POST", f"{SANDBOXES}/{sandbox.id}/{verb}")
        after = CHANGES[verb].get(sandbox.status)
        assert answer.status == (404 if sandbox.id not in self.alive else 200 if after else 409)
        if answer.status == 200:
            assert answer.json["status"] == after
            self.become(sandbox, str(after))

    def become(self, sandbox: Expected, status: str) -> None:
        sandbox.status = status
        if status in {"stopped", "exited"}:
            sandbox.background = 0

    @rule(sandbox=sandboxes, action=st.sampled_from(["pause", "stop"]))
    def expire(self, sandbox: Expected, action: str) -> None:
        if sandbox.id in self.alive:
            path = f"{SANDBOXES}/{sandbox.id}/timeout"
            assert self.daemon.call("POST", path, {"timeout_ms": 1, "on_timeout": action}).status == 200
            after = CHANGES[action].get(sandbox.status, sandbox.status)
            wait_until(lambda: self.daemon.view(sandbox.id)["end_at"] is None)
            wait_until(lambda: self.daemon.view(sandbox.id)["status"] == after)
            self.become(sandbox, after)
            # Its lifetime was used up, and would begin anew with the next start.
            assert self.daemon.call("POST", path, {"timeout_ms": None}).status == 200

    @rule(sandbox=sandboxes)
    def kill_init(self, sandbox: Expected) -> None:
        if sandbox.id in self.alive and sandbox.status in {"running", "paused"}:
            os.kill(witnesses.init_of(sandbox.id), signal.SIGKILL)
            wait_until(lambda: self.daemon.view(sandbox.id)["status"] == "exited")
            self.become(sandbox, "exited")

    @rule(sandbox=sandboxes)
    def start_in_the_background(self, sandbox: Expected) -> None:
        if self.status_of_use(sandbox) == 200:
            result = self.daemon.shell(sandbox.id, "setsid sleep 600 > /dev/null 2>&1 & echo up")
            assert result["stdout"] == "up\n"
            sandbox.background += 1

    @rule(sandbox=sandboxes)
    def look_inside(self, sandbox: Expected) -> None:
        if self.status_of_use(sandbox) == 200:
            read = "cd; for file in *; do [ -e $file ] && echo $file=$(cat $file); done; pgrep -c sleep; true"
            *files, sleepers = self.daemon.shell(sandbox.id, read)["stdout"].split()
            assert dict(line.split("=") for line in files) == sandbox.files
            assert int(sleepers) == sandbox.background

    @rule(sandbox=sandboxes)
    def time_out(self, sandbox: Expected) -> None:
        if self.status_of_use(sandbox) == 200:
            result = self.daemon.shell(sandbox.id, "setsid sleep 601 & sleep 602", timeout_ms=100)
            assert result["timed_out"]

    @rule(gracefully=st.booleans())
    def restart(self, gracefully: bool) -> None:
        if gracefully:
            assert self.daemon.stop() == 0
        else:
            self.daemon.kill()
        self.daemon.start()

    @invariant()
    def what_there_is_is_what_there_must_be(self) -> None:
        views = self.daemon.views()
        assert [view["id"] for view in views] == list(self.alive)  # oldest first
        assert [(view["name"], view["status"]) for view in views] == [
            (each.name, each.status) for each in self.alive.values()
        ]
        assert witnesses.disagreement(self.daemon, ignore=witnesses.IN_THE_BACKGROUND) == {}

    def teardown(self) -> None:
        self.daemon.delete_all()
        assert witnesses.disagreement(self.daemon) == {}


@pytest.fixture
def modelled(image_dir: Path) -> Iterator[None]:
    with running(daemon_as_root(image_dir)) as daemon:
        Sandboxes.daemon = daemon
        yield


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_any_life_of_sandboxes_is_as_the_model_has_it(modelled: None) -> None:
    run_state_machine_as_test(
        Sandboxes,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize="CI" in os.environ,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
