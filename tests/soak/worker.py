"""One client of many: it lives with a few sandboxes of its own, and holds every answer against its model of them."""

import http.client
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.soak.model import ABSENT, TRANSIENT, Expected, Kept
from tests.support.daemon import Answer, Daemon
from tests.support.waiting import wait_until

SANDBOXES = "/v1/sandboxes"
MOST = 5
"""sandboxes of one worker"""
COUNT = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done"
BACK_LIMIT = 90.0
"""seconds until a killed daemon must serve again"""


class Interrupted(Exception):
    """The daemon went away before it answered."""


class Worker:
    """Raises (step): AssertionError when an answer contradicts the model."""

    def __init__(self, number: int, daemon: Daemon, seed: int) -> None:
        self.name = f"worker-{number}"
        self.done: Counter[str] = Counter()
        self._daemon = daemon
        self._chance = random.Random(f"{seed}/{number}")
        self._sandboxes: dict[str, Expected] = {}
        self._snapshots: dict[str, Kept] = {}

    def step(self) -> None:
        """One operation; when the daemon dies under it, find out what has become of it."""
        if not self._sandboxes:
            action, subject = self._create, None
        else:
            subject = self._chance.choice(list(self._sandboxes.values()))
            action = self._chance.choice(self._choices(subject))
        name = action.__name__.strip("_")
        try:
            action(subject) if subject else action()  # type: ignore[call-arg]
        except Interrupted:
            name = f"{name} interrupted"
            self.settle()
        self.done[name] += 1

    def _choices(self, sandbox: Expected) -> list[Callable[..., None]]:
        """What to do next, the likely things more than once."""
        state = next(iter(sandbox.states))
        by_state: dict[str, list[Callable[..., None]]] = {
            "running": [
                *[self._write] * 6, *[self._read] * 6, *[self._count] * 2, *[self._read_counters] * 4,
                *[self._pause] * 2, *[self._stop] * 2, self._restore,
            ],
            "paused": [*[self._resume] * 4, self._stop],
            "stopped": [*[self._start] * 4, self._restore],
        }  # fmt: skip
        anytime = [self._delete, self._snapshot, self._clone, self._delete_snapshot]
        return by_state[state] + anytime

    # -- operations -----------------------------------------------------------------------------------------------

    def _create(self, *_: Expected) -> None:
        made = self._call("POST", SANDBOXES, {"metadata": {"worker": self.name}})
        assert made.status == 201, made
        self._sandboxes[made.json["id"]] = Expected(made.json["id"])

    def _delete(self, sandbox: Expected) -> None:
        sandbox.states |= {"gone"}
        answer = self._call("DELETE", f"{SANDBOXES}/{sandbox.id}")
        assert answer.status == 200, answer
        del self._sandboxes[sandbox.id]

    def _write(self, sandbox: Expected) -> None:
        name, content = self._chance.choice("abcdef"), self._chance.choice(["x", "yy", "z" * 5000])
        sandbox.files[name] = sandbox.may_hold(name) | {content}
        answer = self._shell(sandbox, f"cat > ~/{name}.new && sync ~/{name}.new && mv ~/{name}.new ~/{name}", content)
        assert answer["exit_code"] == 0, answer
        sandbox.files[name] = frozenset({content})

    def _read(self, sandbox: Expected) -> None:
        for name in "abcdef":
            found = self._shell(sandbox, f"cat ~/{name} 2> /dev/null")["stdout"]
            assert found in sandbox.may_hold(name), (sandbox, name, found[:20])
            sandbox.files[name] = frozenset({found})

    def _count(self, sandbox: Expected) -> None:
        if len(sandbox.counters) < 3:
            started = self._call("POST", f"{SANDBOXES}/{sandbox.id}/commands", {"cmd": COUNT})
            assert started.status in {200, 201}, started
            sandbox.counters.append(started.json["command_id"])

    def _read_counters(self, sandbox: Expected) -> None:
        for command in sandbox.counters:
            answer = self._call("GET", f"{SANDBOXES}/{sandbox.id}/commands/{command}/logs")
            assert answer.status == 200, answer
            log = answer.json
            assert log["status"] == "running", log
            numbers = [int(line) for line in log["stdout"].splitlines(keepends=True) if line.endswith("\n")]
            # What was pruned is said; nothing else is missing.
            first = numbers[0] if numbers and log["lost_bytes"] else 0
            assert numbers == list(range(first, first + len(numbers))), log

    def _pause(self, sandbox: Expected) -> None:
        self._change(sandbox, "pause", "paused")

    def _resume(self, sandbox: Expected) -> None:
        self._change(sandbox, "resume", "running")

    def _stop(self, sandbox: Expected) -> None:
        sandbox.machine_ended()
        self._change(sandbox, "stop", "stopped")

    def _start(self, sandbox: Expected) -> None:
        self._change(sandbox, "start", "running")

    def _change(self, sandbox: Expected, verb: str, into: str) -> None:
        sandbox.states |= {into}
        answer = self._call("POST", f"{SANDBOXES}/{sandbox.id}/{verb}")
        assert answer.status == 200, (verb, sandbox, answer)
        assert answer.json["status"] == into, answer
        sandbox.states = frozenset({into})

    def _snapshot(self, sandbox: Expected) -> None:
        if len(self._snapshots) < MOST:
            made = self._call("POST", f"{SANDBOXES}/{sandbox.id}/snapshot", {"metadata": {"worker": self.name}})
            assert made.status == 201, made
            self._snapshots[made.json["id"]] = Kept(made.json["id"], dict(sandbox.files))

    def _delete_snapshot(self, _: Expected) -> None:
        if self._snapshots:
            snapshot = self._chance.choice(list(self._snapshots))
            answer = self._call("DELETE", f"/v1/snapshots/{snapshot}")
            assert answer.status in {200, 409}, answer
            if answer.status == 200:
                del self._snapshots[snapshot]

    def _clone(self, sandbox: Expected) -> None:
        if len(self._sandboxes) < MOST:
            made = self._call("POST", f"{SANDBOXES}/{sandbox.id}/clone", {"count": 1})
            assert made.status == 201, made
            for each in made.json["sandboxes"]:
                self._sandboxes[each["id"]] = sandbox.copied(each["id"])

    def _restore(self, sandbox: Expected) -> None:
        if self._snapshots:
            kept = self._chance.choice(list(self._snapshots.values()))
            before, both = sandbox.files, set(sandbox.files) | set(kept.files)
            old = {name: sandbox.may_hold(name) for name in both}
            new = {name: kept.files.get(name, frozenset({ABSENT})) for name in both}
            sandbox.files = {name: old[name] | new[name] for name in both}
            sandbox.machine_ended()
            sandbox.states |= {"running", "stopped"}
            answer = self._call("POST", f"{SANDBOXES}/{sandbox.id}/restore", {"snapshot": kept.id})
            assert answer.status == 200, (answer, before)
            sandbox.files, sandbox.states = new, frozenset({answer.json["status"]})

    # -- after an interruption ------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Learn what is, and that it is one of the things it may be."""
        wait_until(self._answers, limit=BACK_LIMIT)
        views = {view["id"]: view for view in self._views()}
        for sandbox in list(self._sandboxes.values()):
            state = views.pop(sandbox.id, {"status": "gone"})["status"]
            assert state in sandbox.states, (sandbox, state)
            sandbox.states = frozenset({state})
            if state == "gone":
                del self._sandboxes[sandbox.id]
        for stranger in views:  # a creation or a clone whose answer never came: nobody will miss it
            assert self._call("DELETE", f"{SANDBOXES}/{stranger}").status == 200
        self._settle_snapshots()

    def _settle_snapshots(self) -> None:
        listed = self._call("GET", "/v1/snapshots?limit=1000").json["snapshots"]
        ours = {each["id"] for each in listed if each["metadata"].get("worker") == self.name}
        for snapshot in ours - self._snapshots.keys():
            assert self._call("DELETE", f"/v1/snapshots/{snapshot}").status in {200, 409}
        self._snapshots = {name: kept for name, kept in self._snapshots.items() if name in ours}

    def _views(self) -> list[Any]:
        """Ours, once none of them is on its way from one state to another."""

        def ours() -> list[Any]:
            answer = self._call("GET", f"{SANDBOXES}?limit=1000&metadata.worker={self.name}")
            assert answer.status == 200, answer
            return list(answer.json["sandboxes"])

        views: list[Any] = []

        def settled() -> bool:
            views[:] = ours()
            return all(view["status"] not in TRANSIENT for view in views)

        wait_until(settled, limit=BACK_LIMIT)
        return views

    def _answers(self) -> bool:
        try:
            return self._call("GET", "/v1/health").status == 200
        except Interrupted:
            return False

    # -- the wire -------------------------------------------------------------------------------------------------

    def _shell(self, sandbox: Expected, cmd: str, stdin: str | None = None) -> Any:
        answer = self._call("POST", f"{SANDBOXES}/{sandbox.id}/shell", {"cmd": cmd, "stdin": stdin})
        assert answer.status == 200, (sandbox, answer)
        return answer.json

    def _call(self, method: str, path: str, body: Any = None) -> Answer:
        try:
            answer = self._daemon.call(method, path, body)
        except (OSError, http.client.HTTPException) as failure:
            raise Interrupted from failure
        if answer.status == 503:  # it is stopping
            raise Interrupted
        return answer


class Crew:
    """The workers, each in a thread. Closing the gate lets every operation end and holds the next."""

    def __init__(self, workers: list[Worker]) -> None:
        self.workers = workers
        self.failures: list[str] = []
        self._gate = threading.Condition()
        self._open, self._busy, self._over = True, 0, False
        self._threads = [threading.Thread(target=self._work, args=(worker,)) for worker in workers]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close_gate(self) -> None:
        with self._gate:
            self._open = False
            self._gate.wait_for(lambda: self._busy == 0)

    def open_gate(self) -> None:
        with self._gate:
            self._open = True
            self._gate.notify_all()

    def finish(self) -> None:
        with self._gate:
            self._open = self._over = True
            self._gate.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, worker: Worker) -> None:
        while self._begin():
            try:
                worker.step()
            except Exception as failure:
                self.failures.append(f"{worker.name}: {type(failure).__name__}: {failure}")
                return
            finally:
                self._end()

    def _begin(self) -> bool:
        with self._gate:
            self._gate.wait_for(lambda: self._open)
            self._busy += not self._over
            return not self._over

    def _end(self) -> None:
        with self._gate:
            self._busy -= 1
            self._gate.notify_all()
