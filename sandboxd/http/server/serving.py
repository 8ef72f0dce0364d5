"""Serving an ASGI application on bound listeners: the accept loop, the peer's identity, start and stop.

hypercorn's own `serve` is not used: any exception in its protocol layer, and one client can cause several, ends the
whole server; and its shutdown lasts as long as a peer cares to stall. Here one connection is one guarded task.
"""

import errno
import logging
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import trio

from sandboxd.errors import first_leaf
from sandboxd.http.server.admission import ConnectionSlots, NoSlotError, Slot
from sandboxd.http.server.listeners import Listener
from sandboxd.http.server.peer import Peer, dialect_of, identify, peer_of, stopping_of
from sandboxd.http.server.stack import ASGIFramework, ConnectionState, HypercornConfig, WorkerContext
from sandboxd.http.server.transport import OutputBudget, Patience, Transport

__all__ = ("Peer", "Server", "ServingLimits", "ServingStatistics", "dialect_of", "peer_of", "serve", "stopping_of")

log = logging.getLogger(__name__)

# Seconds to wait after the process or the host has run out of descriptors or memory: the next accept would fail too.
ACCEPT_PAUSE = 0.1
ACCEPT_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})

# Errors of the one connection that was to be accepted, not of the listener (accept(2)).
ACCEPT_MISSED = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EHOSTDOWN})

# More refusals than this at once are closed without a word.
MAX_REFUSALS = 64
REFUSAL_LINGER = 1.0
REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"content-type: application/json\r\n"
    b"retry-after: 1\r\n"
    b"connection: close\r\n"
    b"content-length: %d\r\n"
    b"\r\n"
    b"%s"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingLimits:
    """Limits of the HTTP layer; seconds and bytes. Those of request bodies are the application's (`HttpApp`)."""

    # Of each listener; of these to one peer (an address, a user), which costs some 20 MB.
    max_connections: int = 4096
    max_connections_per_peer: int = 1024
    # nginx gives a client 60 s for its headers; a program on the same host needs one packet.
    header_timeout: float = 10.0
    # Longer than the pools of common clients keep a connection (httpx 5 s, Go 90 s, urllib3 for ever): the side that
    # sends requests should be the one that closes, or a request meets a closing connection.
    keep_alive_timeout: float = 95.0
    tls_handshake_timeout: float = 10.0
    # How long a closing connection is kept for a peer that takes its response slowly; and, once it has all of it,
    # for one that is still sending: so long after each piece.
    flush_timeout: float = 60.0
    linger: float = 2.0
    # Request line and headers. Some clients put large metadata in headers; hypercorn's default is 16 KiB.
    max_header_bytes: int = 64 * 1024
    # HTTP/2 without TLS, by prior knowledge. Browsers do not speak it, and proxies speak HTTP/1.1 unless told
    # otherwise: it would be there for attackers first.
    cleartext_http2: bool = False
    max_websocket_message: int = 16 * 1024 * 1024
    websocket_ping_interval: float = 20.0


@dataclass(frozen=True, slots=True)
class ServingStatistics:
    """Connections open now, the bytes that they have yet to take, and how many connections there have been: in all,
    turned away, ended by an error."""

    connections: int
    unsent: int
    accepted: int
    refused: int
    failed: int


class Server:
    """The serving side of the daemon for one application.

    Owns: one task per connection, in a nursery that `serve` opens.
    """

    def __init__(self, app: ASGIFramework, *, limits: ServingLimits | None = None) -> None:
        self._app = app
        self._limits = limits or ServingLimits()
        self._config = _hypercorn_config(self._limits)
        self._context = WorkerContext(None)
        self._patience = _patience(self._limits)
        self._stopping = trio.Event()
        self._budget = OutputBudget()
        self._live: set[Transport] = set()
        self._refusing = 0
        self._accepted = 0
        self._refused = 0
        self._failed = 0

    def statistics(self) -> ServingStatistics:
        return ServingStatistics(
            connections=len(self._live),
            unsent=self._budget.used,
            accepted=self._accepted,
            refused=self._refused,
            failed=self._failed,
        )

    async def serve(
        self,
        listeners: Iterable[Listener],
        *,
        stop: trio.Event,
        grace: float,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until `stop` is set; then finish what is under way for at most `grace` seconds.

        Owns: the listeners' sockets, closed once `stop` is set, so that new clients are refused, not kept waiting.
        Cancelled: everything ends at once. Either way nothing a peer does can make it last longer.
        """
        listeners = tuple(listeners)
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(self._accept_all, listener, connections)
                task_status.started()
                await stop.wait()
                accepting.cancel_scope.cancel("serving stops")
            connections.cancel_scope.deadline = trio.current_time() + grace
            await self._retire()

    async def _retire(self) -> None:
        self._stopping.set()
        await self._context.terminated.set()
        for transport in self._live:
            transport.retire()

    async def _accept_all(self, listener: Listener, connections: trio.Nursery) -> None:
        listener.socket.setblocking(False)
        limits = self._limits
        slots = ConnectionSlots(total=limits.max_connections, per_peer=limits.max_connections_per_peer)
        with trio.socket.from_stdlib_socket(listener.socket) as accepting:
            exhausted = False
            while True:
                try:
                    sock, _ = await accepting.accept()
                except OSError as error:
                    if error.errno in ACCEPT_MISSED:
                        continue
                    if error.errno not in ACCEPT_EXHAUSTED:
                        raise
                    if not exhausted:
                        log.error("cannot accept connections on %s: %s", listener.label, error.strerror)
                    exhausted = True
                    slots.make_room()
                    await trio.sleep(ACCEPT_PAUSE)
                else:
                    exhausted = False
                    self._welcome(sock, listener, slots, connections)

    def _welcome(
        self, sock: trio.socket.SocketType, listener: Listener, slots: ConnectionSlots, connections: trio.Nursery
    ) -> None:
        self._accepted += 1
        try:
            peer = identify(sock, listener=listener.label)
            slot = slots.take(peer)
        except OSError:
            sock.close()  # it has left already
        except NoSlotError as error:
            self._refused += 1
            if self._refusing < MAX_REFUSALS and listener.tls is None:
                self._refusing += 1
                connections.start_soon(self._refuse, sock, str(error))
            else:
                sock.close()
        else:
            transport = self._transport(sock, listener, peer, slot)
            slot.let_go = transport.let_go
            connections.start_soon(self._converse, transport, peer, slot)

    async def _converse(self, transport: Transport, peer: Peer, slot: Slot) -> None:
        """One connection, guarded: whatever goes wrong in it, however the peer managed, ends here."""
        self._live.add(transport)
        try:
            await transport.run()
        except Exception as error:
            self._failed += 1
            log.warning("connection of %s ended by %r", peer, first_leaf(error))
            log.debug("its traceback", exc_info=True)
        finally:
            self._live.discard(transport)
            slot.release()

    def _transport(self, sock: trio.socket.SocketType, listener: Listener, peer: Peer, slot: Slot) -> Transport:
        stream: Any = trio.SocketStream(sock)
        if listener.tls is not None:
            stream = trio.SSLStream(stream, listener.tls.context, server_side=True, https_compatible=True)
        return Transport(
            stream,
            app=self._app,
            config=self._config,
            context=self._context,
            client=peer.address,
            state=ConnectionState({"peer": peer, "stopping": self._stopping, "dialect": listener.dialect}),
            patience=self._patience,
            cleartext_http2=self._limits.cleartext_http2,
            slot=slot,
            budget=self._budget,
        )

    async def _refuse(self, sock: trio.socket.SocketType, why: str) -> None:
        """Say why, then wait for the peer to go, or its unread request would turn the answer into a reset."""
        body = f'{{"error": "cannot take another connection: {why}", "kind": "unavailable"}}'.encode()
        try:
            with sock, trio.move_on_after(REFUSAL_LINGER):
                await sock.send(REFUSAL % (len(body), body))
                sock.shutdown(socket.SHUT_WR)
                while await sock.recv(4096):
                    pass
        except OSError:
            pass  # it left first
        finally:
            self._refusing -= 1


async def serve(
    app: ASGIFramework,
    listeners: Iterable[Listener],
    *,
    stop: trio.Event,
    grace: float,
    limits: ServingLimits | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """`Server.serve` for those who need no statistics."""
    await Server(app, limits=limits).serve(listeners, stop=stop, grace=grace, task_status=task_status)


def _patience(limits: ServingLimits) -> Patience:
    return Patience(
        handshake=limits.tls_handshake_timeout,
        headers=limits.header_timeout,
        idle=limits.keep_alive_timeout,
        flush=limits.flush_timeout,
        linger=limits.linger,
        # Two pings unanswered.
        websocket=2.5 * limits.websocket_ping_interval,
    )


def _hypercorn_config(limits: ServingLimits) -> HypercornConfig:
    config = HypercornConfig()
    config.accesslog = None
    config.errorlog = None  # what it would say is said by `exchange` and `_converse`
    config.include_server_header = False
    config.h11_max_incomplete_size = limits.max_header_bytes
    config.h2_max_header_list_size = limits.max_header_bytes
    config.keep_alive_max_requests = 2**63
    config.websocket_max_message_size = limits.max_websocket_message
    config.websocket_ping_interval = limits.websocket_ping_interval
    return config
