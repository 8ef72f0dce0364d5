"""Who asks, what they may, and which thing they mean: all settled once, before a handler runs.

On a Unix socket the file's mode and group decide who can connect, and whoever can is an administrator. Over TCP
every request carries a key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`; a key has scopes, and `admin`
includes `write`, which includes `read`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from werkzeug.datastructures import Headers

from sandboxd.errors import Forbidden, NotFound, Unauthenticated
from sandboxd.http.kit.conversation import Conversation
from sandboxd.model import ApiKey, Scope, Snapshot
from sandboxd.service.access.keys import Keys
from sandboxd.service.api import Service
from sandboxd.service.sandboxes.entry import Entry

_INCLUDES = {
    Scope.READ: frozenset({Scope.READ, Scope.WRITE, Scope.ADMIN}),
    Scope.WRITE: frozenset({Scope.WRITE, Scope.ADMIN}),
    Scope.ADMIN: frozenset({Scope.ADMIN}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request says of who asks, and about what."""

    conversation: Conversation
    headers: Headers
    arguments: Mapping[str, str]
    """the query, decoded; of a name that occurs twice the first value"""
    parameters: Mapping[str, str]
    """of the path, or of the host name"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A request that was allowed: whose it is, and what it names, which was looked up once.

    From here on the thing itself is used, and never again its name: that may be another's a moment later.
    """

    caller: ApiKey | None
    """the key that was used; None for an administrator on the Unix socket, or where everyone may come"""
    entry: Entry | None = None
    snapshot: Snapshot | None = None


Authorize = Callable[[Service, Asked, Scope | None], Grant]
"""How a dialect authorises a request for a route of this scope. Raises: Unauthenticated, Forbidden, NotFound, …"""


def by_key(service: Service, asked: Asked, needed: Scope | None) -> Grant:
    """With an API key; the parameters `sandbox` and `snapshot` are names or ids of what the caller must see.

    Raises: Unauthenticated, Forbidden, TooManyRequests, NotFound.
    """
    caller = authorize(asked.conversation, secret_of(asked.headers), service.keys, needed)
    if caller is not None:
        service.keys.rates.admit(caller)
    sandbox, snapshot = asked.parameters.get("sandbox"), asked.parameters.get("snapshot")
    return Grant(
        caller=caller,
        entry=None if sandbox is None else find_sandbox(service, caller, sandbox),
        snapshot=None if snapshot is None else find_snapshot(service, caller, snapshot),
    )


def authorize(conversation: Conversation, secret: str | None, keys: Keys, needed: Scope | None) -> ApiKey | None:
    """The key that is used; None for an administrator on the Unix socket, or where everyone may come.

    The conversation ends when that key is revoked.

    Raises: Unauthenticated without a known key, Forbidden when it lacks the scope.
    """
    if needed is None or conversation.peer.credentials is not None:
        return None
    if secret is None:
        raise Unauthenticated(
            "cannot serve this without a key: send `Authorization: Bearer KEY` or `X-API-Key: KEY`; "
            "`sandboxctl key create NAME` on the daemon's machine makes one"
        )
    key = keys.find(secret)
    if key is None:
        raise Unauthenticated("cannot accept this key: it is unknown or was revoked")
    if not key.scopes & _INCLUDES[needed]:
        raise Forbidden(
            f"cannot allow this with key {key.name!r}: it needs the scope {needed}", needed=needed, key=key.id
        )
    conversation.begin(keys, key)
    return key


def sees(caller: ApiKey | None, owner: str | None) -> bool:
    """Whether what that owner has is there for the caller; only a key with `own` is kept to its own."""
    return caller is None or not caller.own or Scope.ADMIN in caller.scopes or owner == caller.id


def find_sandbox(service: Service, caller: ApiKey | None, name: str) -> Entry:
    """By id or by name, among those that the caller sees. Raises: NotFound."""
    try:
        entry = service.sandboxes.entry(name)
    except NotFound:
        if sees(caller, None):
            raise
    else:
        if sees(caller, entry.sandbox.spec.owner):
            return entry
    raise NotFound(f"cannot find sandbox {name!r} among what this key has created", sandbox=name)


def find_snapshot(service: Service, caller: ApiKey | None, name: str) -> Snapshot:
    """By id or by name, among those that the caller sees. Raises: NotFound."""
    try:
        snapshot = service.snapshots.layers.snapshot(name)
    except NotFound:
        if sees(caller, None):
            raise
    else:
        if sees(caller, snapshot.spec.owner):
            return snapshot
    raise NotFound(f"cannot find snapshot {name!r} among what this key has created", snapshot=name)


def require_all(caller: ApiKey | None) -> None:
    """That the caller may see what all have. Raises: Forbidden."""
    if caller is not None and not sees(caller, None):
        raise Forbidden(
            f"cannot show this with key {caller.name!r}: it sees its own sandboxes only; name one of them",
            key=caller.id,
        )


def secret_of(headers: Headers) -> str | None:
    """The key that a request carries, in either header."""
    return bearer_token(headers.get("authorization", "")) or headers.get("x-api-key") or None


def bearer_token(authorization: str) -> str | None:
    """What an Authorization header carries, if its scheme is Bearer."""
    scheme, _, token = authorization.partition(" ")
    return (token.strip() or None) if scheme.lower() == "bearer" else None
