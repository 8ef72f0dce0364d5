"""API keys: shown once, stored as a hash, checked in memory.

A key is `sbx_` and 43 random characters, so a plain SHA-256 is enough: there is nothing to guess, and a slow hash
would only slow every request (OWASP's advice on password storage is about low-entropy secrets).
"""

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Protocol

import trio

from sandboxd import clock
from sandboxd.errors import InvalidRequest, NotFound
from sandboxd.model import ApiKey, Quota, Scope
from sandboxd.service.access.quotas import RequestRates
from sandboxd.store import Store

PREFIX = "sbx_"
UNBOUNDED = Quota()
NAME = re.compile(r"[\w .@:/-]{1,64}")
# How often `last_used_at` goes to disk: once per request would make every read a write.
USE_NOTED_EVERY = 60.0


@dataclass(frozen=True, slots=True)
class NewKey:
    key: ApiKey
    secret: str


class Session(Protocol):
    """Something that was opened with a key, and is not to outlive it."""

    def revoke(self) -> None:
        """The key was revoked. It cannot block or fail."""


class Keys:
    """Owns: the keys in memory, always equal to those in the store; it knows what is open with each."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_hash: dict[str, ApiKey] = {}
        self._used: dict[str, float] = {}
        self._sessions: dict[str, set[Session]] = {}
        self.rates = RequestRates()

    async def load(self) -> None:
        self._by_hash = {hashed: key for key, hashed in await self._store.keys()}

    async def create(
        self, name: str, scopes: frozenset[Scope], *, quota: Quota = UNBOUNDED, own: bool = False
    ) -> NewKey:
        """Raises: InvalidRequest."""
        if not NAME.fullmatch(name):
            raise InvalidRequest(
                "cannot create the key: its name must be 1 to 64 letters, digits, spaces or any of _ . @ : / -"
            )
        if not scopes:
            raise InvalidRequest("cannot create a key without a scope: give at least one of read, write, admin")
        secret = PREFIX + secrets.token_urlsafe(32)
        number, now = "key" + secrets.token_hex(6), clock.wall()
        key = ApiKey(id=number, name=name, scopes=scopes, created_at=now, quota=quota, own=own)
        await self._store.add_key(key, _hash(secret))
        self._by_hash[_hash(secret)] = key
        return NewKey(key, secret)

    def get(self, key: str) -> ApiKey | None:
        return next((known for known in self._by_hash.values() if known.id == key), None)

    def all(self) -> list[ApiKey]:
        return list(self._by_hash.values())

    async def revoke(self, key: str) -> None:
        """From now on the key opens nothing, and what was opened with it ends. Raises: NotFound."""
        if not await self._store.remove_key(key):
            raise NotFound(f"cannot find key {key!r}: see GET /v1/keys")
        self._by_hash = {hashed: known for hashed, known in self._by_hash.items() if known.id != key}
        self.rates.forget(key)
        for session in tuple(self._sessions.get(key, ())):
            session.revoke()

    def attach(self, key: ApiKey, session: Session) -> None:
        """Have the session told when the key is revoked. The caller detaches it at its end."""
        self._sessions.setdefault(key.id, set()).add(session)

    def detach(self, key: ApiKey, session: Session) -> None:
        """Undo attach()."""
        sessions = self._sessions[key.id]
        sessions.discard(session)
        if not sessions:
            del self._sessions[key.id]

    def find(self, secret: str) -> ApiKey | None:
        """The key that this secret is. Comparing hashes in a dict tells an attacker nothing about the secret."""
        key = self._by_hash.get(_hash(secret))
        if key is not None:
            self._used[key.id] = clock.wall()
        return key

    def looks_like_key(self, text: str) -> bool:
        """Whether this is one of our keys, or has the form of one: that is a secret, even if it was revoked."""
        return text.startswith(PREFIX) or _hash(text) in self._by_hash

    async def note_uses(self) -> None:
        """A task of the service."""
        while True:
            await trio.sleep(USE_NOTED_EVERY)
            used, self._used = self._used, {}
            if used:
                await self._store.touch_keys(used)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
