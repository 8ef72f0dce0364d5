"""Who is let in and who has to leave, without any socket: each decision by itself, then many at random."""

import ipaddress
import os
import random

import pytest

from sandboxd.http.server.admission import ConnectionSlots, NoSlotError, Slot, is_trusted, peer_key
from sandboxd.http.server.peer import Credentials, Peer

OTHER_UID = 54321


def at(address: str) -> Peer:
    return Peer(listener="tcp:x:1", address=(address, 1))


def user(uid: int) -> Peer:
    return Peer(listener="unix:/x", credentials=Credentials(1, uid, uid))


class Room:
    """Slots, and the names of those that were let go, in order."""

    def __init__(self, *, total: int, per_peer: int) -> None:
        self.slots = ConnectionSlots(total=total, per_peer=per_peer)
        self.gone: list[object] = []

    def take(self, peer: Peer, name: object, *, busy: bool = False) -> Slot:
        slot = self.slots.take(peer)
        slot.let_go = lambda: self.gone.append(name)
        if busy:
            slot.begin()
        return slot


def test_the_connection_that_has_waited_longest_makes_room() -> None:
    room = Room(total=3, per_peer=3)
    for number in range(5):
        room.take(at("192.0.2.1"), number)
    assert room.gone == [0, 1]


def test_the_peer_that_has_most_of_them_makes_room() -> None:
    room = Room(total=4, per_peer=4)
    for name in ("first", "a", "b", "c"):
        room.take(at("192.0.2.1" if name == "first" else "192.0.2.2"), name)
    for name in ("x", "y"):
        room.take(at("192.0.2.3"), name)
    assert room.gone == ["a", "b"]


def test_many_small_peers_make_room_one_after_the_other() -> None:
    room = Room(total=4, per_peer=4)
    for number in range(10):
        room.take(at(f"192.0.2.{number}"), number)
    assert room.gone == [0, 1, 2, 3, 4, 5]


def test_a_request_under_way_is_never_cut_off() -> None:
    room = Room(total=2, per_peer=2)
    for name in "ab":
        room.take(at("192.0.2.1"), name, busy=True)
    with pytest.raises(NoSlotError, match=r"2 are in use; http\.max_connections allows"):
        room.take(at("192.0.2.2"), "c")
    assert room.gone == []


def test_idle_time_counts_from_the_last_request() -> None:
    room = Room(total=2, per_peer=2)
    first = room.take(at("192.0.2.1"), "first")
    room.take(at("192.0.2.1"), "second")
    first.begin()
    first.rest()
    room.take(at("192.0.2.1"), "third")
    assert room.gone == ["second"]


def test_a_peer_makes_room_among_its_own_only() -> None:
    room = Room(total=10, per_peer=2)
    room.take(at("192.0.2.9"), "other's")
    for name in "abc":
        room.take(at("192.0.2.1"), name)
    assert room.gone == ["a"]


def test_a_peer_that_is_busy_everywhere_is_told_whose_limit_it_is() -> None:
    room = Room(total=10, per_peer=2)
    for name in "ab":
        room.take(at("192.0.2.1"), name, busy=True)
    with pytest.raises(NoSlotError, match=r"2 of yours .*http\.max_connections_per_peer"):
        room.take(at("192.0.2.1"), "c")
    room.take(at("192.0.2.2"), "another's")


def test_a_released_slot_is_another_s_and_cannot_be_let_go_any_more() -> None:
    room = Room(total=1, per_peer=1)
    first = room.take(at("192.0.2.1"), "first", busy=True)
    first.release()
    first.release()
    first.rest()
    room.take(at("192.0.2.1"), "second")
    assert room.gone == []


@pytest.mark.parametrize("uid", [0, os.geteuid()])
def test_root_and_the_daemons_user_are_always_let_in(uid: int) -> None:
    room = Room(total=2, per_peer=2)
    for number in range(2):
        room.take(user(OTHER_UID), number, busy=True)
    with pytest.raises(NoSlotError):
        room.take(user(OTHER_UID + 1), "other")
    for number in range(20):
        room.take(user(uid), number, busy=True)
    assert room.gone == []


def test_trusted_peers_idle_connections_are_bounded_too() -> None:
    room = Room(total=2, per_peer=2)
    for number in range(5):
        room.take(user(0), number)
    assert room.gone == [0, 1, 2]


def test_over_tcp_nobody_is_trusted() -> None:
    assert is_trusted(user(0))
    assert not is_trusted(at("127.0.0.1"))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%lo", "fe80::2", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    ],
)
def test_what_counts_as_one_peer(one: str, other: str, same: bool) -> None:
    assert (peer_key(at(one)) == peer_key(at(other))) is same


def test_users_are_peers_of_their_own() -> None:
    assert peer_key(user(1)) != peer_key(user(2))


@pytest.mark.parametrize("seed", range(20))
def test_at_random_no_limit_is_passed_and_nobody_busy_is_let_go(seed: int) -> None:
    chance = random.Random(seed)
    total, per_peer = 12, 5
    slots = ConnectionSlots(total=total, per_peer=per_peer)
    held: dict[Slot, tuple[int, bool]] = {}  # its peer, and whether a request is under way

    def let_go(slot: Slot) -> None:
        assert not held.pop(slot)[1]

    for _ in range(2000):
        if held and chance.random() < 0.5:
            slot = chance.choice(list(held))
            peer = held[slot][0]
            if chance.random() < 0.3:
                slot.release()
                del held[slot]
            else:
                held[slot] = (peer, chance.random() < 0.5)
                (slot.begin if held[slot][1] else slot.rest)()
            continue
        peer = chance.randrange(40)
        owners_busy = [owner for owner, busy in held.values() if busy]
        full = len(owners_busy) == total or owners_busy.count(peer) == per_peer
        try:
            slot = slots.take(at(str(ipaddress.ip_address(peer))))
        except NoSlotError:
            assert full
        else:
            assert not full
            slot.let_go = lambda slot=slot: let_go(slot)
            held[slot] = (peer, False)
        owners = [owner for owner, _ in held.values()]
        assert len(owners) <= total
        assert max(map(owners.count, owners), default=0) <= per_peer
