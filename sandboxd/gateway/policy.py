"""What a sandbox may reach: frozen values, and the questions that are put to them. No I/O.

Three questions are asked of a flow, each when it can be answered:

    may_resolve   before a DNS query leaves: a name that nobody could connect to is not asked for, it could carry data
    decide        when it is known whom the sandbox wants: the rule that allows or denies it
    may_dial      of the address that is really about to be connected to: the last word

Of everything that matches, the strongest decides:

    1. what the site denies, and addresses that are always blocked     never reached, whatever a policy says
    2. the policy's `allow`
    3. the policy's `deny`
    4. the policy's mode

An allowed *name* is resolved by the gateway itself and connected to under that name; the address that the sandbox
used is no more than a preference among the answers. Private addresses take two leaves: the site's grant, and an
address rule of the policy that names them (or its mode `open`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from sandboxd.gateway.addresses import HOST4, HOST6, HOST_NAME, Address, Kind, Network, kind_of
from sandboxd.gateway.names import service_host

MAX_CONNECTIONS = 512

_PRIVATE_NAMES = ("localhost", "sandboxd.internal")
_HTTPS_PORT = 443


class Mode(StrEnum):
    NONE = "none"
    """nothing"""
    RESTRICTED = "restricted"
    """what is allowed"""
    INTERNET = "internet"
    """public addresses, less what is denied"""
    OPEN = "open"
    """those, and the private ones that the site grants"""


class Protocol(StrEnum):
    ANY = "any"
    TCP = "tcp"
    UDP = "udp"


class Basis(StrEnum):
    """What a decision rests on: it says how the flow is connected."""

    NAME = "name"
    ADDRESS = "address"
    HOST = "host"
    MODE = "mode"


@dataclass(frozen=True, slots=True)
class Destination:
    """Whom a sandbox wants to talk to, as far as it is known."""

    name: str | None
    """shown by the client (TLS, HTTP), or pinned to the address by an answer of our own DNS"""
    address: Address | None
    port: int
    protocol: Protocol = Protocol.TCP


@dataclass(frozen=True, slots=True)
class Name:
    name: str

    def matches(self, destination: Destination) -> bool:
        return destination.name == self.name

    def covers(self, other: "Target") -> bool:
        return other == self


@dataclass(frozen=True, slots=True)
class Subdomains:
    """Every name below `parent`, at any depth, and not the parent itself."""

    parent: str

    def matches(self, destination: Destination) -> bool:
        return destination.name is not None and destination.name.endswith(f".{self.parent}")

    def covers(self, other: "Target") -> bool:
        below = f".{self.parent}"
        return other == self or (
            (isinstance(other, Name) and other.name.endswith(below))
            or (isinstance(other, Subdomains) and other.parent.endswith(below))
        )


@dataclass(frozen=True, slots=True)
class Addresses:
    network: Network

    def matches(self, destination: Destination) -> bool:
        return destination.address is not None and destination.address in self.network

    def covers(self, other: "Target") -> bool:
        if not isinstance(other, Addresses) or other.network.version != self.network.version:
            return False
        return other.network.network_address in self.network and other.network.prefixlen >= self.network.prefixlen


@dataclass(frozen=True, slots=True)
class HostItself:
    """The loopback of the host that the daemon runs on, as host.sandboxd.internal."""

    def matches(self, destination: Destination) -> bool:
        return destination.address in (HOST4, HOST6) or destination.name == HOST_NAME

    def covers(self, other: "Target") -> bool:
        return other == self


Target = Name | Subdomains | Addresses | HostItself

_BASES = {Name: Basis.NAME, Subdomains: Basis.NAME, Addresses: Basis.ADDRESS, HostItself: Basis.HOST}


@dataclass(frozen=True, slots=True)
class Rule:
    to: str
    """the target as it is written: for messages"""
    target: Target
    ports: tuple[tuple[int, int], ...] = ()
    """ranges, first and last; none: every port"""
    protocol: Protocol = Protocol.ANY

    @property
    def basis(self) -> Basis:
        return _BASES[type(self.target)]

    @property
    def by_name(self) -> bool:
        return self.basis is Basis.NAME

    def fits(self, port: int, protocol: Protocol) -> bool:
        if self.protocol not in (Protocol.ANY, protocol):
            return False
        return not self.ports or any(first <= port <= last for first, last in self.ports)

    def matches(self, destination: Destination) -> bool:
        return self.fits(destination.port, destination.protocol) and self.target.matches(destination)

    def covers(self, other: "Rule") -> bool:
        """Whether whatever matches the other rule matches this one."""
        return (
            self.target.covers(other.target)
            and self.protocol in (Protocol.ANY, other.protocol)
            and (not self.ports or (bool(other.ports) and all(self._covers_range(*each) for each in other.ports)))
        )

    def _covers_range(self, first: int, last: int) -> bool:
        return any(low <= first and last <= high for low, high in self.ports)


@dataclass(frozen=True, slots=True)
class TrafficLimits:
    connections: int = MAX_CONNECTIONS
    """TCP connections open at once"""
    bytes_per_second: int | None = None
    """of both directions together"""


@dataclass(frozen=True, slots=True)
class Policy:
    """What one sandbox may reach."""

    mode: Mode = Mode.NONE
    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()
    limits: TrafficLimits = field(default_factory=TrafficLimits)


@dataclass(frozen=True, slots=True)
class Site:
    """What the operator of this host has settled for all its sandboxes."""

    denied: tuple[Rule, ...] = ()
    granted: tuple[Network, ...] = ()
    """private ranges that an address rule, or the mode `open`, may reach"""
    public: tuple[Network, ...] = ()
    """private ranges that count as public here: where the site's names lead to its own mirrors or proxies"""
    resolvers: tuple[tuple[str, int], ...] = ()
    """DNS servers that the gateway asks, address and port; none: what /etc/resolv.conf names"""
    own_ports: frozenset[int] = frozenset()
    """ports of the loopback that no `host` rule reaches: the daemon's own"""


@dataclass(frozen=True, slots=True)
class Decision:
    allowed: bool
    reason: str
    """for people: it completes "this sandbox may not connect to NAME: …" """
    basis: Basis = Basis.MODE
    rule: str | None = None
    """the deciding rule's target, as it is written"""


NO_NETWORK = Decision(False, "it has no network (mode none)")
NO_RULE = Decision(False, "no rule allows it")


@dataclass(frozen=True, slots=True)
class Judge:
    """A policy at a site, to be asked. Replaced as a whole when either changes."""

    policy: Policy
    site: Site = field(default_factory=Site)

    def may_resolve(self, name: str) -> Decision:
        """Whether a DNS query for this name (in its one form) may leave. A rule with ports is for connections."""
        name = service_host(name)
        destination = Destination(name, None, 0)
        if self.policy.mode is Mode.NONE:
            return NO_NETWORK
        if denied := _first((rule for rule in self.site.denied if not rule.ports), destination):
            return _denied_by_site(denied)
        # By target alone: whichever port it is for, the name has to be found first.
        allowed = next((rule for rule in self.policy.allow if rule.target.matches(destination)), None)
        if allowed is not None:
            return _allowed(allowed)
        if _is_private_name(name):
            return Decision(False, "the name means the sandbox itself or the host")
        if denied := _first((rule for rule in self.policy.deny if not rule.ports), destination):
            return _denied(denied)
        return self._by_mode()

    def decide(self, destination: Destination) -> Decision:
        """Whether a flow to this destination is allowed, as far as the destination is known."""
        if self.policy.mode is Mode.NONE:
            return NO_NETWORK
        if denied := _first(self.site.denied, destination):
            return _denied_by_site(denied)
        if allowed := _first(self.policy.allow, destination):
            if allowed.basis is Basis.HOST and destination.port in self.site.own_ports:
                return Decision(False, "the port is the daemon's own", Basis.HOST, allowed.to)
            return _allowed(allowed)
        if HostItself().matches(destination):
            return Decision(False, 'no rule allows it: {"to": "host", "ports": […]} would', Basis.HOST)
        if denied := _first(self.policy.deny, destination):
            return _denied(denied)
        if destination.protocol is Protocol.UDP and destination.port == _HTTPS_PORT and self._has_name_rules():
            # Its name would be encrypted; clients of HTTP/3 go back to TCP at once.
            return Decision(False, "HTTP/3 hides the name that rules are about")
        return self._by_mode()

    def may_resolve_to(self, address: Address) -> Decision:
        """Whether DNS may tell a sandbox this address for a name that it may resolve.

        A name of the world that leads to a private or blocked address is an attack on whoever believes it
        (rebinding). Which port it is for is not known yet: a rule for any one is enough.
        """
        destination = Destination(None, address, 0)
        denied = _first((rule for rule in self.site.denied if not rule.ports), destination)
        allowed = next((rule for rule in self.policy.allow if rule.target.matches(destination)), None)
        return self._may_reach(address, denied, allowed)

    def may_dial(self, address: Address, port: int, *, local: bool, protocol: Protocol = Protocol.TCP) -> Decision:
        """The last word on an address, in its one form, that a flow that is allowed would be connected to.

        `local`: the kernel says that it is one of this host's own. It is not asked for a flow to the host itself.
        """
        if local:
            return Decision(False, f"the address {address} is one of this host's own", Basis.ADDRESS)
        destination = Destination(None, address, port, protocol)
        allowed = _first((rule for rule in self.policy.allow if rule.basis is Basis.ADDRESS), destination)
        return self._may_reach(address, _first(self.site.denied, destination), allowed)

    def _may_reach(self, address: Address, denied: Rule | None, allowed: Rule | None) -> Decision:
        kind = kind_of(address)
        if kind is Kind.BLOCKED:
            return Decision(False, f"the address {address} is always blocked", Basis.ADDRESS)
        if denied:
            return _denied_by_site(denied)
        if kind is Kind.PRIVATE and not _within(address, self.site.public):
            if not _within(address, self.site.granted):
                reason = f"the address {address} is private, and the site does not grant it"
                return Decision(False, reason, Basis.ADDRESS)
            if allowed is None and self.policy.mode is not Mode.OPEN:
                reason = f"the address {address} is private, and no rule allows it by address"
                return Decision(False, reason, Basis.ADDRESS)
        return _allowed(allowed) if allowed else Decision(True, "allowed", Basis.ADDRESS)

    def denies_address(self, address: Address, port: int, protocol: Protocol = Protocol.TCP) -> Decision | None:
        """The policy's own denial of an address, for a flow that is allowed by its mode only."""
        denied = _first(self.policy.deny, Destination(None, address, port, protocol))
        return _denied(denied) if denied else None

    def needs_name(self, address: Address, port: int) -> bool:
        """Whether a name could change the decision on a TCP connection.

        Otherwise nobody waits for a client's first bytes.
        """
        if self.policy.mode is Mode.NONE:
            return False
        if any(rule.by_name and rule.fits(port, Protocol.TCP) for rule in self.site.denied):
            return True
        if _first(self.policy.allow, Destination(None, address, port)):
            return False
        rules = (*self.policy.allow, *self.policy.deny)
        return any(rule.by_name and rule.fits(port, Protocol.TCP) for rule in rules)

    def _has_name_rules(self) -> bool:
        return any(rule.by_name for rule in (*self.policy.allow, *self.policy.deny, *self.site.denied))

    def _by_mode(self) -> Decision:
        if self.policy.mode in (Mode.INTERNET, Mode.OPEN):
            return Decision(True, f"mode {self.policy.mode}")
        return NO_RULE


def _first(rules: Iterable[Rule], destination: Destination) -> Rule | None:
    return next((rule for rule in rules if rule.matches(destination)), None)


def _allowed(rule: Rule) -> Decision:
    return Decision(True, f"allow {rule.to}", rule.basis, rule.to)


def _denied(rule: Rule) -> Decision:
    return Decision(False, f"its policy denies {rule.to}", rule.basis, rule.to)


def _denied_by_site(rule: Rule) -> Decision:
    return Decision(False, f"this host's operator denies {rule.to}", rule.basis, rule.to)


def _is_private_name(name: str) -> bool:
    return any(name == each or name.endswith(f".{each}") for each in _PRIVATE_NAMES)


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)
