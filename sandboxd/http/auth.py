"""Who asks, and what they may.

On a Unix socket the file's mode and group decide who can connect, and whoever can is an administrator. Over TCP
every request carries a key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`; a key has scopes, and `admin`
includes `write`, which includes `read`.
"""

from quart import request, websocket
from quart.wrappers.base import BaseRequestWebsocket

from sandboxd.errors import Forbidden, Unauthenticated
from sandboxd.http.peer import Peer, peer_of
from sandboxd.model import Scope
from sandboxd.service.keys import Keys

_INCLUDES = {
    Scope.READ: frozenset({Scope.READ, Scope.WRITE, Scope.ADMIN}),
    Scope.WRITE: frozenset({Scope.WRITE, Scope.ADMIN}),
    Scope.ADMIN: frozenset({Scope.ADMIN}),
}


def authorize_request(keys: Keys, needed: Scope | None) -> None:
    authorize(peer_of(request.scope), _secret(request), keys, needed)


def authorize_websocket(keys: Keys, needed: Scope | None) -> None:
    authorize(peer_of(websocket.scope), _secret(websocket), keys, needed)


def authorize(peer: Peer, secret: str | None, keys: Keys, needed: Scope | None) -> None:
    """Raises: Unauthenticated without a known key, Forbidden when the key lacks the scope."""
    if needed is None or peer.credentials is not None:
        return
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
    return (
        bearer_token(conversation.headers.get("authorization", "")) or conversation.headers.get("x-api-key") or None
    )


def bearer_token(authorization: str) -> str | None:
    scheme, _, token = authorization.partition(" ")
    return (token.strip() or None) if scheme.lower() == "bearer" else None
