"""SQLite: what has to survive the daemon. Rows in, frozen values out; no policy.

One connection, one writer thread. WAL with synchronous=NORMAL: a killed daemon loses nothing that was committed; a
power cut may lose the last moments, never consistency (sqlite.org/wal.html), and start-up reconciles with the host
anyway. A sandbox's row is written when all of it is there and removed when its deletion begins.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio
from pydantic import TypeAdapter

from sandboxd.errors import StartupError, Unavailable
from sandboxd.model import (
    ApiKey,
    CommandRecord,
    Event,
    EventKind,
    Exposure,
    Layer,
    Quota,
    Sandbox,
    Scope,
    Snapshot,
    StoredWatch,
    WatchSpec,
)
from sandboxd.threads import run_in_thread, run_in_thread_or_here

T = TypeVar("T")

# Applied in order; PRAGMA user_version counts how many a file has seen. Never edit one that was released.
MIGRATIONS = (
    """
    CREATE TABLE sandboxes (id TEXT PRIMARY KEY, state TEXT NOT NULL, created_at REAL NOT NULL, body TEXT NOT NULL);
    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at REAL NOT NULL, kind TEXT NOT NULL, sandbox TEXT NOT NULL, facts TEXT NOT NULL
    );
    CREATE TABLE keys (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, hash TEXT NOT NULL UNIQUE, scopes TEXT NOT NULL,
        created_at REAL NOT NULL, last_used_at REAL
    );
    """,
    """
    CREATE TABLE commands (id TEXT PRIMARY KEY, sandbox TEXT NOT NULL, created_at REAL NOT NULL, body TEXT NOT NULL);
    CREATE INDEX commands_of ON commands (sandbox);
    """,
    """
    CREATE TABLE watches (id TEXT PRIMARY KEY, sandbox TEXT NOT NULL, created_at REAL NOT NULL, spec TEXT NOT NULL);
    """,
    """
    CREATE TABLE exposures (
        sandbox TEXT NOT NULL, port INTEGER NOT NULL, created_at REAL NOT NULL, expires_at REAL, token_hash TEXT,
        PRIMARY KEY (sandbox, port)
    );
    """,
    """
    CREATE TABLE layers (id TEXT PRIMARY KEY, body TEXT NOT NULL);
    CREATE TABLE snapshots (id TEXT PRIMARY KEY, created_at REAL NOT NULL, body TEXT NOT NULL);
    """,
    # A deadline by both clocks; before it knew the wall's only, as if it had been set in another boot.
    """
    UPDATE sandboxes SET body = json_set(
        body, '$.deadline', json_object('wall', json_extract(body, '$.expires_at'), 'uptime', 0.0, 'boot_id', '')
    ) WHERE json_extract(body, '$.expires_at') IS NOT NULL;
    """,
    """
    ALTER TABLE keys ADD COLUMN quota TEXT NOT NULL DEFAULT '{}';
    ALTER TABLE keys ADD COLUMN own INTEGER NOT NULL DEFAULT 0;
    """,
    # What isolates a sandbox: there was but one thing that could.
    """
    UPDATE sandboxes SET body = json_set(body, '$.spec.backend', 'bwrap');
    UPDATE snapshots SET body = json_set(body, '$.spec.backend', 'bwrap');
    """,
)

# About a month of a busy machine; the oldest go first, a thousand at a time so that pruning is rarely paid for.
EVENTS_KEPT = 100_000
EVENTS_SLACK = 1_000

_SANDBOX = TypeAdapter(Sandbox)
_COMMAND = TypeAdapter(CommandRecord)
_WATCH = TypeAdapter(WatchSpec)
_LAYER = TypeAdapter(Layer)
_SNAPSHOT = TypeAdapter(Snapshot)
_EVENT_COLUMNS = "id, at, kind, sandbox, facts"
_EXPOSURE_COLUMNS = ("sandbox", "port", "created_at", "expires_at", "token_hash")
_KEY_COLUMNS = "id, name, scopes, created_at, last_used_at, quota, own"
_QUOTA = TypeAdapter(Quota)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """An event before the store has numbered it."""

    at: float
    kind: EventKind
    sandbox: str
    facts: Mapping[str, Any]


class Store:
    """Owns: the database connection and its thread limiter.

    Cancelled: a statement that was begun is finished first. Raises: Unavailable if the disk is full or fails.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._log = path.with_name(f"{path.name}-wal")
        self._limiter = trio.CapacityLimiter(1)

    async def save(self, sandbox: Sandbox, events: Sequence[NewEvent] = ()) -> list[Event]:
        """Insert or replace a sandbox, and record what happened to it, in one transaction."""

        def write(db: sqlite3.Connection) -> list[Event]:
            _put_sandbox(db, sandbox)
            return _add_events(db, events)

        return await self._transaction(write)

    async def keep(
        self,
        *,
        layers: Sequence[Layer] = (),
        snapshots: Sequence[Snapshot] = (),
        sandboxes: Sequence[Sandbox] = (),
        events: Sequence[NewEvent] = (),
    ) -> list[Event]:
        """Insert or replace all of these in one transaction."""

        def write(db: sqlite3.Connection) -> list[Event]:
            db.executemany(
                "INSERT OR REPLACE INTO layers VALUES (?, ?)", [(each.id, _json(_LAYER, each)) for each in layers]
            )
            db.executemany(
                "INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?)",
                [(each.id, each.created_at, _json(_SNAPSHOT, each)) for each in snapshots],
            )
            for sandbox in sandboxes:
                _put_sandbox(db, sandbox)
            return _add_events(db, events)

        return await self._transaction(write)

    async def forget_layers(self, layers: Sequence[str]) -> None:
        await self._transaction(
            lambda db: db.executemany("DELETE FROM layers WHERE id = ?", [(each,) for each in layers])
        )

    async def forget_snapshot(self, snapshot: str) -> None:
        await self._transaction(lambda db: db.execute("DELETE FROM snapshots WHERE id = ?", (snapshot,)))

    async def layers(self) -> list[Layer]:
        def read(db: sqlite3.Connection) -> list[Layer]:
            return [_LAYER.validate_json(body) for (body,) in db.execute("SELECT body FROM layers")]

        return await self._transaction(read)

    async def snapshots(self) -> list[Snapshot]:
        """All of them, oldest first."""

        def read(db: sqlite3.Connection) -> list[Snapshot]:
            rows = db.execute("SELECT body FROM snapshots ORDER BY created_at, id")
            return [_SNAPSHOT.validate_json(body) for (body,) in rows]

        return await self._transaction(read)

    async def forget(self, sandbox: str, events: Sequence[NewEvent] = ()) -> list[Event]:
        """Remove a sandbox's row and what hangs on it, and record what happened; nothing if there is no such row."""

        def write(db: sqlite3.Connection) -> list[Event]:
            removed = db.execute("DELETE FROM sandboxes WHERE id = ?", (sandbox,)).rowcount
            db.execute("DELETE FROM commands WHERE sandbox = ?", (sandbox,))
            db.execute("DELETE FROM watches WHERE sandbox = ?", (sandbox,))
            db.execute("DELETE FROM exposures WHERE sandbox = ?", (sandbox,))
            return _add_events(db, events) if removed else []

        return await self._transaction(write)

    async def sandboxes(self) -> list[Sandbox]:
        def read(db: sqlite3.Connection) -> list[Sandbox]:
            rows = db.execute("SELECT body FROM sandboxes ORDER BY created_at, id")
            return [_SANDBOX.validate_json(body) for (body,) in rows]

        return await self._transaction(read)

    async def save_command(self, command: CommandRecord) -> None:
        """Insert or replace a command of a sandbox, unless the sandbox is gone."""

        def write(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO commands SELECT ?1, ?2, ?3, ?4 WHERE EXISTS (SELECT 1 FROM sandboxes WHERE id = ?2)"
                " ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                (command.id, command.sandbox, command.created_at, _COMMAND.dump_json(command).decode()),
            )

        await self._transaction(write)

    async def forget_commands(self, commands: Sequence[str]) -> None:
        await self._transaction(
            lambda db: db.executemany("DELETE FROM commands WHERE id = ?", [(command,) for command in commands])
        )

    async def commands(self) -> list[CommandRecord]:
        """Those of all sandboxes, oldest first."""

        def read(db: sqlite3.Connection) -> list[CommandRecord]:
            rows = db.execute("SELECT body FROM commands ORDER BY created_at, id")
            return [_COMMAND.validate_json(body) for (body,) in rows]

        return await self._transaction(read)

    async def save_watch(self, watch: StoredWatch) -> None:
        """A new one. Nothing happens if its sandbox is gone already."""

        def write(db: sqlite3.Connection) -> None:
            spec = _WATCH.dump_json(watch.spec).decode()
            db.execute(
                "INSERT INTO watches SELECT ?, id, ?, ? FROM sandboxes WHERE id = ?",
                (watch.id, watch.created_at, spec, watch.sandbox),
            )

        await self._transaction(write)

    async def forget_watch(self, watch: str) -> None:
        await self._transaction(lambda db: db.execute("DELETE FROM watches WHERE id = ?", (watch,)))

    async def watches(self) -> list[StoredWatch]:
        """All of them, oldest first."""

        def read(db: sqlite3.Connection) -> list[StoredWatch]:
            rows = db.execute("SELECT id, sandbox, created_at, spec FROM watches ORDER BY created_at, id")
            return [StoredWatch(row[0], row[1], row[2], _WATCH.validate_json(row[3])) for row in rows]

        return await self._transaction(read)

    async def record(self, events: Sequence[NewEvent]) -> list[Event]:
        return await self._transaction(lambda db: _add_events(db, events))

    async def events(self, *, after: int, limit: int, sandbox: str | None = None) -> list[Event]:
        """Events with a greater id than `after`, oldest first."""

        def read(db: sqlite3.Connection) -> list[Event]:
            rows = db.execute(
                f"SELECT {_EVENT_COLUMNS} FROM events WHERE id > ?1 AND (?2 IS NULL OR sandbox = ?2)"
                " ORDER BY id LIMIT ?3",
                (after, sandbox, limit),
            )
            return [_event(row) for row in rows]

        return await self._transaction(read)

    async def last_event(self) -> int:
        """Id of the newest event; 0 if there was never one."""

        def read(db: sqlite3.Connection) -> int:
            return int(db.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0])

        return await self._transaction(read)

    async def add_key(self, key: ApiKey, hashed: str) -> None:
        def write(db: sqlite3.Connection) -> None:
            scopes, quota = ",".join(sorted(key.scopes)), _QUOTA.dump_json(key.quota).decode()
            db.execute(
                "INSERT INTO keys VALUES (?, ?, ?, ?, ?, NULL, ?, ?)",
                (key.id, key.name, hashed, scopes, key.created_at, quota, key.own),
            )

        await self._transaction(write)

    async def keys(self) -> list[tuple[ApiKey, str]]:
        """All keys with their hashes, oldest first."""

        def read(db: sqlite3.Connection) -> list[tuple[ApiKey, str]]:
            rows = db.execute(f"SELECT {_KEY_COLUMNS}, hash FROM keys ORDER BY created_at, id")
            return [(_key(row[:-1]), row[-1]) for row in rows]

        return await self._transaction(read)

    async def remove_key(self, key: str) -> bool:
        """Whether there was such a key."""
        return await self._transaction(lambda db: db.execute("DELETE FROM keys WHERE id = ?", (key,)).rowcount > 0)

    async def touch_keys(self, used: Mapping[str, float]) -> None:
        """Note when keys were last used."""

        def write(db: sqlite3.Connection) -> None:
            db.executemany("UPDATE keys SET last_used_at = ? WHERE id = ?", [(at, key) for key, at in used.items()])

        await self._transaction(write)

    async def save_exposure(self, exposure: Exposure) -> None:
        """Insert or replace."""
        row = tuple(getattr(exposure, name) for name in _EXPOSURE_COLUMNS)
        await self._transaction(lambda db: db.execute("INSERT OR REPLACE INTO exposures VALUES (?, ?, ?, ?, ?)", row))

    async def exposures(self) -> list[Exposure]:
        def read(db: sqlite3.Connection) -> list[Exposure]:
            rows = db.execute(f"SELECT {', '.join(_EXPOSURE_COLUMNS)} FROM exposures ORDER BY sandbox, port")
            return [Exposure(**dict(zip(_EXPOSURE_COLUMNS, row, strict=True))) for row in rows]

        return await self._transaction(read)

    async def remove_exposure(self, sandbox: str, port: int) -> None:
        await self._transaction(
            lambda db: db.execute("DELETE FROM exposures WHERE sandbox = ? AND port = ?", (sandbox, port))
        )

    async def sync(self) -> None:
        """Have what was recorded so far outlive a power cut, before something is done that cannot be undone.

        By itself that comes to be some seconds later.
        """
        await run_in_thread(_sync, self._log)

    async def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await run_in_thread_or_here(partial(self._run, work), limiter=self._limiter)

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            with self._connection as db:
                return work(db)
        except sqlite3.OperationalError as error:
            raise Unavailable(
                f"cannot record the change: {error}; free space in the state directory: "
                "delete sandboxes or snapshots that nobody needs",
                kind="no_space" if _is_full(error) else None,
            ) from error


def _sync(log: Path) -> None:
    """SQLite's locks are on its other two files: this one may be opened and closed beside it."""
    try:
        with open(log, "rb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise Unavailable(f"cannot record the change: {log}: {error.strerror}") from error


def _is_full(error: sqlite3.OperationalError) -> bool:
    """What Python's module says itself, and not SQLite, has no code."""
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _put_sandbox(db: sqlite3.Connection, sandbox: Sandbox) -> None:
    db.execute(
        "INSERT INTO sandboxes VALUES (?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET state = excluded.state, body = excluded.body",
        (sandbox.id, sandbox.state, sandbox.created_at, _json(_SANDBOX, sandbox)),
    )


def _json(kind: TypeAdapter[T], value: T) -> str:
    return kind.dump_json(value, fallback=dict, warnings=False).decode()  # model.EMPTY is no dict


def _add_events(db: sqlite3.Connection, events: Iterable[NewEvent]) -> list[Event]:
    added = []
    for event in events:
        values = (event.at, event.kind, event.sandbox, json.dumps(dict(event.facts)))
        number = (
            db.execute("INSERT INTO events (at, kind, sandbox, facts) VALUES (?, ?, ?, ?)", values).lastrowid or 0
        )
        added.append(Event(id=number, at=event.at, kind=event.kind, sandbox=event.sandbox, facts=event.facts))
        if number % EVENTS_SLACK == 0:
            db.execute("DELETE FROM events WHERE id <= ?", (number - EVENTS_KEPT,))
    return added


def _event(row: Sequence[Any]) -> Event:
    number, at, kind, sandbox, facts = row
    return Event(id=number, at=at, kind=EventKind(kind), sandbox=sandbox, facts=json.loads(facts))


def _key(row: Sequence[Any]) -> ApiKey:
    number, name, scopes, created_at, last_used_at, quota, own = row
    return ApiKey(
        id=number,
        name=name,
        scopes=frozenset(Scope(scope) for scope in scopes.split(",")),
        created_at=created_at,
        last_used_at=last_used_at,
        quota=_QUOTA.validate_json(quota),
        own=bool(own),
    )


@contextlib.asynccontextmanager
async def open_store(path: Path) -> AsyncIterator[Store]:
    """Open the database, bring its schema up to date, and close it with the block. Raises: StartupError."""
    connection = await run_in_thread(_connect, path)
    try:
        yield Store(connection, path)
    finally:
        connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    _close_files(path)
    try:
        connection = sqlite3.connect(path, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            _migrate(connection)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise StartupError(f"cannot open the database {path}: {error}") from error
    return connection


def _close_files(path: Path) -> None:
    """Make the database if it is missing, and let nobody else read it: keys' hashes, environments, metadata.

    SQLite gives its journal and index the mode of the database when it makes them; those of before may have another.
    """
    try:
        _close_file(path, os.O_CREAT)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                _close_file(Path(f"{path}{suffix}"))
    except OSError as error:
        raise StartupError(f"cannot open the database {error.filename}: {error.strerror}") from error


def _close_file(file: Path, flags: int = 0) -> None:
    descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise StartupError(f"{file} is another user's: chown it to the daemon's user, or remove it")
        if found.st_mode & 0o077:
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def _migrate(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise sqlite3.DatabaseError(f"it was written by a newer sandboxd (schema {version}, known {len(MIGRATIONS)})")
    for number, statements in enumerate(MIGRATIONS[version:], version + 1):
        connection.executescript(f"BEGIN; {statements} PRAGMA user_version = {number}; COMMIT;")
