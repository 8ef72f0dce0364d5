"""A client's conversation with the daemon, from the check of its key to its last byte, and what ends it early.

A key that is revoked ends what was begun with it. What has not been answered yet is answered with a 401; a stream of
events ends in good order, a websocket is closed with a code that says why; everything else is cut off, so that half
of a file does not look like a whole one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

import trio

from sandboxd.errors import Unauthenticated, Unavailable
from sandboxd.http.kit.errors import ErrorFormat
from sandboxd.http.server.peer import Peer, peer_of, stopping_of
from sandboxd.http.server.stack import ASGIFramework
from sandboxd.model import ApiKey
from sandboxd.service.access.keys import Keys

# Seconds that a stream or a websocket has to end in good order: its client may not be reading.
PATIENCE: Final = 1.0

_KEY: Final = "sandboxd.conversation"


class Conversation:
    """One request or websocket and its answer; a context manager around all of it.

    Owns: its registration with the key that it was begun with. Cancelled by the revocation of that key.
    """

    def __init__(self, scope: Mapping[str, Any], errors: ErrorFormat) -> None:
        self.errors = errors
        """how the dialect that it is held in says errors"""
        self.parameters: Mapping[str, str] = {}
        """what the host name says, if it was that which chose the dialect"""
        self.peer: Peer = peer_of(scope)
        self.stopping: trio.Event = stopping_of(scope)
        """set when the daemon begins to stop: streams end then"""
        self.revoked = False
        self._scope = trio.CancelScope()
        self._end: Callable[[], None] = self.cut
        self._keys: Keys | None = None
        self._key: ApiKey | None = None

    def __enter__(self) -> Self:
        self._scope.__enter__()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._keys is not None and self._key is not None:
            self._keys.detach(self._key, self)
        return self._scope.__exit__(exc_type, exc, traceback)

    def begin(self, keys: Keys, key: ApiKey | None) -> None:
        """It is this key that opened it; None: nothing that could be revoked."""
        if key is not None:
            self._keys, self._key = keys, key
            keys.attach(key, self)

    def revoke(self) -> None:
        """The key was revoked: end what is going on, as gently as it can be ended."""
        self.revoked = True
        self._end()

    @contextmanager
    def unanswered(self) -> Iterator[None]:
        """The block works out what to answer: revoked meanwhile, it is cancelled. Raises: Unauthenticated, then."""
        with trio.CancelScope() as working, self._ended_by(lambda: working.cancel("the key was revoked")):
            yield
        if working.cancelled_caught:
            raise key_revoked()

    @contextmanager
    def ended_gently(self, end: Callable[[], None]) -> Iterator[None]:
        """During the block a revocation calls `end`, and cuts the conversation off some time later only."""

        def end_soon() -> None:
            self._scope.deadline = trio.current_time() + PATIENCE
            end()

        with self._ended_by(end_soon):
            if self.revoked:
                end_soon()
            yield

    @contextmanager
    def _ended_by(self, end: Callable[[], None]) -> Iterator[None]:
        before, self._end = self._end, end
        try:
            yield
        finally:
            self._end = before

    def cut(self) -> None:
        """End it where it is: what was being answered looks as unfinished as it is."""
        self._scope.cancel("the key was revoked")


def conversing(app: ASGIFramework, *, errors: ErrorFormat) -> ASGIFramework:
    """The application, with a conversation around each request and websocket, which conversation_of() finds.

    `errors`: of the conversation until a dialect was chosen.
    """

    async def converse(scope: Any, receive: Any, send: Any) -> None:
        with Conversation(scope, errors) as conversation:
            scope["state"][_KEY] = conversation
            await app(scope, receive, send)

    return converse


def conversation_of(scope: Mapping[str, Any]) -> Conversation:
    """The conversation that an ASGI scope belongs to."""
    conversation: Conversation = scope["state"][_KEY]
    return conversation


def key_revoked() -> Unauthenticated:
    """Why a conversation ends whose key was revoked."""
    return Unauthenticated("cannot go on: the key was revoked", kind="key_revoked")


def stopping() -> Unavailable:
    """Why a stream ends that has no end of its own."""
    return Unavailable("cannot go on: the daemon is stopping", kind="stopping")
