"""Who asks, and what they may.

On a Unix socket the file's mode and group decide who can connect, and whoever can is an administrator. Over TCP
every request carries a key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`; a key has scopes, and `admin`
includes `write`, which includes `read`.
"""

from quart import request, websocket
from quart.wrappers.base import BaseRequestWebsocket

from sandboxd.errors import Forbidden, Unauthenticated
from sandboxd.http.serving import peer_of
from sandboxd.model import Scope
from sandboxd.service.keys import Keys

_INCLUDES = {
    Scope.READ: frozenset({Scope.READ, Scope.WRITE, Scope.ADMIN}),
    Scope.WRITE: frozenset({Scope.WRITE, Scope.ADMIN}),
    Scope.ADMIN: frozenset({Scope.ADMIN}),
}


def authorize_request(keys: Keys, needed: Scope | None) -> None:
    _authorize(request, keys, needed)


def authorize_websocket(keys: Keys, needed: Scope | None) -> None:
    _authorize(websocket, keys, needed)


def _authorize(conversation: BaseRequestWebsocket, keys: Keys, needed: Scope | None) -> None:
    """Raises: Unauthenticated without a known key, Forbidden when the key lacks the scope."""
    if needed is None or peer_of(conversation.scope).credentials is not None:
        return
    secret = _secret(conversation)
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


def _secret(conversation: BaseRequestWebsocket) -> str | None:
    scheme, _, token = conversation.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return conversation.headers.get("x-api-key") or None
