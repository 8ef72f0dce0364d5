"""Addresses in one form, and what kind each is.

The tables are our own, after IANA's special-purpose registries: what ipaddress calls global changes between releases
of Python (CVE-2024-4032).
"""

import ipaddress
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# What sandboxes see of us; kernel/sandbox_network.py makes the interface that goes with it.
GATEWAY4, GATEWAY6 = IPv4Address("198.18.0.1"), IPv6Address("fd5b:d::1")
SANDBOX4, SANDBOX6 = IPv4Address("198.18.0.2"), IPv6Address("fd5b:d::2")
HOST4, HOST6 = IPv4Address("198.18.1.1"), IPv6Address("fd5b:d::1:1")
"""what host.sandboxd.internal resolves to; behind it is the host's loopback"""
HOST_NAME = "host.sandboxd.internal"


class Kind(Enum):
    PUBLIC = "public"
    PRIVATE = "private"
    """somebody's own network: reached only where the operator grants it"""
    BLOCKED = "blocked"
    """never reached: this host, its link, groups of hosts, tunnels, what is reserved"""


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


_BLOCKED4 = _networks(
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",  # link-local; clouds tell a machine's secrets there
    "192.88.99.0/24",  # 6to4 relays
    "224.0.0.0/4",
    "240.0.0.0/4",  # reserved, and the broadcast address
    "168.63.129.16/32",  # Azure's host, a public address by the registries
    "100.100.100.200/32",  # Alibaba's metadata
    "198.18.0.0/30",  # our own, see above
    "198.18.1.1/32",
)
_PRIVATE4 = _networks(
    "10.0.0.0/8",
    "100.64.0.0/10",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
)
_GLOBAL6 = ipaddress.IPv6Network("2000::/3")
_BLOCKED6 = _networks(
    "2001::/23",  # Teredo, ORCHID and other things that are no hosts
    "2002::/16",  # 6to4
    "fd00:ec2::/32",  # Amazon's metadata
    "fd20:ce::/32",  # Google's
    "fd5b:d::/64",  # our own
)
_PRIVATE6 = _networks("fc00::/7", "2001:db8::/32", "3fff::/20")
_NAT64 = _networks("64:ff9b::/96", "64:ff9b:1::/48")


def normal(address: Address) -> Address:
    """One form of one address: IPv4 inside of IPv6 (mapped, NAT64) becomes the IPv4 address that it leads to."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if any(address in network for network in _NAT64):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address if address.scope_id is None else IPv6Address(int(address))


def parse_address(text: str) -> Address:
    """An address in its one form, without a zone. Raises: ValueError."""
    return normal(ipaddress.ip_address(text.partition("%")[0]))


def kind_of(address: Address) -> Kind:
    """What kind an address in its one form is."""
    if isinstance(address, IPv4Address):
        return _kind(address, _BLOCKED4, _PRIVATE4, otherwise=Kind.PUBLIC)
    public = Kind.PUBLIC if address in _GLOBAL6 else Kind.BLOCKED
    return _kind(address, _BLOCKED6, _PRIVATE6, otherwise=public)


def _kind(address: Address, blocked: tuple[Network, ...], private: tuple[Network, ...], *, otherwise: Kind) -> Kind:
    if any(address in network for network in blocked):
        return Kind.BLOCKED
    return Kind.PRIVATE if any(address in network for network in private) else otherwise


def kind_of_network(network: Network) -> Kind | None:
    """What kind all addresses of a network are; None if they are of several."""
    tables = (_BLOCKED4, _PRIVATE4) if network.version == 4 else (_BLOCKED6, _PRIVATE6)
    for table, kind in zip(tables, (Kind.BLOCKED, Kind.PRIVATE), strict=True):
        if any(contains(each, network) for each in table):
            return kind
        if any(contains(network, each) for each in table):
            return None
    if isinstance(network, IPv6Network) and not contains(_GLOBAL6, network):
        return None if contains(network, _GLOBAL6) else Kind.BLOCKED
    return Kind.PUBLIC


def contains(outer: Network, inner: Network) -> bool:
    return outer.version == inner.version and outer.prefixlen <= inner.prefixlen and inner.network_address in outer
