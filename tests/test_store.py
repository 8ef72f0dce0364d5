"""The database: what is written survives, in order, whoever dies in between."""

import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from sandboxd import store as store_module
from sandboxd.errors import StartupError, Unavailable
from sandboxd.model import ApiKey, Deadline, EventKind, Limits, Machine, Sandbox, SandboxSpec, SandboxState, Scope
from sandboxd.store import MIGRATIONS, NewEvent, Store, open_store
from tests.support.daemon import CHECKOUT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    async with open_store(path) as opened:
        yield opened


def sandbox(number: int = 1, **changes: object) -> Sandbox:
    spec = SandboxSpec(
        image="d" * 64,
        image_name="base",
        name=f"n{number}",
        env={"A": "ä\n"},
        metadata={"k": "v"},
        limits=Limits(memory=1 << 30, cpus=0.5),
        timeout=60.0,
    )
    values: dict[str, object] = {
        "id": f"s{number}", "state": SandboxState.CREATING, "spec": spec, "created_at": 100.0 + number,
        "range_start": 65536 * number,
    }  # fmt: skip
    return Sandbox(**{**values, **changes})  # type: ignore[arg-type]


def event(kind: EventKind = EventKind.CREATED, name: str = "s1", **facts: object) -> NewEvent:
    return NewEvent(at=5.0, kind=kind, sandbox=name, facts=facts)


async def test_a_sandbox_comes_back_as_it_went(store: Store) -> None:
    deadline = Deadline(wall=2.5, uptime=3.5, boot_id="boot")
    machine = Machine(pid=1, pid_started=2, monitor=3, monitor_started=4, host_boot_id="boot")
    saved = sandbox(state=SandboxState.RUNNING, machine=machine, started_at=1.5, deadline=deadline)
    await store.save(saved)
    assert await store.sandboxes() == [saved]


async def test_a_sandbox_of_defaults_comes_back_too(store: Store) -> None:
    await store.save(sandbox(spec=SandboxSpec(image="", image_name="base")))
    ((found,)) = await store.sandboxes()
    assert (found.spec.env, found.spec.metadata) == ({}, {})


async def test_saving_again_replaces_and_forgetting_removes(store: Store) -> None:
    await store.save(sandbox(1))
    await store.save(sandbox(2))
    changed = sandbox(1, state=SandboxState.EXITED, end_reason="oom")
    await store.save(changed)
    assert await store.sandboxes() == [changed, sandbox(2)]
    await store.forget("s1")
    await store.forget("unknown")
    assert await store.sandboxes() == [sandbox(2)]


async def test_events_are_numbered_in_order_and_kept_with_their_change(store: Store) -> None:
    (first,) = await store.save(sandbox(), [event(name="s1", image="base")])
    second, third = await store.forget("s1", [event(EventKind.EXPIRED), event(EventKind.DELETED)])
    assert [first.id, second.id, third.id] == [1, 2, 3]
    assert first.facts == {"image": "base"}
    assert await store.events(after=0, limit=10) == [first, second, third]
    assert await store.events(after=1, limit=1) == [second]
    assert await store.events(after=3, limit=10) == []
    assert await store.last_event() == 3


async def test_events_of_one_sandbox(store: Store) -> None:
    await store.record([event(name="s1"), event(name="s2"), event(name="s1")])
    assert [each.id for each in await store.events(after=0, limit=10, sandbox="s1")] == [1, 3]


async def test_the_oldest_events_are_dropped_but_numbers_never_reused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "EVENTS_KEPT", 10)
    monkeypatch.setattr(store_module, "EVENTS_SLACK", 5)
    await store.record([event() for _ in range(30)])
    kept = [each.id for each in await store.events(after=0, limit=100)]
    assert kept == list(range(kept[0], 31))
    assert 10 <= len(kept) <= 15


async def test_keys_come_back_without_anybody_knowing_their_secret(store: Store) -> None:
    key = ApiKey(id="k1", name="CI", scopes=frozenset({Scope.READ, Scope.ADMIN}), created_at=7.0)
    await store.add_key(key, "hash")
    await store.touch_keys({"k1": 9.0, "unknown": 9.0})
    ((found, hashed),) = await store.keys()
    assert (found.id, found.scopes, found.last_used_at, hashed) == ("k1", key.scopes, 9.0, "hash")
    assert await store.remove_key("k1")
    assert not await store.remove_key("k1")


async def test_what_was_recorded_before_there_were_several_backends_is_bubblewraps(path: Path) -> None:
    def written(body: object) -> str:
        return json.dumps(body)

    spec = {"image": "d" * 64, "image_name": "base", "name": "old"}
    old = {"id": "s1", "state": "stopped", "spec": spec, "created_at": 1.0, "range_start": 0}
    taken = {"id": "n1", "layer": "l1", "spec": spec, "created_at": 1.0}
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        before = next(n for n, text in enumerate(MIGRATIONS) if "spec.backend" in text)
        for statements in MIGRATIONS[:before]:
            database.executescript(statements)
        database.execute(f"PRAGMA user_version = {before}")
        database.execute("INSERT INTO sandboxes VALUES ('s1', 'stopped', 1.0, ?)", (written(old),))
        database.execute("INSERT INTO snapshots VALUES ('n1', 1.0, ?)", (written(taken),))
    async with open_store(path) as store:
        (found,), (snapshot,) = await store.sandboxes(), await store.snapshots()
    assert (found.spec.name, found.spec.backend, snapshot.spec.backend) == ("old", "bwrap", "bwrap")


async def test_everything_is_there_after_a_restart(path: Path) -> None:
    async with open_store(path) as first:
        await first.save(sandbox(), [event()])
    async with open_store(path) as second:
        assert await second.sandboxes() == [sandbox()]
        (later,) = await second.record([event()])
        assert later.id == 2


KILLED = """
import os, signal, sys, trio
from pathlib import Path
from sandboxd.store import open_store
from tests.test_store import event, sandbox
async def main():
    async with open_store(Path(sys.argv[1])) as store:
        for number in range(20):
            await store.save(sandbox(number), [event()])
        os.kill(os.getpid(), signal.SIGKILL)
trio.run(main)
"""


async def test_what_was_committed_survives_a_kill(path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(path)]
    done = await trio.run_process(command, check=False, cwd=CHECKOUT, capture_stderr=True)
    assert done.returncode == -9, done.stderr
    async with open_store(path) as store:
        assert len(await store.sandboxes()) == await store.last_event() == 20


async def test_a_transaction_that_fails_changes_nothing(store: Store, path: Path) -> None:
    unwritable = NewEvent(at=1.0, kind=EventKind.CREATED, sandbox="s1", facts={"x": object()})
    with pytest.raises(TypeError):
        await store.save(sandbox(), [event(), unwritable])
    assert await store.sandboxes() == []
    assert await store.last_event() == 0


async def test_a_disk_that_fails_is_said_to_be_in_the_way(store: Store, path: Path) -> None:
    store._connection.execute("PRAGMA max_page_count = 8")  # as small as it is now: the next page is one too many
    with pytest.raises(Unavailable, match="free space") as full:
        await store.save(sandbox(1, spec=SandboxSpec(image="", image_name="", env={"A": "x" * 100_000})))
    assert full.value.kind == "no_space"
    assert await store.sandboxes() == []


async def test_many_writers_take_turns(store: Store) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(store.save, sandbox(number), [event()])
    assert [each.id for each in await store.events(after=0, limit=100)] == list(range(1, 51))


@pytest.mark.parametrize("content", [b"this is no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
async def test_a_damaged_file_is_refused_with_its_name(path: Path, content: bytes) -> None:
    await trio.Path(path).write_bytes(content)
    with pytest.raises(StartupError, match=f"cannot open the database {path}"):
        async with open_store(path):
            pass


async def test_a_database_from_the_future_is_refused_and_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(StartupError, match="newer sandboxd"):
        async with open_store(path):
            pass
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (99,)


def test_the_database_can_be_read_by_anybodys_sqlite(path: Path) -> None:
    """State is not locked away: a person with the sqlite3 shell can look."""
    script = "import sys, trio; from pathlib import Path; from sandboxd.store import open_store\n"
    script += "async def main():\n    async with open_store(Path(sys.argv[1])): pass\ntrio.run(main)"
    subprocess.run([sys.executable, "-c", script, str(path)], cwd=CHECKOUT, check=True)
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
