"""DNS messages from and to sandboxes. No I/O.

Of a sandbox's query, the name and the type go on, and nothing else: a query of our own asks for them. Of what comes
back, only what answers the question goes in, and of addresses only those that the sandbox may reach at all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from sandboxd.gateway.addresses import GATEWAY4, Address, parse_address
from sandboxd.gateway.names import name_from_wire

MAX_QUERY = 4096
MAX_UDP_ANSWER = 1232
"""DNS flag day 2020: what passes everywhere unfragmented, and here it keeps answers small"""
MAX_TCP_ANSWER = 65535
MAX_TTL = 300
SINK_TTL = 1
"""a denial is looked at again soon: the policy may have changed"""
MAX_ALIASES = 16

A, AAAA = dns.rdatatype.A, dns.rdatatype.AAAA
# What a resolver in a sandbox has use for. HTTPS and SVCB are answered empty: they carry keys (ECH) with which a
# client would hide its server's name, and clients do without. The rest (ANY, AXFR, NULL, …) would only smuggle.
_PASSED = (
    "A",
    "AAAA",
    "CNAME",
    "NS",
    "SOA",
    "PTR",
    "MX",
    "TXT",
    "SRV",
    "NAPTR",
    "CAA",
    "DS",
    "DNSKEY",
    "TLSA",
    "SSHFP",
)
PASSED = frozenset(map(dns.rdatatype.from_text, _PASSED))


@dataclass(frozen=True, slots=True)
class Question:
    message: dns.message.Message
    name: str
    """in its one form"""
    kind: dns.rdatatype.RdataType

    @property
    def kind_text(self) -> str:
        return dns.rdatatype.to_text(self.kind)


def read_question(wire: bytes) -> Question | bytes | None:
    """The question of a query; an answer if there can be no other; None for what deserves none."""
    try:
        message = dns.message.from_wire(wire)
    except Exception:  # whatever a hostile message does to the parser, it is no query
        return None
    if message.flags & dns.flags.QR or message.opcode() != dns.opcode.QUERY or len(message.question) != 1:
        return None
    asked = message.question[0]
    name = name_from_wire(asked.name.to_text().encode())
    if name is None or asked.rdclass != dns.rdataclass.IN:
        return _wire(_response(message, dns.rcode.NXDOMAIN if name is None else dns.rcode.REFUSED), MAX_UDP_ANSWER)
    return Question(message, name, asked.rdtype)


def empty(question: Question, limit: int) -> bytes:
    """That the name has nothing of this type."""
    return _wire(_response(question.message), limit)


def failed(question: Question, limit: int) -> bytes:
    return _wire(_response(question.message, dns.rcode.SERVFAIL), limit)


def no_such_name(question: Question, reason: str, limit: int) -> bytes:
    return _wire(_explained(_response(question.message, dns.rcode.NXDOMAIN), reason), limit)


def fixed(question: Question, address: Address, limit: int, *, ttl: int = MAX_TTL) -> bytes:
    """One address of ours; empty for a question of the other kind."""
    response = _response(question.message)
    if question.kind == (A if address.version == 4 else AAAA):
        asked = question.message.question[0]
        response.answer.append(dns.rrset.from_text(asked.name, ttl, "IN", question.kind, str(address)))
    return _wire(response, limit)


def denied(question: Question, reason: str, limit: int) -> bytes:
    """A denied name leads to the gateway, which tells the reason in the client's own protocol."""
    response = _explained(_response(question.message), reason)
    if question.kind == A:
        asked = question.message.question[0]
        response.answer.append(dns.rrset.from_text(asked.name, SINK_TTL, "IN", A, str(GATEWAY4)))
    return _wire(response, limit)


def answered(
    question: Question, answer: dns.message.Message, limit: int, *, keep: Callable[[Address], bool]
) -> tuple[bytes, tuple[Address, ...]]:
    """What a server said, as the sandbox may have it; with the addresses in it that it may use."""
    response = _response(question.message, answer.rcode())
    kept: list[Address] = []
    for rrset in chain(answer, question.message.question[0].name, question.kind):
        records = [record for record in rrset if _may_keep(rrset.rdtype, record, keep)]
        if records:
            fresh = dns.rrset.from_rdata_list(rrset.name, min(rrset.ttl, MAX_TTL), records)
            response.answer.append(fresh)
            if rrset.rdtype in (A, AAAA):
                kept += [parse_address(record.address) for record in records]
    return _wire(response, limit), tuple(kept)


def chain(answer: dns.message.Message, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> list[dns.rrset.RRset]:
    """What of an answer is about the question: the aliases from the name on, and the records at their end."""
    found: list[dns.rrset.RRset] = []
    for _ in range(MAX_ALIASES):
        by_kind = {rrset.rdtype: rrset for rrset in answer.answer if rrset.name == name}
        if kind in by_kind:
            return [*found, by_kind[kind]]
        alias = by_kind.get(dns.rdatatype.CNAME)
        if alias is None:
            return found
        found.append(alias)
        name = alias[0].target
    return []


def addresses(answer: dns.message.Message, name: str, kind: dns.rdatatype.RdataType) -> list[Address]:
    """The addresses that an answer gives for a name, in their one form."""
    rrsets = chain(answer, dns.name.from_text(name), kind)
    return [parse_address(record.address) for rrset in rrsets if rrset.rdtype == kind for record in rrset]


def _may_keep(kind: dns.rdatatype.RdataType, record: Any, keep: Callable[[Address], bool]) -> bool:
    return kind not in (A, AAAA) or keep(parse_address(record.address))


def _response(message: dns.message.Message, code: dns.rcode.Rcode = dns.rcode.NOERROR) -> dns.message.Message:
    response = dns.message.make_response(message, recursion_available=True, our_payload=MAX_UDP_ANSWER)
    response.set_rcode(code)
    return response


def _explained(response: dns.message.Message, reason: str) -> dns.message.Message:
    if response.edns >= 0:
        option = dns.edns.EDEOption(dns.edns.EDECode.BLOCKED, f"sandboxd: {reason}"[:200])
        response.use_edns(0, payload=MAX_UDP_ANSWER, options=[option])
    return response


def _wire(response: dns.message.Message, limit: int) -> bytes:
    """Cut to its header and question, and marked so, if it would be longer: the client asks again by TCP."""
    try:
        return response.to_wire(max_size=limit)
    except dns.exception.TooBig:
        cut = response
        cut.answer, cut.authority, cut.additional = [], [], []
        cut.flags |= dns.flags.TC
        return cut.to_wire(max_size=limit)
