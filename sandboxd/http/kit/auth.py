"""Who asks, and what they may.

On a Unix socket the file's mode and group decide who can connect, and whoever can is an administrator. Over TCP
every request carries a key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`; a key has scopes, and `admin`
includes `write`, which includes `read`.
"""

from dataclasses import dataclass

from quart import request, websocket
from quart.wrappers.base import BaseRequestWebsocket

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


def authorize_request(conversation: Conversation, keys: Keys, needed: Scope | None) -> ApiKey | None:
    """As authorize(), for a request of an API, which counts. Raises also: TooManyRequests."""
    return _count(keys, authorize(conversation, _secret(request), keys, needed))


def authorize_websocket(conversation: Conversation, keys: Keys, needed: Scope | None) -> ApiKey | None:
    """As authorize_request(), for a websocket."""
    return _count(keys, authorize(conversation, _secret(websocket), keys, needed))


def _count(keys: Keys, key: ApiKey | None) -> ApiKey | None:
    if key is not None:
        keys.rates.admit(key)
    return key


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a path names, looked up once: from here on the thing itself is used, and never again its name."""

    entry: Entry | None = None
    snapshot: Snapshot | None = None


def find(service: Service, caller: ApiKey | None, parameters: dict[str, str]) -> Found:
    """Take `sandbox` and `snapshot` out of a path's parameters, and find what they name. Raises: NotFound."""
    sandbox, snapshot = parameters.pop("sandbox", None), parameters.pop("snapshot", None)
    return Found(
        entry=None if sandbox is None else find_sandbox(service, caller, sandbox),
        snapshot=None if snapshot is None else find_snapshot(service, caller, snapshot),
    )


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


def _secret(conversation: BaseRequestWebsocket) -> str | None:
    return (
        bearer_token(conversation.headers.get("authorization", "")) or conversation.headers.get("x-api-key") or None
    )


def bearer_token(authorization: str) -> str | None:
    scheme, _, token = authorization.partition(" ")
    return (token.strip() or None) if scheme.lower() == "bearer" else None
