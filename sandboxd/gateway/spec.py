"""Policies and a site's settings as somebody typed them, and as they travel: JSON values, checked strictly.

    {"mode": "restricted",
     "allow": ["example.com", "*.github.com", {"to": "10.0.0.5", "ports": [5432], "protocol": "tcp"}],
     "deny": ["203.0.113.0/24"],
     "limits": {"connections": 512, "bytes_per_second": 1000000}}

Errors are told in the words of who typed it: the place in the document, what is wrong there, and what to write.
"""

import ipaddress
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, TypeVar

from sandboxd.gateway.addresses import Address, Kind, Network, contains, kind_of_network, normal
from sandboxd.gateway.names import canonical_name
from sandboxd.gateway.policy import (
    MAX_CONNECTIONS,
    Addresses,
    HostItself,
    Mode,
    Name,
    Policy,
    Protocol,
    Rule,
    Site,
    Subdomains,
    Target,
    TrafficLimits,
)
from sandboxd.gateway.suffixes import is_public_suffix

MAX_RULES = 256
"""of one list"""
MAX_PORT_RANGES = 16
"""of one rule"""
MAX_TEXT = 300
MAX_NETWORKS = 64
MAX_RESOLVERS = 8
MIN_BYTES_PER_SECOND = 1024
MAX_BYTES_PER_SECOND = 1 << 40
_DNS_PORT = 53
_LAST_PORT = 65535

Choice = TypeVar("Choice", bound=StrEnum)

_POLICY_FIELDS = ("mode", "allow", "deny", "limits")
_PLANNED = ("inject", "proxy", "dns", "ingress")
_RULE_FIELDS = ("to", "ports", "protocol")
_LIMIT_FIELDS = ("connections", "bytes_per_second")
_SITE_FIELDS = ("denied", "granted", "public", "resolvers", "own_ports")


class PolicyError(ValueError):
    """A document that is no policy. `where` is the place in it ("allow[3].ports[0]")."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where


# -- what is typed ------------------------------------------------------------------------------------------------


def parse_policy(document: Any, *, site: Site | None = None, suffixes: bool = True) -> Policy:
    """The policy that a JSON value describes. Raises: PolicyError.

    With `site`, rules for private addresses that it does not grant are refused instead of being without effect.
    `suffixes`: refuse wildcards over public suffixes; what was checked before it travelled needs it no more.
    """
    _require_fields(document, "", _POLICY_FIELDS, planned=_PLANNED)
    mode = _choice(Mode, document.get("mode", Mode.NONE), "mode")
    allow = tuple(_rules(document.get("allow", []), "allow", suffixes=suffixes))
    deny = tuple(_rules(document.get("deny", []), "deny", suffixes=False))
    if mode is Mode.NONE and (allow or deny):
        raise PolicyError("mode", 'nothing is reached in mode "none", so rules contradict it; use "restricted"')
    _require_no_contradiction(allow, deny)
    for index, rule in enumerate(allow):
        _require_reachable(rule, f"allow[{index}]", site)
    return Policy(mode=mode, allow=allow, deny=deny, limits=_limits(document.get("limits", {})))


def parse_site(document: Any) -> Site:
    """The operator's settings. Raises: PolicyError."""
    _require_fields(document, "", _SITE_FIELDS)
    return Site(
        denied=tuple(_rules(document.get("denied", []), "denied", suffixes=False)),
        granted=tuple(_private_networks(document.get("granted", []), "granted")),
        public=tuple(_private_networks(document.get("public", []), "public")),
        resolvers=tuple(_resolvers(document.get("resolvers", []))),
        own_ports=frozenset(
            _port(value, f"own_ports[{index}]")
            for index, value in enumerate(_list(document.get("own_ports", []), "own_ports", _LAST_PORT))
        ),
    )


def _rules(value: Any, where: str, *, suffixes: bool) -> Iterator[Rule]:
    for index, each in enumerate(_list(value, where, MAX_RULES)):
        yield _rule(each, f"{where}[{index}]", suffixes=suffixes)


def _rule(value: Any, where: str, *, suffixes: bool) -> Rule:
    document = {"to": value} if isinstance(value, str) else value
    if not isinstance(document, Mapping):
        raise PolicyError(where, f'write a name, an address, or {{"to": …, "ports": […]}}, not {_shown(value)}')
    _require_fields(document, where, _RULE_FIELDS)
    if "to" not in document:
        raise PolicyError(where, '"to" is missing: the name or address that the rule is about')
    target = _target(document["to"], f"{where}.to" if document is value else where, suffixes=suffixes)
    protocol = _choice(Protocol, document.get("protocol", Protocol.ANY), f"{where}.protocol")
    ports = tuple(_ports(document.get("ports", []), f"{where}.ports"))
    if isinstance(target, HostItself) and not ports and where.startswith("allow"):
        raise PolicyError(where, 'say which of the host\'s ports: {"to": "host", "ports": [11434]}')
    if protocol is Protocol.UDP and not isinstance(target, Addresses):
        raise PolicyError(f"{where}.protocol", "datagrams are allowed and denied by address only, not by name")
    return Rule(target_text(target), target, ports, protocol)


def _target(value: Any, where: str, *, suffixes: bool) -> Target:
    text = _text(value, where).strip()
    if text == "host":
        return HostItself()
    network = _network_or_none(text, where)
    if network is not None:
        return Addresses(network)
    _explain_what_is_no_name(text, where)
    try:
        if not text.startswith("*."):
            return Name(canonical_name(text))
        parent = canonical_name(text[2:])
    except ValueError as error:
        raise PolicyError(where, f"{_shown(text)} is no host name: {error}") from error
    if suffixes and is_public_suffix(parent):
        raise PolicyError(
            where,
            f"*.{parent} is everybody's, for anybody can register a name under {parent}; "
            f"name the domain that you mean, such as *.example.{parent}",
        )
    return Subdomains(parent)


def _explain_what_is_no_name(text: str, where: str) -> None:
    if text == "*":
        raise PolicyError(where, '* is every name: use the mode "internet" instead')
    if "://" in text:
        host = text.partition("://")[2].partition("/")[0].rpartition("@")[2].partition(":")[0]
        raise PolicyError(where, f"{_shown(text)} is a URL: write the host name alone, {host}")
    if "/" in text:
        raise PolicyError(where, f"{_shown(text)} is neither a host name nor a network such as 203.0.113.0/24")
    host, colon, port = text.rpartition(":")
    if colon and port.isdigit():
        raise PolicyError(where, f'write the port apart: {{"to": "{host}", "ports": [{port}]}}')
    if "*" in text.removeprefix("*."):
        raise PolicyError(
            where, f"{_shown(text)}: a * stands for whole labels at the front only, as in *.example.com"
        )


def _network_or_none(text: str, where: str) -> Network | None:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
    if "%" in text:
        raise PolicyError(where, f"{_shown(text)}: leave the zone away, link-local addresses are always blocked")
    given, slash, _ = text.partition("/")
    if slash and ipaddress.ip_address(given) != network.network_address:
        raise PolicyError(where, f"{text} has bits beyond its prefix; write {network}")
    return _normal_network(network)


def _normal_network(network: Network) -> Network:
    """IPv4 networks that are written in IPv6 become what they are."""
    first = network.network_address
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96 and normal(first).version == 4:
        return ipaddress.ip_network((normal(first).packed, network.prefixlen - 96))
    return network


def _ports(value: Any, where: str) -> Iterator[tuple[int, int]]:
    for index, each in enumerate(_list(value, where, MAX_PORT_RANGES)):
        place = f"{where}[{index}]"
        first, dash, last = each.partition("-") if isinstance(each, str) else ("", "", "")
        if dash and first.strip().isdecimal() and last.strip().isdecimal():
            low, high = _port(int(first[:6]), place), _port(int(last[:6]), place)
            if low > high:
                raise PolicyError(place, f"the range {_shown(each)} ends before it begins")
            yield low, high
        else:
            number = int(each[:6]) if isinstance(each, str) and each.isdecimal() else each
            port = _port(number, place)
            yield port, port


def _port(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LAST_PORT:
        raise PolicyError(
            where, f'{_shown(value)} is no port: write 1 to {_LAST_PORT}, or a range such as "8000-8100"'
        )
    return value


def _limits(value: Any) -> TrafficLimits:
    _require_fields(value, "limits", _LIMIT_FIELDS)
    connections = value.get("connections", MAX_CONNECTIONS)
    rate = value.get("bytes_per_second")
    return TrafficLimits(
        connections=_whole(connections, "limits.connections", 1, MAX_CONNECTIONS),
        bytes_per_second=None
        if rate is None
        else _whole(rate, "limits.bytes_per_second", MIN_BYTES_PER_SECOND, MAX_BYTES_PER_SECOND),
    )


def _private_networks(value: Any, where: str) -> Iterator[Network]:
    for index, each in enumerate(_list(value, where, MAX_NETWORKS)):
        place = f"{where}[{index}]"
        network = _network_or_none(_text(each, place), place)
        if network is None:
            raise PolicyError(place, f"{_shown(each)} is no address or network such as 10.1.0.0/16")
        if kind_of_network(network) is not Kind.PRIVATE:
            raise PolicyError(place, f"{network} is not private: the settings are about private ranges only")
        yield network


def _resolvers(value: Any) -> Iterator[tuple[str, int]]:
    for index, each in enumerate(_list(value, "resolvers", MAX_RESOLVERS)):
        place = f"resolvers[{index}]"
        host, port = _host_and_port(_text(each, place))
        try:
            address: Address = ipaddress.ip_address(host)
        except ValueError:
            raise PolicyError(place, f"{_shown(each)} is no address of a DNS server, such as 192.0.2.1") from None
        yield str(address), _port(port, place)


def _host_and_port(text: str) -> tuple[str, int]:
    """`192.0.2.1`, `192.0.2.1:5353`, `2001:db8::1`, `[2001:db8::1]:5353`."""
    host, colon, port = text.rpartition(":")
    if colon and port.isdecimal() and (":" not in host or host.startswith("[")):
        return host.strip("[]"), int(port[:6])
    return text.strip("[]"), _DNS_PORT


# -- what contradicts -----------------------------------------------------------------------------------------------


def _require_no_contradiction(allow: tuple[Rule, ...], deny: tuple[Rule, ...]) -> None:
    """A denial that an allowance covers would never deny anything, which nobody means who writes it."""
    for index, denied in enumerate(deny):
        covering = next((rule for rule in allow if rule.covers(denied)), None)
        if covering is not None:
            raise PolicyError(
                f"deny[{index}]",
                f"it contradicts allow {covering.to}, which covers {denied.to} and outranks it; take one of them out",
            )


def _require_reachable(rule: Rule, where: str, site: Site | None) -> None:
    """That an allowance is not one of addresses that nothing opens."""
    if not isinstance(rule.target, Addresses):
        return
    network = rule.target.network
    kind = kind_of_network(network)
    if kind is Kind.BLOCKED:
        hint = '; for a port of this host write {"to": "host", "ports": […]}' if network.is_loopback else ""
        raise PolicyError(where, f"{rule.to} is always blocked{hint}")
    if kind is Kind.PRIVATE and site is not None:
        open_ranges = (*site.granted, *site.public)
        if not any(contains(each, network) or contains(network, each) for each in open_ranges):
            raise PolicyError(
                where, f"{rule.to} is a private network, and this host's operator grants no range that it is in"
            )


# -- what travels ---------------------------------------------------------------------------------------------------


def target_text(target: Target) -> str:
    match target:
        case Name(name):
            return name
        case Subdomains(parent):
            return f"*.{parent}"
        case Addresses(network):
            single = network.prefixlen == network.max_prefixlen
            return str(network.network_address) if single else str(network)
        case HostItself():
            return "host"


def policy_document(policy: Policy) -> dict[str, Any]:
    """What parse_policy() makes the same policy of; complete, so that it can be shown."""
    return {
        "mode": policy.mode.value,
        "allow": [_rule_document(rule) for rule in policy.allow],
        "deny": [_rule_document(rule) for rule in policy.deny],
        "limits": {
            "connections": policy.limits.connections,
            "bytes_per_second": policy.limits.bytes_per_second,
        },
    }


def site_document(site: Site) -> dict[str, Any]:
    """What parse_site() makes the same settings of."""
    return {
        "denied": [_rule_document(rule) for rule in site.denied],
        "granted": [str(network) for network in site.granted],
        "public": [str(network) for network in site.public],
        "resolvers": [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in site.resolvers],
        "own_ports": sorted(site.own_ports),
    }


def _rule_document(rule: Rule) -> Any:
    if not rule.ports and rule.protocol is Protocol.ANY:
        return rule.to
    document: dict[str, Any] = {"to": rule.to}
    if rule.ports:
        document["ports"] = [first if first == last else f"{first}-{last}" for first, last in rule.ports]
    if rule.protocol is not Protocol.ANY:
        document["protocol"] = rule.protocol.value
    return document


# -- small checks ---------------------------------------------------------------------------------------------------


def _require_fields(value: Any, where: str, known: tuple[str, ...], *, planned: tuple[str, ...] = ()) -> None:
    if not isinstance(value, Mapping):
        raise PolicyError(where, f"write an object with {', '.join(known)}, not {_shown(value)}")
    for name in value:
        place = f"{where}.{name}" if where else str(name)[:40]
        if name in planned:
            raise PolicyError(place, "this daemon cannot do that yet; leave it away")
        if name not in known:
            raise PolicyError(place, f"there is no such setting; there are {', '.join(known)}")


def _list(value: Any, where: str, most: int) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise PolicyError(where, f"write a list, not {_shown(value)}")
    if len(value) > most:
        raise PolicyError(where, f"it has {len(value)} entries, and {most} are the most")
    return list(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise PolicyError(where, f"write a string, not {_shown(value)}")
    if not value or len(value) > MAX_TEXT:
        raise PolicyError(where, f"write 1 to {MAX_TEXT} characters, not {len(value)}")
    return value


def _choice(kind: type[Choice], value: Any, where: str) -> Choice:
    known = [member.value for member in kind]
    if not isinstance(value, str) or value not in known:
        raise PolicyError(where, f"{_shown(value)} is none of {', '.join(known)}")
    return kind(value)


def _whole(value: Any, where: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise PolicyError(where, f"write a whole number from {least} to {most}, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
