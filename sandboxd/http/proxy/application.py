"""The reverse proxy: requests for ports of sandboxes, answered by the programs that listen there.

What a dialect recognizes as meant for a port comes here before routing. The client's side is the server's own
HTTP/1.1 or HTTP/2, the program's side h11 (`upstream.py`); between the two pass parsed messages with checked headers
(`headers.py`), never bytes, so that neither side can smuggle anything past the other. Bodies are passed on piece by
piece, each side waiting for the other.
"""

import contextlib
from typing import Any

from sandboxd.errors import NotFound, SandboxdError, Unauthenticated, ungrouped
from sandboxd.http.kit.auth import authorize, bearer_token, find_sandbox
from sandboxd.http.kit.conversation import conversation_of
from sandboxd.http.kit.errors import answer_to
from sandboxd.http.kit.ports import TOKEN_NAME, PortRequest, Scope
from sandboxd.http.proxy.exchange import ProxyExchange
from sandboxd.http.proxy.forwarding import Receive, Send
from sandboxd.http.proxy.headers import TOKEN_HEADER, first, from_another_site, token_of_cookies
from sandboxd.http.proxy.upstream import UpstreamPool
from sandboxd.http.proxy.websocket import ProxyWebsocket
from sandboxd.model import ApiKey
from sandboxd.model import Scope as KeyScope
from sandboxd.service.api import Service
from sandboxd.service.ports import check_port, opens
from sandboxd.service.sandboxes.entry import Entry


class PortProxy:
    """Answers requests and websockets that are for programs. Owns: idle connections to those."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._pool = UpstreamPool(service.ports)

    async def answer(self, wanted: PortRequest, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the program answer; what it is refused for is said in the words of the conversation's dialect."""
        answering = _Answering(send)
        try:
            entry = self._admit(wanted, scope)
            if scope["type"] == "http" and (elsewhere := _redirection(wanted, scope)) is not None:
                await _respond(send, 307, elsewhere, b"")
                return
            with ungrouped(), conversation_of(scope).unanswered():
                await self._relay(wanted, entry, scope, receive, answering)
        except SandboxdError as error:
            if not answering.begun:  # otherwise it is cut off
                await _refuse(error, scope, send)

    async def _relay(self, wanted: PortRequest, entry: Entry, scope: Scope, receive: Receive, send: Send) -> None:
        kind = ProxyWebsocket if scope["type"] == "websocket" else ProxyExchange
        exchange = kind(
            wanted=wanted,
            scope=scope,
            receive=receive,
            send=send,
            limits=self._service.config,
            is_secret=self._service.keys.looks_like_key,
        )
        await exchange.run(self._pool, entry)

    # -- who may -------------------------------------------------------------------------------------------------

    def _admit(self, wanted: PortRequest, scope: Scope) -> Entry:
        """The sandbox, if this client may reach the port. Raises: Unauthenticated, Forbidden, NotFound, …

        A stranger is told the same whether the sandbox or the exposure is missing.
        """
        check_port(wanted.port)
        if wanted.prefix is None:
            with contextlib.suppress(NotFound):
                entry = self._service.sandboxes.entry(wanted.sandbox)
                if self._is_open(wanted, entry, scope):
                    return entry
        return find_sandbox(self._service, self._authorize(wanted, scope), wanted.sandbox)

    def _is_open(self, wanted: PortRequest, entry: Entry, scope: Scope) -> bool:
        exposure = self._service.ports.exposure(entry, wanted.port)
        if exposure is None:
            return False
        return exposure.token_hash is None or any(opens(exposure, token) for token in _tokens(wanted, scope))

    def _authorize(self, wanted: PortRequest, scope: Scope) -> ApiKey | None:
        headers = scope["headers"]
        bearer = bearer_token((first(headers, b"authorization") or b"").decode("latin-1"))
        plain = (first(headers, b"x-api-key") or b"").decode("latin-1") or None
        # Either may be the program's own affair; the one that is a key of ours counts.
        secret = next((given for given in (bearer, plain) if given and self._service.keys.find(given)), None)
        try:
            return authorize(conversation_of(scope), secret, self._service.keys, KeyScope.WRITE)
        except Unauthenticated:
            raise Unauthenticated(
                f"cannot reach port {wanted.port} of {wanted.sandbox!r} without a key of the scope write"
                + ("" if wanted.prefix is not None else ", or, once the port is exposed, its token")
            ) from None


class _Answering:
    """What sends to the client, and knows whether an answer has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def __call__(self, message: dict[str, Any]) -> None:
        self.begun = True
        await self._send(message)


def _tokens(wanted: PortRequest, scope: Scope) -> list[str]:
    headers = scope["headers"]
    cookie = None if from_another_site(headers) else token_of_cookies(headers)
    return [
        *([wanted.token] if wanted.token is not None else []),
        *(value.decode("latin-1") for value in (first(headers, TOKEN_HEADER), cookie) if value is not None),
    ]


def _redirection(wanted: PortRequest, scope: Scope) -> list[tuple[bytes, bytes]] | None:
    """Headers that send a browser elsewhere: behind a forgotten slash, or away from a URL with the token in it."""
    if wanted.path == b"" and wanted.prefix is not None:
        query = b"?" + wanted.query if wanted.query else b""
        return [(b"location", wanted.prefix.encode() + b"/" + query)]
    if wanted.token is None or first(scope["headers"], b"sec-fetch-mode") != b"navigate":
        return None
    secure = b"; Secure" if scope["scheme"] == "https" else b""
    cookie = TOKEN_NAME + b"=" + wanted.token.encode("latin-1") + b"; Path=/; HttpOnly; SameSite=Lax" + secure
    return [
        (b"location", b"/" + wanted.target.lstrip(b"/")),
        (b"set-cookie", cookie),
        (b"cache-control", b"no-store"),
    ]


# -- answers of our own -----------------------------------------------------------------------------------------


async def _refuse(error: SandboxdError, scope: Scope, send: Send) -> None:
    answer = answer_to(error, conversation_of(scope).errors)
    # The kind, so that a client can tell our 502 from the program's.
    said = {"content-type": answer.content_type, "x-sandboxd-error": error.kind, **answer.headers}
    headers = [(name.encode(), value.encode("latin-1", "replace")) for name, value in said.items()]
    await _respond(send, answer.status, headers, answer.body, websocket=scope["type"] == "websocket")


async def _respond(
    send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes, *, websocket: bool = False
) -> None:
    kind = "websocket.http.response" if websocket else "http.response"
    length = (b"content-length", str(len(body)).encode())
    await send({"type": f"{kind}.start", "status": status, "headers": [length, *headers]})
    await send({"type": f"{kind}.body", "body": body, "more_body": False})
