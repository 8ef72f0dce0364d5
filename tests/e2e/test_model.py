"""Random lives of many sandboxes and snapshots over a real daemon, held against a model of what there must be.

After every step: the API knows exactly the model's sandboxes and snapshots, and processes, cgroups and files agree
with it. In between the daemon is killed and restarted, with commands in the background that have to live through it.
At the end every sandbox is woken, and every snapshot made a sandbox of, and their files are the model's.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support import witnesses
from tests.support.daemon import Answer, Daemon
from tests.support.waiting import wait_until

SANDBOXES = "/v1/sandboxes"
SNAPSHOTS = "/v1/snapshots"
NAMES = ["one", "two"]
FILES = ["a", "d/b", "d/c"]
EXAMPLES = 8
STEPS = 50
# A restart takes as long as all the rest together: so many steps come between two of them.
STEPS_OF_A_DAEMON = 12
MOST = 8
"""sandboxes at a time: each is one more to look at"""
# What each change makes of a sandbox, by the state it is in; what is not here is refused.
CHANGES = {
    "pause": {"running": "paused"},
    "resume": {"paused": "running"},
    "stop": {"running": "stopped", "paused": "stopped"},
    "start": {"stopped": "running", "exited": "running"},
}
WAKING = {"paused": "resume", "stopped": "start", "exited": "start"}


@dataclass
class Expected:
    """A sandbox as the model has it."""

    id: str
    name: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    background: int = 0
    """processes that run in it though no client follows them"""
    status: str = "running"

    @property
    def live(self) -> bool:
        return self.status in {"running", "paused"}

    def become(self, status: str) -> None:
        self.status = status
        if not self.live:
            self.background = 0


@dataclass(frozen=True)
class Kept:
    """A snapshot as the model has it."""

    id: str
    files: dict[str, str]


class Sandboxes(RuleBasedStateMachine):
    daemon: ClassVar[Daemon]
    sandboxes = Bundle("sandboxes")
    snapshots = Bundle("snapshots")

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[str, Expected] = {}
        self.kept: dict[str, Kept] = {}
        self.steps = 0
        """that this daemon has seen"""

    def post(self, sandbox: Expected, verb: str, body: Any = None) -> Answer:
        return self.daemon.call("POST", f"{SANDBOXES}/{sandbox.id}/{verb}", body)

    def add(self, made: Expected) -> Expected:
        self.alive[made.id] = made
        return made

    # -- coming and going -----------------------------------------------------------------------------------------

    @initialize(target=sandboxes)
    def begin(self) -> Expected:
        return self.add(Expected(self.daemon.create()))

    @precondition(lambda self: len(self.alive) < MOST)
    @rule(target=sandboxes, name=st.sampled_from([None, *NAMES]))
    def create(self, name: str | None) -> Expected | MultipleResults[Expected]:
        answer = self.daemon.call("POST", SANDBOXES, {"name": name, "metadata": {"name": name or "none"}})
        if name is not None and name in {each.name for each in self.alive.values()}:
            assert answer.status == 409
            return multiple()
        assert answer.status == 201, answer.data
        return self.add(Expected(answer.json["id"], name))

    @precondition(lambda self: len(self.alive) < MOST)
    @rule(target=sandboxes, snapshot=snapshots)
    def create_from(self, snapshot: Kept) -> Expected | MultipleResults[Expected]:
        answer = self.daemon.call("POST", SANDBOXES, {"snapshot": snapshot.id})
        if snapshot.id not in self.kept:
            assert answer.status == 404
            return multiple()
        assert answer.status == 201, answer.data
        return self.add(Expected(answer.json["id"], files=dict(snapshot.files)))

    @precondition(lambda self: len(self.alive) <= MOST - 3)
    @rule(target=sandboxes, sandbox=sandboxes, count=st.integers(1, 3))
    def clone(self, sandbox: Expected, count: int) -> MultipleResults[Expected]:
        answer = self.post(sandbox, "clone", {"count": count})
        if sandbox.id not in self.alive:
            assert answer.status == 404
            return multiple()
        assert answer.status == 201, answer.data
        assert (len(answer.json["sandboxes"]), answer.json["errors"]) == (count, [])
        return multiple(
            *(self.add(Expected(each["id"], files=dict(sandbox.files))) for each in answer.json["sandboxes"])
        )

    @rule(sandbox=consumes(sandboxes))
    def delete(self, sandbox: Expected) -> None:
        answer = self.daemon.call("DELETE", f"{SANDBOXES}/{sandbox.id}")
        assert answer.status == (200 if self.alive.pop(sandbox.id, None) else 404)

    # -- in the sandbox -------------------------------------------------------------------------------------------

    @rule(sandbox=sandboxes, file=st.sampled_from(FILES), text=st.text("xyz", max_size=5))
    def write(self, sandbox: Expected, file: str, text: str) -> None:
        answer = self.post(sandbox, "shell", {"cmd": f"mkdir -p ~/d; cat > ~/{file}", "stdin": text})
        assert answer.status == self.status_of_use(sandbox)
        if answer.status == 200:
            sandbox.files[file] = text

    @rule(sandbox=sandboxes, path=st.sampled_from(["a", "d"]))
    def remove(self, sandbox: Expected, path: str) -> None:
        """Over a layer that has them, a file leaves a whiteout, and a directory made again is an opaque one."""
        again = "; mkdir ~/d" if path == "d" else ""
        answer = self.post(sandbox, "shell", {"cmd": f"rm -rf ~/{path}{again}"})
        assert answer.status == self.status_of_use(sandbox)
        if answer.status == 200:
            sandbox.files = {name: text for name, text in sandbox.files.items() if name.split("/")[0] != path}

    def status_of_use(self, sandbox: Expected) -> int:
        """What whoever needs its machine is answered."""
        if sandbox.id not in self.alive:
            return 404
        return 200 if sandbox.status == "running" else 409

    @rule(sandbox=sandboxes)
    def start_in_the_background(self, sandbox: Expected) -> None:
        if self.status_of_use(sandbox) == 200:
            # Not before it is what the model counts: at first it is a shell.
            up = "until grep -qx sleep /proc/$!/comm; do :; done; echo up"
            result = self.daemon.shell(sandbox.id, f"setsid sleep 600 > /dev/null 2>&1 & {up}")
            assert result["stdout"] == "up\n"
            sandbox.background += 1

    @rule(sandbox=sandboxes)
    def look_inside(self, sandbox: Expected) -> None:
        if self.status_of_use(sandbox) == 200:
            self.assert_inside(sandbox)

    def assert_inside(self, sandbox: Expected) -> None:
        read = f"cd; for file in {' '.join(FILES)}; do [ -e $file ] && echo $file=$(cat $file); done; pgrep -c sleep"
        *files, sleepers = self.daemon.shell(sandbox.id, read)["stdout"].split()
        assert dict(line.split("=") for line in files) == sandbox.files
        assert int(sleepers) == sandbox.background

    @rule(sandbox=sandboxes)
    def time_out(self, sandbox: Expected) -> None:
        if self.status_of_use(sandbox) == 200:
            result = self.daemon.shell(sandbox.id, "setsid sleep 601 & sleep 602", timeout_ms=100)
            assert result["timed_out"]

    # -- sleep and expiry -----------------------------------------------------------------------------------------

    @rule(sandbox=sandboxes, verb=st.sampled_from(sorted(CHANGES)))
    def change(self, sandbox: Expected, verb: str) -> None:
        answer = self.post(sandbox, verb)
        after = CHANGES[verb].get(sandbox.status)
        assert answer.status == (404 if sandbox.id not in self.alive else 200 if after else 409)
        if answer.status == 200:
            assert answer.json["status"] == after
            sandbox.become(str(after))

    @rule(sandbox=sandboxes, action=st.sampled_from(["kill", "pause", "stop"]))
    def expire(self, sandbox: Expected, action: str) -> None:
        if sandbox.id not in self.alive:
            return
        assert self.post(sandbox, "timeout", {"timeout_ms": 1, "on_timeout": action}).status == 200
        if action == "kill":
            wait_until(lambda: self.daemon.call("GET", f"{SANDBOXES}/{sandbox.id}").status == 404)
            del self.alive[sandbox.id]
            return
        after = CHANGES[action].get(sandbox.status, sandbox.status)
        wait_until(lambda: self.daemon.view(sandbox.id)["end_at"] is None)
        wait_until(lambda: self.daemon.view(sandbox.id)["status"] == after)
        sandbox.become(after)
        # Its lifetime was used up, and would begin anew with the next start.
        assert self.post(sandbox, "timeout", {"timeout_ms": None}).status == 200

    @rule(sandbox=sandboxes)
    def kill_init(self, sandbox: Expected) -> None:
        if sandbox.id in self.alive and sandbox.live:
            os.kill(witnesses.init_of(sandbox.id), signal.SIGKILL)
            wait_until(lambda: self.daemon.view(sandbox.id)["status"] == "exited")
            sandbox.become("exited")

    # -- snapshots ------------------------------------------------------------------------------------------------

    @rule(target=snapshots, sandbox=sandboxes)
    def snapshot(self, sandbox: Expected) -> Kept | MultipleResults[Kept]:
        answer = self.post(sandbox, "snapshot")
        if sandbox.id not in self.alive:
            assert answer.status == 404
            return multiple()
        assert answer.status == 201, answer.data
        kept = Kept(answer.json["id"], dict(sandbox.files))
        self.kept[kept.id] = kept
        return kept

    @rule(sandbox=sandboxes, snapshot=snapshots)
    def restore(self, sandbox: Expected, snapshot: Kept) -> None:
        answer = self.post(sandbox, "restore", {"snapshot": snapshot.id})
        if sandbox.id not in self.alive or snapshot.id not in self.kept:
            assert answer.status == 404
            return
        assert answer.status == 200, answer.data
        sandbox.files, sandbox.background = dict(snapshot.files), 0
        sandbox.status = "running" if sandbox.live else sandbox.status

    @rule(snapshot=snapshots)
    def delete_snapshot(self, snapshot: Kept) -> None:
        answer = self.daemon.call("DELETE", f"{SNAPSHOTS}/{snapshot.id}")
        assert answer.status == (200 if self.kept.pop(snapshot.id, None) else 404)

    # -- the daemon -----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.steps >= STEPS_OF_A_DAEMON)
    @rule(gracefully=st.booleans())
    def restart(self, gracefully: bool) -> None:
        if gracefully:
            assert self.daemon.stop() == 0
        else:
            self.daemon.kill()
        self.daemon.start()
        self.steps = 0

    @invariant()
    def what_there_is_is_what_there_must_be(self) -> None:
        self.steps += 1
        views = self.daemon.views()
        # Oldest first; clones are made side by side.
        assert sorted((view["id"], view["name"], view["status"]) for view in views) == sorted(
            (each.id, each.name, each.status) for each in self.alive.values()
        )
        assert [each["id"] for each in self.daemon.snapshots()] == list(self.kept)
        assert witnesses.disagreement(self.daemon, ignore=witnesses.IN_THE_BACKGROUND) == {}

    def teardown(self) -> None:
        try:
            for sandbox in self.alive.values():
                self.assert_whole(sandbox)
            for kept in self.kept.values():
                self.assert_inside(Expected(self.daemon.create(snapshot=kept.id), files=kept.files))
        finally:
            self.daemon.delete_all()
        assert witnesses.disagreement(self.daemon) == {}

    def assert_whole(self, sandbox: Expected) -> None:
        """Whatever state it is in: it can be woken, and has the model's files."""
        if sandbox.status in WAKING:
            assert self.post(sandbox, WAKING[sandbox.status]).status == 200
        self.assert_inside(sandbox)


@pytest.fixture
def modelled(own_daemon: Daemon) -> Iterator[None]:
    Sandboxes.daemon = own_daemon.start()
    yield
    del Sandboxes.daemon


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_any_life_of_sandboxes_and_snapshots_is_as_the_model_has_it(modelled: None) -> None:
    run_state_machine_as_test(
        Sandboxes,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            suppress_health_check=list(HealthCheck),
            # The first failure is told as it is: to shorten it takes a run of them all for each attempt.
            phases=(Phase.reuse, Phase.generate),
        ),
    )
