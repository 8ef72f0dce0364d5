"""DNS messages and IP packets: read, made, and held against other implementations of the same."""

import random
import socket
import struct

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from sandboxd.gateway import dns_messages as messages
from sandboxd.gateway.addresses import parse_address
from sandboxd.gateway.datagram import udp_packet, unreachable_packet
from tests.network.test_sniff import mutated


def asked(name: str = "good.com", kind: str = "A", **options: object) -> messages.Question:
    options = {"use_edns": 0, **options}
    question = messages.read_question(dns.message.make_query(name, kind, **options).to_wire())
    assert isinstance(question, messages.Question)
    return question


def server_said(question: messages.Question, *records: str) -> dns.message.Message:
    answer = dns.message.make_response(question.message)
    for record in records:
        name, kind, value = record.split(" ", 2)
        answer.answer.append(dns.rrset.from_text(name, 1000, "IN", kind, value))
    return dns.message.from_wire(answer.to_wire(max_size=65535))  # which puts records of one name and type together


def told(wire: bytes) -> list[str]:
    answer = dns.message.from_wire(wire)
    return [
        f"{rrset.name} {dns.rdatatype.to_text(rrset.rdtype)} {record}" for rrset in answer.answer for record in rrset
    ]


def test_a_question_is_read() -> None:
    assert (asked("Good.COM").name, asked(kind="TXT").kind_text) == ("good.com", "TXT")


@pytest.mark.parametrize("wire", [b"", b"\0" * 11, b"\xc0\x0c" * 20, b"\0" * 65535, bytes(range(256))])
def test_what_is_no_query_deserves_no_answer(wire: bytes) -> None:
    assert messages.read_question(wire) is None


def test_a_loop_of_compressed_names_is_no_query() -> None:
    header = struct.pack("!HHHHHH", 1, 0x0100, 1, 0, 0, 0)
    assert messages.read_question(header + b"\xc0\x0c" + b"\0\x01\0\x01") is None
    assert messages.read_question(header + b"\x01a\xc0\x0c" + b"\0\x01\0\x01") is None


def test_an_answer_two_questions_and_a_notification_deserve_none() -> None:
    query = dns.message.make_query("good.com", "A")
    query.flags |= dns.flags.QR
    assert messages.read_question(query.to_wire()) is None
    query = dns.message.make_query("good.com", "A")
    query.question *= 2
    assert messages.read_question(query.to_wire()) is None
    query = dns.message.make_query("good.com", "A")
    query.set_opcode(dns.opcode.NOTIFY)
    assert messages.read_question(query.to_wire()) is None


def test_a_name_that_is_none_does_not_exist() -> None:
    query = dns.message.make_query(dns.name.Name([b"a b", b"com", b""]), "A")
    answer = messages.read_question(query.to_wire())
    assert isinstance(answer, bytes)
    assert dns.message.from_wire(answer).rcode() == dns.rcode.NXDOMAIN


def test_a_denied_name_leads_to_the_gateway_and_says_why() -> None:
    answer = dns.message.from_wire(messages.denied(asked(), "no rule allows it", 1232))
    assert [str(record) for record in answer.answer[0]] == ["198.18.0.1"]
    assert answer.answer[0].ttl == 1
    assert "no rule allows it" in str(answer.options[0])
    assert dns.message.from_wire(messages.denied(asked(kind="AAAA"), "x", 1232)).answer == []
    assert dns.message.from_wire(messages.denied(asked(kind="TXT"), "x", 1232)).answer == []


def test_only_what_answers_the_question_goes_in() -> None:
    question = asked("www.good.com")
    said = server_said(
        question,
        "www.good.com. CNAME cdn.net.",
        "cdn.net. A 1.1.1.1",
        "cdn.net. A 10.0.0.1",
        "other.com. A 6.6.6.6",
        "cdn.net. TXT secret",
    )
    wire, kept = messages.answered(question, said, 1232, keep=lambda address: not address.is_private)
    assert told(wire) == ["www.good.com. CNAME cdn.net.", "cdn.net. A 1.1.1.1"]
    assert [str(address) for address in kept] == ["1.1.1.1"]
    assert dns.message.from_wire(wire).answer[0].ttl == messages.MAX_TTL


def test_a_ring_of_aliases_answers_nothing() -> None:
    question = asked("a.com")
    said = server_said(question, "a.com. CNAME b.com.", "b.com. CNAME a.com.")
    assert messages.answered(question, said, 1232, keep=lambda _: True)[1] == ()
    assert messages.addresses(said, "a.com", messages.A) == []


def test_mapped_and_translated_addresses_are_told_in_their_one_form() -> None:
    question = asked(kind="AAAA")
    said = server_said(question, "good.com. AAAA ::ffff:10.0.0.1", "good.com. AAAA 64:ff9b::a9fe:a9fe")
    seen = []
    messages.answered(question, said, 1232, keep=lambda address: seen.append(str(address)) is not None)
    assert seen == ["10.0.0.1", "169.254.169.254"]


def test_an_answer_that_is_too_long_is_cut_and_says_so() -> None:
    question = asked(kind="TXT")
    said = server_said(question, *(f'good.com. TXT "{n:04}{"x" * 200}"' for n in range(50)))
    wire, _ = messages.answered(question, said, 1232, keep=lambda _: True)
    assert len(wire) <= 1232
    assert dns.message.from_wire(wire).flags & dns.flags.TC
    long, _ = messages.answered(question, said, 65535, keep=lambda _: True)
    assert len(dns.message.from_wire(long).answer[0]) == 50


def test_no_bytes_make_reading_a_query_fail() -> None:
    chance, kinds = random.Random(7), set()
    seeds = [
        dns.message.make_query(name, "A", use_edns=0).to_wire() for name in ("a.b.example.com", "x." * 60 + "com")
    ]
    for _ in range(10_000):
        found = messages.read_question(mutated(chance, chance.choice(seeds)))
        kinds.add(type(found))
        if isinstance(found, messages.Question):
            assert messages.denied(found, "no", 1232)
            assert messages.empty(found, 1232)
    assert kinds == {bytes, type(None), messages.Question}


@pytest.mark.parametrize(("source", "target"), [("1.2.3.4", "198.18.0.2"), ("2001:db8::7", "fd5b:d::2")])
@pytest.mark.parametrize("payload", [b"", b"x", b"hello world", bytes(1400), b"\xff" * 1001])
def test_a_packet_has_the_checksums_of_the_standards(source: str, target: str, payload: bytes) -> None:
    ends = ((parse_address(source), 53), (parse_address(target), 4000))
    packet = udp_packet(*ends, payload)
    if ends[0][0].version == 4:
        assert summed(packet[:20]) == 0xFFFF
        header, rest = packet[:20], packet[20:]
        pseudo = header[12:20] + struct.pack("!BBH", 0, socket.IPPROTO_UDP, len(rest))
    else:
        header, rest = packet[:40], packet[40:]
        pseudo = header[8:40] + struct.pack("!II", len(rest), socket.IPPROTO_UDP)
    assert summed(pseudo + rest) == 0xFFFF
    assert rest[8:] == payload
    unreachable = unreachable_packet(*ends, 9)
    assert len(unreachable) == {4: 56, 6: 96}[ends[0][0].version]


def summed(data: bytes) -> int:
    """The one's complement sum, word by word."""
    total = 0
    for (word,) in struct.iter_unpack("!H", data + b"\0" * (len(data) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total
