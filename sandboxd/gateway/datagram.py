"""IP packets to a sandbox, made by hand: an answer comes from whatever address the sandbox had asked. No I/O.

A raw socket in the sandbox's namespace sends them; a bound socket for each address would be in the way of the
sandbox's own servers.
"""

import socket
import struct
from ipaddress import IPv4Address, IPv6Address

from sandboxd.gateway.addresses import Address

MAX_PAYLOAD = 65507
_UDP, _ICMP, _ICMP6 = socket.IPPROTO_UDP, socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6
_HOPS = 64
# Port unreachable: what a connected socket reports at once (ECONNREFUSED), so that QUIC gives way to TCP.
_UNREACHABLE = {4: (3, 3), 6: (1, 4)}


def udp_packet(source: tuple[Address, int], target: tuple[Address, int], payload: bytes) -> bytes:
    """A whole IP packet that carries the payload. Both addresses are of one version."""
    length = 8 + len(payload)
    header = struct.pack("!HHHH", source[1], target[1], length, 0)
    total = _checksum(_pseudo_header(source[0], target[0], length, _UDP) + header + payload)
    return _ip(source[0], target[0], _UDP, header[:6] + struct.pack("!H", total or 0xFFFF) + payload)


def unreachable_packet(source: tuple[Address, int], target: tuple[Address, int], length: int) -> bytes:
    """What says that the port `source` cannot be reached, to the sender of a datagram of `length` bytes to it."""
    udp = struct.pack("!HHHH", target[1], source[1], 8 + length, 0)
    quoted = _ip(target[0], source[0], _UDP, udp, length=8 + length)
    kind, code = _UNREACHABLE[source[0].version]
    body = struct.pack("!BBHI", kind, code, 0, 0) + quoted
    if source[0].version == 4:
        return _ip(source[0], target[0], _ICMP, _with_checksum(body, b""))
    pseudo = _pseudo_header(source[0], target[0], len(body), _ICMP6)
    return _ip(source[0], target[0], _ICMP6, _with_checksum(body, pseudo))


def _with_checksum(icmp: bytes, pseudo: bytes) -> bytes:
    return icmp[:2] + struct.pack("!H", _checksum(pseudo + icmp)) + icmp[4:]


def _ip(source: Address, target: Address, protocol: int, payload: bytes, *, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    if isinstance(source, IPv4Address):
        fields = (0x45, 0, 20 + size, 0, 0, _HOPS, protocol, 0, source.packed, target.packed)
        header = struct.pack("!BBHHHBBH4s4s", *fields)
        return header[:10] + struct.pack("!H", _checksum(header)) + header[12:] + payload
    return struct.pack("!IHBB16s16s", 6 << 28, size, protocol, _HOPS, source.packed, target.packed) + payload


def _pseudo_header(source: Address, target: Address, length: int, protocol: int) -> bytes:
    if isinstance(source, IPv6Address):
        return source.packed + target.packed + struct.pack("!II", length, protocol)
    return source.packed + target.packed + struct.pack("!BBH", 0, protocol, length)


def _checksum(data: bytes) -> int:
    """RFC 1071: the complement of the sum of 16-bit words, which is the number modulo 65535."""
    value = int.from_bytes(data + b"\0" * (len(data) % 2), "big")
    folded = value % 0xFFFF if value else 0
    if folded == 0 and value:
        folded = 0xFFFF
    return ~folded & 0xFFFF
