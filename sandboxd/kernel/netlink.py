"""Just enough netlink to make a network: links, addresses, routes and rules (rtnetlink(7)), and nftables.

A request is encoded once, as bytes, and may be sent as often as it is needed. Everything is checked by the kernel,
which takes an nftables batch whole or not at all.
"""

import os
import socket
import struct
from dataclasses import dataclass, field

# <linux/netlink.h>
ROUTE, NETFILTER = 0, 12
_REQUEST, _ACK, _EXCLUSIVE, _CREATE, _APPEND = 0x1, 0x4, 0x200, 0x400, 0x800
_NEW = _CREATE | _EXCLUSIVE | _ACK
_ERROR = 2
_NESTED = 0x8000
_HEADER = 16
_REPLIES = 1 << 20

# <linux/rtnetlink.h>, <linux/if_addr.h>, <linux/fib_rules.h>
_NEWLINK, _NEWADDR, _NEWROUTE, _NEWRULE = 16, 20, 24, 32
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_INFO_KIND = 3, 4, 18, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD = 1, 2, 0x02
_RTA_OIF, _RTA_GATEWAY = 4, 5
_FRA_PRIORITY, _FRA_FWMARK, _FRA_FWMASK, _FR_ACT_TO_TBL = 6, 10, 16, 1
_IFF_UP = 1
_PROTO_STATIC = 4
MAIN_TABLE = 254
UNICAST, LOCAL = 1, 2
UNIVERSE, HOST = 0, 254

# <linux/netfilter/nf_tables.h>
_BATCH_BEGIN, _BATCH_END = 16, 17
_NFT = 10 << 8
_NEWTABLE, _NEWCHAIN, _NEWNFRULE = _NFT | 0, _NFT | 3, _NFT | 6
_SUBSYSTEM = 10
INET, IPV4, IPV6 = 1, 2, 10
PREROUTING, OUTPUT = 0, 3
MANGLE = -150
META_MARK, META_NFPROTO, META_L4PROTO = 3, 15, 16
_REG_VERDICT = 0
_NF_ACCEPT = 1
_NETWORK_HEADER = 1
_EQ, _NE = 0, 1
_ICMPX, _ADMIN_PROHIBITED = 2, 3


@dataclass(slots=True)
class Request:
    """Messages to be sent together. Each that is acknowledged is known by what it is about."""

    family: int
    data: bytes = b""
    acknowledged: dict[int, str] = field(default_factory=dict)
    _count: int = 0

    def add(self, kind: int, flags: int, body: bytes, about: str = "") -> None:
        self._count += 1
        header = struct.pack("=IHHII", _HEADER + len(body), kind, flags | _REQUEST, self._count, 0)
        self.data += _aligned(header + body)
        if flags & _ACK:
            self.acknowledged[self._count] = about

    def send(self) -> None:
        """In the network namespace of the calling thread. Raises: OSError naming what the kernel refused first."""
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, self.family) as netlink:
            netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _REPLIES)
            netlink.bind((0, 0))
            netlink.send(self.data)
            missing = dict(self.acknowledged)
            while missing:
                self._take_replies(netlink.recv(_REPLIES), missing)

    def _take_replies(self, data: bytes, missing: dict[int, str]) -> None:
        while data:
            length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data)
            if kind == _ERROR:
                number = -struct.unpack_from("=i", data, _HEADER)[0]
                if number:
                    raise OSError(number, f"{missing.get(sequence, 'a batch')}: {os.strerror(number)}")
                missing.pop(sequence, None)
            data = data[(length + 3) & ~3 :]


# -- links, addresses, routes, rules --------------------------------------------------------------------------------


def add_link(request: Request, name: str, *, kind: str, index: int, mtu: int) -> None:
    """A network interface that is up."""
    info = _nested(_IFLA_LINKINFO, _attribute(_IFLA_INFO_KIND, _text(kind)))
    body = struct.pack("=BxHiII", 0, 0, index, _IFF_UP, _IFF_UP)
    body += _attribute(_IFLA_IFNAME, _text(name)) + _attribute(_IFLA_MTU, struct.pack("=I", mtu)) + info
    request.add(_NEWLINK, _NEW, body, f"making the interface {name} ({kind})")


def set_link_up(request: Request, index: int) -> None:
    request.add(_NEWLINK, _ACK, struct.pack("=BxHiII", 0, 0, index, _IFF_UP, _IFF_UP), "bringing an interface up")


def add_address(request: Request, index: int, address: str, prefix: int) -> None:
    raw = packed(address)
    flags = _IFA_F_NODAD if len(raw) == 16 else 0
    body = struct.pack("=BBBBI", _family(raw), prefix, flags, 0, index)
    body += _attribute(_IFA_LOCAL, raw) + _attribute(_IFA_ADDRESS, raw)
    request.add(_NEWADDR, _NEW, body, f"the address {address}")


def add_default_route(
    request: Request,
    family: int,
    *,
    index: int,
    via: str | None = None,
    table: int = MAIN_TABLE,
    kind: int = UNICAST,
    scope: int = UNIVERSE,
) -> None:
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, table, _PROTO_STATIC, scope, kind, 0)
    body += _attribute(_RTA_OIF, struct.pack("=I", index))
    if via is not None:
        body += _attribute(_RTA_GATEWAY, packed(via))
    request.add(_NEWROUTE, _NEW, body, f"the default route of table {table}")


def add_mark_rule(request: Request, family: int, *, mark: int, table: int, priority: int) -> None:
    """What is marked so is routed by that table."""
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, table, 0, 0, _FR_ACT_TO_TBL, 0)
    for kind, value in ((_FRA_FWMARK, mark), (_FRA_FWMASK, mark), (_FRA_PRIORITY, priority)):
        body += _attribute(kind, struct.pack("=I", value))
    request.add(_NEWRULE, _NEW, body, f"the rule for mark {mark:#x}")


# -- nftables -------------------------------------------------------------------------------------------------------


class NftBatch:
    """One table of the family inet, in one batch."""

    def __init__(self, table: str) -> None:
        self._table = _attribute(1, _text(table))
        self._request = Request(NETFILTER)
        self._request.add(_BATCH_BEGIN, 0, _nfgenmsg(0, _SUBSYSTEM))
        self._request.add(_NEWTABLE, _CREATE | _ACK, _nfgenmsg(INET) + self._table, f"the nftables table {table}")

    def chain(self, name: str, *, kind: str, hook: int, priority: int) -> None:
        hooked = _nested(4, _attribute(1, _be32(hook)), _attribute(2, _be32(priority)))
        body = _nfgenmsg(INET) + self._table + _attribute(3, _text(name)) + hooked + _attribute(7, _text(kind))
        self._request.add(_NEWCHAIN, _CREATE | _ACK, body, f"the nftables chain {name} ({kind})")

    def rule(self, chain: str, *expressions: bytes) -> None:
        body = _nfgenmsg(INET) + self._table + _attribute(2, _text(chain)) + _nested(4, *expressions)
        self._request.add(_NEWNFRULE, _CREATE | _APPEND | _ACK, body, f"an nftables rule of the chain {chain}")

    def finish(self) -> Request:
        self._request.add(_BATCH_END, 0, _nfgenmsg(0, _SUBSYSTEM))
        return self._request


def meta_is(key: int, value: bytes, *, negated: bool = False) -> bytes:
    return _expression("meta", _attribute(2, _be32(key)), _attribute(1, _be32(1))) + _compare(value, negated=negated)


def set_mark(mark: int) -> bytes:
    load = _expression("immediate", _attribute(1, _be32(1)), _nested(2, _attribute(1, struct.pack("=I", mark))))
    return load + _expression("meta", _attribute(2, _be32(META_MARK)), _attribute(3, _be32(1)))


def destination_begins(family: int, prefix: bytes) -> bytes:
    """An address of this family whose first bytes are these."""
    offset = 16 if family == IPV4 else 24
    parts = ((1, 1), (2, _NETWORK_HEADER), (3, offset), (4, len(prefix)))
    load = _expression("payload", *(_attribute(kind, _be32(value)) for kind, value in parts))
    return meta_is(META_NFPROTO, bytes([family])) + load + _compare(prefix)


def tproxy(port: int) -> bytes:
    """Hand it to the transparent socket that is bound to this port, whatever address it is for."""
    load = _expression("immediate", _attribute(1, _be32(1)), _nested(2, _attribute(1, struct.pack("!H", port))))
    return load + _expression("tproxy", _attribute(1, _be32(0)), _attribute(3, _be32(1)))


def accept() -> bytes:
    verdict = _nested(2, _nested(2, _attribute(1, _be32(_NF_ACCEPT))))
    return _expression("immediate", _attribute(1, _be32(_REG_VERDICT)), verdict)


def reject() -> bytes:
    return _expression("reject", _attribute(1, _be32(_ICMPX)), _attribute(2, bytes([_ADMIN_PROHIBITED])))


def _compare(value: bytes, *, negated: bool = False) -> bytes:
    operator = _attribute(2, _be32(_NE if negated else _EQ))
    return _expression("cmp", _attribute(1, _be32(1)), operator, _nested(3, _attribute(1, value)))


def _expression(name: str, *parts: bytes) -> bytes:
    return _nested(1, _attribute(1, _text(name)), _nested(2, *parts))


def _nfgenmsg(family: int, resource: int = 0) -> bytes:
    return struct.pack("=BBH", family, 0, socket.htons(resource))


# -- attributes -----------------------------------------------------------------------------------------------------


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _family(raw: bytes) -> int:
    return socket.AF_INET6 if len(raw) == 16 else socket.AF_INET


def _aligned(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _attribute(kind: int, data: bytes) -> bytes:
    return _aligned(struct.pack("=HH", 4 + len(data), kind) + data)


def _nested(kind: int, *parts: bytes) -> bytes:
    return _attribute(kind | _NESTED, b"".join(parts))


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


def _be32(value: int) -> bytes:
    return struct.pack("!I", value & 0xFFFFFFFF)
