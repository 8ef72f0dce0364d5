"""What a policy answers: the questions put to it, one table each."""

from typing import Any

import pytest

from sandboxd.gateway.addresses import HOST4, parse_address
from sandboxd.gateway.policy import Basis, Destination, Judge, Protocol
from sandboxd.gateway.spec import parse_policy, parse_site

RESTRICTED = {
    "mode": "restricted",
    "allow": [
        "good.com",
        "*.good.com",
        {"to": "ssh.example", "ports": [22]},
        {"to": "9.9.9.0/24", "ports": ["8000-8010"]},
        {"to": "10.1.0.5", "ports": [5432]},
        {"to": "9.9.8.8", "protocol": "udp", "ports": [123]},
        {"to": "host", "ports": [11434, 8000]},
    ],
}
INTERNET = {
    "mode": "internet",
    "allow": ["keep.evil.com"],
    "deny": ["evil.com", "*.evil.com", "9.9.9.0/24", {"to": "mail.example", "ports": [25]}],
}
SITE = {
    "denied": ["never.com", "*.never.com", "7.7.7.7", {"to": "6.6.6.6", "ports": [25]}],
    "granted": ["10.1.0.0/16"],
    "public": ["192.0.2.0/24"],
    "own_ports": [8000],
}


def judge(policy: dict[str, Any], site: dict[str, Any] = SITE) -> Judge:
    return Judge(parse_policy(policy), parse_site(site))


@pytest.mark.parametrize(
    ("policy", "name", "address", "port", "allowed", "basis"),
    [
        (RESTRICTED, "good.com", "1.1.1.1", 443, True, Basis.NAME),
        (RESTRICTED, "a.b.good.com", "1.1.1.1", 443, True, Basis.NAME),
        (RESTRICTED, "good.com.evil.com", "1.1.1.1", 443, False, Basis.MODE),
        (RESTRICTED, "evilgood.com", "1.1.1.1", 443, False, Basis.MODE),
        (RESTRICTED, "com", "1.1.1.1", 443, False, Basis.MODE),
        (RESTRICTED, "ssh.example", "1.1.1.1", 22, True, Basis.NAME),
        (RESTRICTED, "ssh.example", "1.1.1.1", 443, False, Basis.MODE),
        (RESTRICTED, None, "9.9.9.1", 8005, True, Basis.ADDRESS),
        (RESTRICTED, None, "9.9.9.1", 8011, False, Basis.MODE),
        (RESTRICTED, None, "1.1.1.1", 443, False, Basis.MODE),
        (RESTRICTED, None, "9.9.8.8", 123, False, Basis.MODE),  # it is a rule for datagrams
        (RESTRICTED, None, str(HOST4), 11434, True, Basis.HOST),
        (RESTRICTED, None, str(HOST4), 22, False, Basis.HOST),
        (RESTRICTED, None, str(HOST4), 8000, False, Basis.HOST),  # the daemon's own
        ({"mode": "open"}, None, str(HOST4), 22, False, Basis.HOST),
        (INTERNET, "fine.com", "1.1.1.1", 443, True, Basis.MODE),
        (INTERNET, "evil.com", "1.1.1.1", 443, False, Basis.NAME),
        (INTERNET, "x.evil.com", "1.1.1.1", 443, False, Basis.NAME),
        (INTERNET, "keep.evil.com", "1.1.1.1", 443, True, Basis.NAME),
        (INTERNET, None, "9.9.9.9", 443, False, Basis.ADDRESS),
        (INTERNET, "mail.example", "1.1.1.1", 25, False, Basis.NAME),
        (INTERNET, "mail.example", "1.1.1.1", 443, True, Basis.MODE),
        (INTERNET, "never.com", "1.1.1.1", 443, False, Basis.NAME),
        (INTERNET, None, "7.7.7.7", 443, False, Basis.ADDRESS),
        (INTERNET, None, "6.6.6.6", 25, False, Basis.ADDRESS),
        (INTERNET, None, "6.6.6.6", 443, True, Basis.MODE),
        ({"mode": "restricted", "allow": ["a.never.com"]}, "a.never.com", "7.7.7.7", 1, False, Basis.NAME),
        ({"mode": "none"}, "good.com", "1.1.1.1", 443, False, Basis.MODE),
        ({"mode": "none"}, None, str(HOST4), 11434, False, Basis.MODE),
    ],
)  # fmt: skip
def test_whether_a_flow_is_allowed(
    policy: dict[str, Any], name: str | None, address: str, port: int, allowed: bool, basis: Basis
) -> None:
    decision = judge(policy).decide(Destination(name, parse_address(address), port))
    assert (decision.allowed, decision.basis) == (allowed, basis)
    assert decision.reason


@pytest.mark.parametrize(
    ("policy", "address", "port", "allowed"),
    [
        (RESTRICTED, "9.9.8.8", 123, True),
        (RESTRICTED, "9.9.9.1", 8005, True),
        (RESTRICTED, "1.1.1.1", 123, False),
        (INTERNET, "1.1.1.1", 123, True),
        (INTERNET, "1.1.1.1", 443, False),  # HTTP/3, with rules about names
        ({"mode": "internet"}, "1.1.1.1", 443, True),
        (INTERNET, "9.9.9.9", 123, False),
    ],
)
def test_datagrams_are_judged_by_address(policy: dict[str, Any], address: str, port: int, allowed: bool) -> None:
    destination = Destination(None, parse_address(address), port, Protocol.UDP)
    assert judge(policy, {}).decide(destination).allowed is allowed


@pytest.mark.parametrize(
    ("policy", "address", "port", "allowed"),
    [
        ({"mode": "internet"}, "1.1.1.1", 443, True),
        ({"mode": "internet"}, "10.1.0.5", 443, False),  # granted, but no rule names it
        ({"mode": "open"}, "10.1.0.5", 443, True),
        ({"mode": "open"}, "10.2.0.5", 443, False),  # not granted
        (RESTRICTED, "10.1.0.5", 5432, True),
        (RESTRICTED, "10.1.0.5", 443, False),
        (RESTRICTED, "10.1.0.6", 5432, False),
        ({"mode": "restricted", "allow": ["10.0.0.0/8"]}, "10.1.9.9", 443, True),
        ({"mode": "restricted", "allow": ["10.0.0.0/8"]}, "10.2.9.9", 443, False),
        ({"mode": "restricted", "allow": ["0.0.0.0/0"]}, "169.254.169.254", 80, False),
        ({"mode": "restricted", "allow": ["0.0.0.0/0"]}, "127.0.0.1", 80, False),
        ({"mode": "open"}, "169.254.169.254", 80, False),
        ({"mode": "open"}, "168.63.129.16", 80, False),
        ({"mode": "internet"}, "192.0.2.9", 443, True),  # counts as public here
        ({"mode": "internet"}, "7.7.7.7", 443, False),
        ({"mode": "internet"}, "::ffff:10.1.0.5", 443, False),
        ({"mode": "internet"}, "64:ff9b::a9fe:a9fe", 443, False),
    ],
)
def test_the_last_word_is_on_the_address_that_is_dialled(
    policy: dict[str, Any], address: str, port: int, allowed: bool
) -> None:
    asked = judge(policy)
    assert asked.may_dial(parse_address(address), port, local=False).allowed is allowed
    assert not asked.may_dial(parse_address(address), port, local=True).allowed


@pytest.mark.parametrize(
    ("policy", "name", "allowed"),
    [
        (RESTRICTED, "good.com", True),
        (RESTRICTED, "_http._tcp.good.com", True),
        (RESTRICTED, "secret.of.good.com", True),
        (RESTRICTED, "ssh.example", True),  # its port is looked at when somebody connects
        (RESTRICTED, "secret.evil.com", False),
        (RESTRICTED, "_x._y.evil.com", False),
        (RESTRICTED, "host.sandboxd.internal", True),
        ({"mode": "internet"}, "host.sandboxd.internal", False),
        ({"mode": "internet"}, "x.localhost", False),
        (INTERNET, "fine.com", True),
        (INTERNET, "x.evil.com", False),
        (INTERNET, "keep.evil.com", True),
        (INTERNET, "mail.example", True),  # denied for one port only
        (INTERNET, "x.never.com", False),
        ({"mode": "restricted", "allow": ["x.never.com"]}, "x.never.com", False),
        ({"mode": "none"}, "good.com", False),
    ],
)
def test_whether_a_name_is_asked_for(policy: dict[str, Any], name: str, allowed: bool) -> None:
    assert judge(policy).may_resolve(name).allowed is allowed


@pytest.mark.parametrize(
    ("policy", "address", "allowed"),
    [
        ({"mode": "internet"}, "1.1.1.1", True),
        ({"mode": "internet"}, "10.1.0.5", False),
        ({"mode": "internet"}, "169.254.169.254", False),
        ({"mode": "internet"}, "7.7.7.7", False),
        ({"mode": "internet"}, "6.6.6.6", True),
        (RESTRICTED, "10.1.0.5", True),
        (RESTRICTED, "10.1.0.6", False),
        ({"mode": "open"}, "10.1.0.6", True),
    ],
)
def test_which_addresses_dns_may_tell(policy: dict[str, Any], address: str, allowed: bool) -> None:
    assert judge(policy).may_resolve_to(parse_address(address)).allowed is allowed


@pytest.mark.parametrize(
    ("policy", "address", "port", "needed"),
    [
        ({"mode": "internet"}, "1.1.1.1", 443, False),
        ({"mode": "restricted", "allow": ["9.9.9.0/24"]}, "1.1.1.1", 443, False),
        (RESTRICTED, "1.1.1.1", 443, True),
        (RESTRICTED, "9.9.9.1", 8005, False),
        (INTERNET, "1.1.1.1", 25, True),
        ({"mode": "internet", "deny": [{"to": "a.com", "ports": [25]}]}, "1.1.1.1", 443, False),
        ({"mode": "none"}, "1.1.1.1", 443, False),
    ],
)
def test_nobody_waits_for_a_name_that_changes_nothing(
    policy: dict[str, Any], address: str, port: int, needed: bool
) -> None:
    assert judge(policy, {}).needs_name(parse_address(address), port) is needed


def test_what_the_site_denies_by_name_makes_names_matter_everywhere() -> None:
    assert judge({"mode": "restricted", "allow": ["9.9.9.9"]}).needs_name(parse_address("9.9.9.9"), 443)
