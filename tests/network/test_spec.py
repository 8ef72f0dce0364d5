"""Policies and a site's settings as somebody typed them."""

from typing import Any

import pytest

from sandboxd.gateway.policy import Mode
from sandboxd.gateway.spec import (
    MAX_RULES,
    PolicyError,
    parse_policy,
    parse_site,
    policy_document,
    site_document,
)

SITE = parse_site({"granted": ["10.1.0.0/16"], "public": ["192.0.2.0/24"]})


def restricted(*allow: Any, **more: Any) -> dict[str, Any]:
    return {"mode": "restricted", "allow": list(allow), **more}


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"mode": "none"},
        {"mode": "open", "deny": ["evil.com"]},
        restricted("example.com", "*.github.com", "203.0.114.0/24", "2606:2800::/32", "db"),
        restricted({"to": "example.com", "ports": [443, "8000-8100", "22"], "protocol": "tcp"}),
        restricted({"to": "host", "ports": [11434]}),
        restricted("*.corp", "10.1.0.5", "192.0.2.7"),
        {"mode": "internet", "allow": ["203.0.114.5"], "deny": ["203.0.114.0/24"]},
        {"mode": "internet", "limits": {"connections": 10, "bytes_per_second": 100000}},
        restricted("a.example.com", deny=["*.example.com"]),
        restricted({"to": "example.com", "ports": [443]}, deny=["example.com"]),
    ],
    ids=str,
)
def test_a_policy_is_shown_as_what_makes_the_same_policy(document: dict[str, Any]) -> None:
    policy = parse_policy(document, site=SITE)
    assert policy.mode is Mode(document.get("mode", "none"))
    assert parse_policy(policy_document(policy)) == policy


def test_a_site_is_shown_as_what_makes_the_same_site() -> None:
    document = {
        "denied": ["evil.com", {"to": "1.1.1.1", "ports": [53]}],
        "granted": ["10.1.0.0/16", "fd12::/16"],
        "public": ["192.0.2.0/24"],
        "resolvers": ["192.0.2.1", "192.0.2.1:5353", "2001:db8::1", "[2001:db8::1]:5353"],
        "own_ports": [8000],
    }
    site = parse_site(document)
    assert parse_site(site_document(site)) == site
    assert site.resolvers == (("192.0.2.1", 53), ("192.0.2.1", 5353), ("2001:db8::1", 53), ("2001:db8::1", 5353))


@pytest.mark.parametrize(
    ("document", "where", "said"),
    [
        ([], "", "write an object with mode, allow, deny, limits"),
        ({"mdoe": "none"}, "mdoe", "there is no such setting"),
        ({"mode": "host"}, "mode", "'host' is none of none, restricted, internet, open"),
        ({"mode": None}, "mode", "None is none of"),
        ({"inject": []}, "inject", "cannot do that yet"),
        ({"proxy": {}}, "proxy", "cannot do that yet"),
        ({"allow": ["example.com"]}, "mode", 'use "restricted"'),
        ({"mode": "restricted", "allow": "example.com"}, "allow", "write a list"),
        (restricted(5), "allow[0]", "write a name, an address, or"),
        (restricted(""), "allow[0]", "1 to 300 characters"),
        (restricted("a" * 301), "allow[0]", "1 to 300 characters"),
        (restricted({}), "allow[0]", '"to" is missing'),
        (restricted({"to": 5}), "allow[0].to", "write a string"),
        (restricted({"to": "a.com", "port": [1]}), "allow[0].port", "there is no such setting"),
        (restricted("good.com", "https://x.com/a?b"), "allow[1]", "is a URL: write the host name alone, x.com"),
        (restricted("https://u:p@x.com:8080"), "allow[0]", "the host name alone, x.com"),
        (restricted("x.com:443"), "allow[0]", '{"to": "x.com", "ports": [443]}'),
        (restricted("x.com/path"), "allow[0]", "neither a host name nor a network"),
        (restricted("*"), "allow[0]", 'use the mode "internet"'),
        (restricted("*.com"), "allow[0]", "*.com is everybody's"),
        (restricted("*.co.uk"), "allow[0]", "such as *.example.co.uk"),
        (restricted("*.github.io"), "allow[0]", "*.github.io is everybody's"),
        (restricted("*.CO.UK."), "allow[0]", "*.co.uk is everybody's"),
        (restricted("a.*.com"), "allow[0]", "whole labels at the front"),
        (restricted("*a.com"), "allow[0]", "whole labels at the front"),
        (restricted("good.com\0.evil.com"), "allow[0]", "is no host name"),
        (restricted("exa mple.com"), "allow[0]", "is no host name"),
        (restricted("a..com"), "allow[0]", "two dots in a row"),
        (restricted("a" * 64 + ".com"), "allow[0]", "a label has 63 at most"),
        (restricted("\u0338x.com"), "allow[0]", "no valid international name"),
        (restricted("127.1"), "allow[0]", "ends in a number"),
        (restricted("10.0.0.1/8"), "allow[0]", "write 10.0.0.0/8"),
        (restricted("10.0.0.0/33"), "allow[0]", "neither a host name nor a network"),
        (restricted("127.0.0.1"), "allow[0]", '{"to": "host"'),
        (restricted("::1"), "allow[0]", '{"to": "host"'),
        (restricted("169.254.169.254"), "allow[0]", "always blocked"),
        (restricted("::ffff:169.254.169.254"), "allow[0]", "always blocked"),
        (restricted("64:ff9b::a9fe:a9fe"), "allow[0]", "always blocked"),
        (restricted("fe80::1%eth0"), "allow[0]", "leave the zone away"),
        (restricted("192.168.1.1"), "allow[0]", "grants no range that it is in"),
        (restricted("::ffff:192.168.0.0/112"), "allow[0]", "grants no range that it is in"),
        (restricted("host"), "allow[0]", "say which of the host's ports"),
        (restricted({"to": "a.com", "ports": [0]}), "allow[0].ports[0]", "0 is no port"),
        (restricted({"to": "a.com", "ports": [65536]}), "allow[0].ports[0]", "65536 is no port"),
        (restricted({"to": "a.com", "ports": [True]}), "allow[0].ports[0]", "True is no port"),
        (restricted({"to": "a.com", "ports": [443.0]}), "allow[0].ports[0]", "443.0 is no port"),
        (restricted({"to": "a.com", "ports": ["9" * 5000]}), "allow[0].ports[0]", "is no port"),
        (restricted({"to": "a.com", "ports": ["90-80"]}), "allow[0].ports[0]", "ends before it begins"),
        (restricted({"to": "a.com", "ports": ["80-"]}), "allow[0].ports[0]", "is no port"),
        (restricted({"to": "a.com", "ports": [1] * 17}), "allow[0].ports", "16 are the most"),
        (restricted({"to": "a.com", "protocol": "icmp"}), "allow[0].protocol", "none of any, tcp, udp"),
        (restricted({"to": "a.com", "protocol": "udp"}), "allow[0].protocol", "by address only"),
        (restricted(*["a.com"] * (MAX_RULES + 1)), "allow", f"{MAX_RULES} are the most"),
        ({"mode": "internet", "deny": ["a.com"] * 1000}, "deny", "it has 1000 entries"),
        (restricted("a.com", deny=["a.com"]), "deny[0]", "contradicts allow a.com"),
        (restricted("*.a.com", deny=["b.a.com"]), "deny[0]", "contradicts allow *.a.com"),
        (restricted("8.0.0.0/8", deny=["x.com", "8.8.0.0/16"]), "deny[1]", "contradicts allow 8.0.0.0/8"),
        ({"limits": {"connections": 0}}, "limits.connections", "from 1 to 512"),
        ({"limits": {"bytes_per_second": 5}}, "limits.bytes_per_second", "from 1024"),
        ({"limits": {"bytes": 5}}, "limits.bytes", "there is no such setting"),
        ({"limits": None}, "limits", "write an object"),
    ],
)
def test_a_bad_policy_is_refused_in_the_words_of_who_typed_it(document: Any, where: str, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(document, site=SITE)
    assert caught.value.where == where
    assert said in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"granted": ["127.0.0.0/8"]}, "is not private"),
        ({"granted": ["8.8.8.8"]}, "is not private"),
        ({"public": ["0.0.0.0/0"]}, "is not private"),
        ({"resolvers": ["dns.example"]}, "no address of a DNS server"),
        ({"resolvers": ["192.0.2.1"] * 9}, "8 are the most"),
        ({"own_ports": ["x"]}, "no port"),
        ({"dns": []}, "no such setting"),
    ],
)
def test_bad_settings_of_a_site_are_refused(document: Any, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        parse_site(document)


def test_what_was_checked_before_it_travelled_needs_no_list_of_suffixes() -> None:
    assert parse_policy(restricted("*.github.io"), suffixes=False).allow[0].to == "*.github.io"
