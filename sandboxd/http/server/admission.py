"""Which connections a listener has room for, and whom it lets go to make room. Knows no socket and no clock.

Every listener has slots of its own, so that whoever fills one of them leaves the others alone. Within it no peer may
hold more than its share. When slots are short, one of those goes on which no request is under way: of the peer that
has most of them, the one that has waited longest. So a flood of connections pushes itself out, and one that is new
stays long enough to say what it wants. A peer at its own limit makes room among its own only.

Root and the daemon's own user, who come through the Unix socket, are always let in: who administers the daemon is not
to wait for those who attack it.
"""

import ipaddress
import os
from collections import defaultdict
from collections.abc import Callable, Hashable

from sandboxd.http.server.peer import Peer


class NoSlotError(Exception):
    """There is no room for a connection; the text says why, and what would give more."""


class Slot:
    """One connection's place at a listener. Its owner says when a request is under way, and releases it at last."""

    __slots__ = ("_peer", "let_go")

    def __init__(self, peer: "_PeerSlots") -> None:
        self._peer: _PeerSlots | None = peer
        self.let_go: Callable[[], None] = _nothing
        """called when the connection has to leave; its slot is another's by then"""
        peer.held += 1
        peer.listener.held += 1
        peer.wait(self)

    def another(self) -> "Slot":
        """A further one, for a request beside the one under way here. Raises: `NoSlotError`."""
        if self._peer is None:
            raise NoSlotError("this connection has to leave")
        slot = self._peer.claim()
        slot.begin()
        return slot

    def begin(self) -> None:
        """A request is under way: the connection stays."""
        if self._peer is not None:
            self._peer.stop_waiting(self)

    def rest(self) -> None:
        """Nothing is under way: the connection may have to leave."""
        if self._peer is not None:
            self._peer.wait(self)

    def release(self) -> None:
        """Give the place back; a second time does nothing."""
        if self._peer is not None:
            self._peer.stop_waiting(self)
            self._peer.held -= 1
            self._peer.listener.held -= 1
            self._peer = None
            self.let_go = _nothing


class _PeerSlots:
    """What one peer holds of a listener's slots, and which of its connections wait, the longest first."""

    __slots__ = ("held", "listener", "most", "waiting")

    def __init__(self, listener: "_ListenerSlots", most: int) -> None:
        self.listener = listener
        self.most = most
        self.held = 0
        self.waiting: dict[Slot, None] = {}

    def claim(self) -> Slot:
        """One more, letting another go if need be. Raises: `NoSlotError`."""
        if self.held >= self.most and not self.make_room():
            raise NoSlotError(f"{self.held} of yours are in use; http.max_connections_per_peer allows no more")
        if self.listener.held >= self.listener.most and not self.listener.make_room():
            raise NoSlotError(f"{self.listener.held} are in use; http.max_connections allows no more")
        return Slot(self)

    def wait(self, slot: Slot) -> None:
        if slot not in self.waiting:
            self.waiting[slot] = None
            self.listener.note(self, len(self.waiting) - 1)

    def stop_waiting(self, slot: Slot) -> None:
        if slot in self.waiting:
            del self.waiting[slot]
            self.listener.note(self, len(self.waiting) + 1)

    def make_room(self) -> bool:
        """Let the one go that has waited longest; False where none waits."""
        for slot in self.waiting:
            let_go = slot.let_go
            slot.release()
            let_go()
            return True
        return False


class _TrustedSlots(_PeerSlots):
    """Those of the daemon's administrators: no limit keeps them out, only what waits has to leave."""

    __slots__ = ()

    def claim(self) -> Slot:
        if self.held >= self.most:
            self.make_room()
        return Slot(self)


class _ListenerSlots:
    """How many are held in all, and the peers by how many connections of theirs wait."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self._by_waiting: defaultdict[int, dict[_PeerSlots, None]] = defaultdict(dict)
        self._most = 0

    def note(self, peer: _PeerSlots, before: int) -> None:
        """So many of this peer's waited until now."""
        now = len(peer.waiting)
        self._by_waiting[before].pop(peer, None)
        if now:
            self._by_waiting[now][peer] = None
            self._most = max(self._most, now)

    def make_room(self) -> bool:
        """Let one go, of the peer that has most waiting; False where none waits."""
        while self._most and not self._by_waiting[self._most]:
            del self._by_waiting[self._most]
            self._most -= 1
        peer = next(iter(self._by_waiting[self._most]), None) if self._most else None
        return peer is not None and peer.make_room()


class ConnectionSlots:
    """The slots of one listener: at most `total`, and `per_peer` of them to one address, /64 or user."""

    def __init__(self, *, total: int, per_peer: int) -> None:
        self._per_peer = per_peer
        self._listener = _ListenerSlots(total)
        self._trusted = _TrustedSlots(_ListenerSlots(total), total)
        self._peers: dict[Hashable, _PeerSlots] = {}

    def take(self, peer: Peer) -> Slot:
        """A slot for a new connection of `peer`, letting another go if need be. Raises: `NoSlotError`."""
        return (self._trusted if is_trusted(peer) else self._slots_of(peer)).claim()

    def make_room(self) -> bool:
        """Let one connection go that waits: there is not even a descriptor for another one. False: all are busy."""
        return self._listener.make_room() or self._trusted.make_room()

    def _slots_of(self, peer: Peer) -> _PeerSlots:
        """Those of its peer. Peers that have left are forgotten now and then: one by one would cost more."""
        if len(self._peers) > 2 * self._listener.most:
            self._peers = {key: slots for key, slots in self._peers.items() if slots.held}
        key = peer_key(peer)
        if key not in self._peers:
            self._peers[key] = _PeerSlots(self._listener, self._per_peer)
        return self._peers[key]


def peer_key(peer: Peer) -> Hashable:
    """What counts as one peer: a user on a Unix socket, an IPv4 address, the /64 that an IPv6 host has for itself."""
    if peer.credentials is not None:
        return peer.credentials.uid
    assert peer.address is not None
    address = ipaddress.ip_address(peer.address[0].partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or int(address) >> 64
    return address


def is_trusted(peer: Peer) -> bool:
    """Whether it is root or the daemon's own user, on the Unix socket."""
    return peer.credentials is not None and peer.credentials.uid in {0, os.geteuid()}


def _nothing() -> None:
    pass
