"""What first bytes show of whom a client wants to talk to; and that no bytes do more than that."""

import random
import ssl
import struct

import pytest

from sandboxd.gateway.sniff import MAX_HEAD, RAW, Sighting, Speech, classify


def client_hello(name: str | None = "good.com") -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    context.set_alpn_protocols(["h2", "http/1.1"])
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def in_records(hello: bytes, size: int) -> bytes:
    """The same handshake, cut into records of so many bytes."""
    body = hello[5:]
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"\x16\x03\x01" + struct.pack("!H", len(part)) + part for part in parts)


def with_extension(hello: bytes, kind: int, body: bytes) -> bytes:
    """The same ClientHello with another extension at its end."""
    handshake = bytearray(hello[5:])
    at = 4 + 2 + 32
    at += 1 + handshake[at]
    at += 2 + struct.unpack_from("!H", handshake, at)[0]
    at += 1 + handshake[at]
    more = struct.pack("!HH", kind, len(body)) + body
    handshake[at : at + 2] = struct.pack("!H", struct.unpack_from("!H", handshake, at)[0] + len(more))
    handshake += more
    handshake[1:4] = (len(handshake) - 4).to_bytes(3, "big")
    return hello[:3] + struct.pack("!H", len(handshake)) + bytes(handshake)


def server_name(name: bytes) -> bytes:
    entry = b"\0" + struct.pack("!H", len(name)) + name
    return struct.pack("!H", len(entry)) + entry


def test_the_name_of_a_client_hello() -> None:
    assert classify(client_hello()) == Sighting(Speech.TLS, "good.com")
    assert classify(client_hello(None)) == Sighting(Speech.TLS)
    assert classify(client_hello("bücher.example")) == Sighting(Speech.TLS, "xn--bcher-kva.example")


def test_a_client_hello_may_be_spread_over_records() -> None:
    hello = in_records(client_hello(), 1)
    assert classify(hello) == Sighting(Speech.TLS, "good.com")
    assert all(classify(hello[:length]) is None for length in range(len(hello)))


def test_a_second_server_name_is_not_guessed_at() -> None:
    twice = with_extension(client_hello(), 0, server_name(b"evil.com"))
    sighting = classify(twice)
    assert sighting is not None
    assert (sighting.name, bool(sighting.contradictory)) == (None, True)
    # The control: an extension that is not there yet is no matter.
    assert classify(with_extension(client_hello(), 0x3374, b"")) == Sighting(Speech.TLS, "good.com")


@pytest.mark.parametrize("name", [b"good.com\0.evil.com", b"a" * 300, b"1.2.3.4", b"good..com", b"g\xc3\xb6.com"])
def test_a_server_name_that_is_none_is_not_believed(name: bytes) -> None:
    sighting = classify(with_extension(client_hello(None), 0, server_name(name)))
    assert sighting is not None
    assert (sighting.name, bool(sighting.contradictory)) == (None, True)


def test_a_client_hello_without_end_is_refused() -> None:
    endless = b"\x16\x03\x01\0\x04\x01\x00\x3f\xff" + b"\x16\x03\x01\0\x01x" * (MAX_HEAD * 2)
    sighting = classify(endless)
    assert sighting is not None
    assert sighting.contradictory


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"GET / HTTP/1.1\r\nHost: good.com\r\n\r\n", "good.com"),
        (b"GET / HTTP/1.1\r\nhost:  Good.COM.:8000 \r\n\r\n", "good.com"),
        (b"GET http://good.com/ HTTP/1.1\r\nHost: good.com:80\r\n\r\n", "good.com"),
        (b"GET http://u:p@good.com?x HTTP/1.1\r\nHost: good.com\r\n\r\n", "good.com"),
        (b"GET / HTTP/1.0\r\n\r\n", None),
        (b"GET / HTTP/1.1\r\nHost: 1.2.3.4:80\r\n\r\n", None),
        (b"GET / HTTP/1.1\r\nHost: [2606::1]:80\r\n\r\n", None),
        (b"OPTIONS * HTTP/1.1\r\nHost: good.com\r\n\r\n", "good.com"),
    ],
)
def test_the_name_of_a_request(head: bytes, name: str | None) -> None:
    assert classify(head) == Sighting(Speech.HTTP, name)
    assert all(classify(head[:length]) is None for length in range(len(head)))


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: good.com\r\nHost: evil.com\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: good.com\r\nHost: good.com\r\n\r\n",
        b"GET http://evil.com/ HTTP/1.1\r\nHost: good.com\r\n\r\n",
        b"GET http://good.com@evil.com/ HTTP/1.1\r\nHost: good.com\r\n\r\n",
        b"GET http://evil.com\\@good.com/ HTTP/1.1\r\nHost: evil.com\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : good.com\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: y\r\n Host: good.com\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: good.com\0.evil.com\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: good.com, evil.com\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: g\xc3\xb6.com\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: good.com\r\n\r\n",
        b"GET evil.com HTTP/1.1\r\nHost: good.com\r\n\r\n",
        b"CONNECT evil.com:443 HTTP/1.1\r\nHost: good.com\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 2 * MAX_HEAD,
    ],
)
def test_a_request_that_can_be_read_in_two_ways_is_not_believed(head: bytes) -> None:
    sighting = classify(head)
    assert sighting is not None
    assert (sighting.speech, sighting.name, bool(sighting.contradictory)) == (Speech.HTTP, None, True)


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-x\r\n", b"\0\0\0\x08\x04\xd2\x16/", b"GETTING", b"\x17\x03\x03", b"get / "]
)
def test_anything_else_is_raw(data: bytes) -> None:
    assert classify(data) is RAW


def test_no_bytes_make_it_fail() -> None:
    """A sample of what was run once over millions: mutations of what clients send."""
    chance = random.Random(20261130)
    seeds = [
        client_hello(),
        in_records(client_hello(), 60),
        b"GET http://u@x.com:80/a HTTP/1.1\r\nHost: x.com\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: good.com\r\nContent-Length: 3\r\n\r\nabc",
    ]
    seen: set[object] = set()
    for _ in range(20_000):
        data = mutated(chance, chance.choice(seeds))
        sighting = classify(data)
        seen.add(sighting and (sighting.speech, bool(sighting.contradictory)))
        assert sighting is None or sighting.name is None or not sighting.contradictory
    assert len(seen) == 6  # everything there is: the sample is worth something


def mutated(chance: random.Random, seed: bytes) -> bytes:
    data = bytearray(seed)
    for _ in range(chance.randint(1, 6)):
        at, kind = chance.randrange(len(data) + 1), chance.random()
        if kind < 0.5 and at < len(data):
            data[at] = chance.randrange(256)
        elif kind < 0.7:
            data[at:at] = chance.randbytes(chance.randint(1, 9))
        elif kind < 0.9:
            del data[at : at + chance.randint(1, 30)]
        else:
            del data[at:]
    return bytes(data)
