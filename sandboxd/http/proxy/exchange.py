"""One proxied request: its body to the program and the program's answer back, both at once."""

from dataclasses import dataclass
from typing import Any

import h11
import trio

from sandboxd.errors import BadGateway, InvalidRequest, SandboxdError, TimedOut, ungrouped
from sandboxd.http.proxy.forwarding import Forwarding
from sandboxd.http.proxy.headers import RawHeaders, first, to_client
from sandboxd.http.proxy.upstream import Upstream, UpstreamPool, no_answer
from sandboxd.http.server.exchange import BODY_FOLLOWS
from sandboxd.http.server.peer import stopping_of
from sandboxd.service.sandboxes.entry import Entry

# RFC 9110 §9.2.2: may be asked twice. Only these, without a body, go over a connection that was used before, since
# the program may close it in that very moment; what does not come through is asked again over a fresh one.
_REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})

# In HTTP/2 a body need not be announced; with these methods there hardly ever is one, so it pays to wait and see.
_SELDOM_A_BODY = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})

# Neither is meant for a server behind another: one asks for a tunnel, the other for the request as it arrived.
_UNSUPPORTED = frozenset({"CONNECT", "TRACE"})


@dataclass(eq=False, kw_only=True)
class ProxyExchange(Forwarding):
    """Owns: the connection to the program; it is given back or closed when `run` ends.

    Cancelled: when the client leaves; the program sees its connection closed.
    Raises (from `run`, only before the answer has begun): SandboxdError, what the client is to be told. A later
    failure cuts the answer off, so that half of one never looks whole.
    """

    def __post_init__(self) -> None:
        self._pending: list[Any] = []
        self._has_body = False
        self._begun = False
        self._patience: trio.CancelScope
        """of the attempt under way, for its answer to begin"""

    async def run(self, pool: UpstreamPool, entry: Entry) -> None:
        request = await self._request()
        reuse = not self._has_body and self.scope["method"] in _REPEATABLE
        try:
            if not await self._ask(pool, entry, request, reuse=reuse):
                await self._ask(pool, entry, request, reuse=False)
        except SandboxdError:
            if not self._begun:
                raise

    async def _ask(self, pool: UpstreamPool, entry: Entry, request: h11.Request, *, reuse: bool) -> bool:
        """Whether there was an answer: not on a connection that was used before, and just being closed."""
        upstream = await pool.take(entry, self.wanted.port, reuse=reuse)
        self._patience = trio.CancelScope()  # a scope is entered once, and this may be the second attempt
        try:
            with ungrouped():
                await self._converse(upstream, request)
        except BadGateway:
            upstream.close()
            if self._begun or not upstream.reused:
                raise
            return False
        except BaseException:
            upstream.close()
            raise
        pool.give_back(entry, upstream)
        return True

    async def _converse(self, upstream: Upstream, request: h11.Request) -> None:
        if not self._has_body:
            await upstream.send(request, h11.EndOfMessage())
            await self._answer(upstream)
            return
        await upstream.send(request)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_body, upstream)
            await self._answer(upstream)
            nursery.cancel_scope.cancel("answered")

    # -- to the program ------------------------------------------------------------------------------------------

    async def _request(self) -> h11.Request:
        method = self.scope["method"]
        if method in _UNSUPPORTED:
            raise InvalidRequest(f"cannot pass {method} on to a port")
        return self._head(method, await self._framing())

    async def _framing(self) -> RawHeaders:
        """How the program is told where the body ends. When both are said, chunks count (RFC 9112 §6.3)."""
        given = self.scope["headers"]
        length = first(given, b"content-length")
        if length is not None and first(given, b"transfer-encoding") is None:
            self._has_body = int(length) > 0
            return [(b"content-length", length)]
        if self.scope["http_version"] < "2":
            self._has_body = first(given, b"transfer-encoding") is not None
        else:
            self._has_body = self.scope["method"] not in _SELDOM_A_BODY or await self._body_follows()
        return [(b"transfer-encoding", b"chunked")] if self._has_body else []

    async def _body_follows(self) -> bool:
        self._pending = [await self.receive()]
        return bool(self._pending[0].get("body")) or bool(self._pending[0].get("more_body"))

    async def _send_body(self, upstream: Upstream) -> None:
        """The program may answer before it has read all, and close: then the answer counts, not what it missed."""
        limit = self.limits.ports.response_timeout
        try:
            while self._has_body:
                data = await self._next_piece()
                with trio.fail_after(limit):
                    await upstream.send(*([h11.Data(data=data)] if data else []), *self._end())
        except trio.TooSlowError:
            raise no_answer(self.wanted.port, limit) from None
        except BadGateway:
            pass
        self._patience.deadline = trio.current_time() + limit

    async def _next_piece(self) -> bytes:
        limit = self.limits.http.body_idle_timeout
        with trio.move_on_after(limit) as timer:
            message = self._pending.pop() if self._pending else await self.receive()
        if timer.cancelled_caught:
            raise TimedOut(f"cannot pass the request on: its body did not go on within {limit:g} s")
        self._has_body = message["type"] == "http.request" and message.get("more_body", False)
        return bytes(message.get("body", b""))

    def _end(self) -> list[h11.Event]:
        return [] if self._has_body else [h11.EndOfMessage()]

    # -- to the client -------------------------------------------------------------------------------------------

    async def _answer(self, upstream: Upstream) -> None:
        limit = self.limits.ports.response_timeout
        if not self._has_body:
            self._patience.deadline = trio.current_time() + limit
        with self._patience:
            response = await upstream.receive()
        if self._patience.cancelled_caught:
            raise no_answer(self.wanted.port, limit)
        assert isinstance(response, h11.Response)
        parts, whole = _at_hand(upstream)
        await self._begin(response, body_follows=whole)
        if whole:
            await self._pass_on(b"".join(parts), more=False)
            return
        for part in parts:
            await self._pass_on(part)
        await self._pass_body(upstream, endless=_is_endless(response))

    async def _begin(self, response: h11.Response, *, body_follows: bool) -> None:
        headers = to_client(response.headers, prefix=self.wanted.prefix)
        if self._has_body and self.scope["http_version"] < "2":
            headers.append((b"connection", b"close"))  # nobody will read what is left of the request
        start: dict[str, Any] = {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": headers,
        }
        if body_follows:
            start[BODY_FOLLOWS] = True
        self._begun = True
        await self.send(start)

    async def _pass_body(self, upstream: Upstream, *, endless: bool) -> None:
        if not endless:
            await self._pass_pieces(upstream)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_when_stopping, nursery.cancel_scope)
            await self._pass_pieces(upstream)
            nursery.cancel_scope.cancel("the program has ended it")

    async def _end_when_stopping(self, scope: trio.CancelScope) -> None:
        """A stream of events has no end to wait for when the daemon stops."""
        await stopping_of(self.scope).wait()
        scope.cancel("the daemon is stopping")

    async def _pass_pieces(self, upstream: Upstream) -> None:
        while True:
            with trio.move_on_after(self.limits.ports.idle_timeout) as timer:
                event = await upstream.receive()
            if timer.cancelled_caught:
                raise no_answer(self.wanted.port, self.limits.ports.idle_timeout)
            if not isinstance(event, h11.Data):
                await self._pass_on(b"", more=False)
                return
            await self._pass_on(bytes(event.data))

    async def _pass_on(self, data: bytes, *, more: bool = True) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": more})


def _at_hand(upstream: Upstream) -> tuple[list[bytes], bool]:
    """What has come of the body together with the head, and whether that is all of it."""
    parts: list[bytes] = []
    while isinstance(event := upstream.receive_nowait(), h11.Data):
        parts.append(bytes(event.data))
    return parts, event is not None


def _is_endless(response: h11.Response) -> bool:
    return (first(response.headers, b"content-type") or b"").lower().startswith(b"text/event-stream")
