"""Names and addresses in one form."""

import ipaddress

import pytest

from sandboxd.gateway.addresses import Kind, kind_of, kind_of_network, parse_address
from sandboxd.gateway.names import canonical_name, name_from_wire, service_host


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("example.com", "example.com"),
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("_http._tcp.deb.debian.org", "_http._tcp.deb.debian.org"),
        ("db", "db"),
        (".".join(["a" * 63] * 3) + "." + "b" * 61, ".".join(["a" * 63] * 3) + "." + "b" * 61),
    ],
)
def test_a_name_has_one_form(text: str, name: str) -> None:
    assert canonical_name(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "example.com..",
        ".example.com",
        "a..b",
        "good.com\0.evil.com",
        "good.com evil.com",
        "good.com\n",
        "good.com/",
        "-a.com",
        "a-.com",
        "a" * 64 + ".com",
        "a" * 300 + ".com",
        ".".join(["a" * 63] * 4),
        "127.1",
        "2130706433",
        "0x7f.0x1",
        "1.2.3.4",
        "[::1]",
        "good.com:443",
        "b\u0000.com",
        "\u2024\u2024",
        "*.com",
    ],
)
def test_what_is_no_name_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        canonical_name(text)
    assert name_from_wire(text.encode(errors="replace")) is None


def test_a_name_from_the_wire_is_ascii() -> None:
    assert name_from_wire(b"Good.COM.") == "good.com"
    assert name_from_wire("bücher.example".encode()) is None


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("_http._tcp.example.com", "example.com"),
        ("_secret._other.example.com", "_secret._other.example.com"),
        ("a._tcp.example.com", "a._tcp.example.com"),
        ("_a._b._tcp.example.com", "_a._b._tcp.example.com"),
        ("example.com", "example.com"),
    ],
)
def test_a_services_name_is_its_hosts(name: str, host: str) -> None:
    assert service_host(name) == host


BLOCKED = (
    "127.0.0.1 127.255.0.1 0.0.0.0 169.254.169.254 224.0.0.1 239.1.1.1 255.255.255.255 240.0.0.1 168.63.129.16 "
    "100.100.100.200 198.18.0.1 198.18.0.2 192.88.99.1 ::1 :: fe80::1 ff02::1 fd00:ec2::254 2002:0a00:0001::1 "
    "2001:0:1::1 ::ffff:127.0.0.1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe fd5b:d::1 fec0::1 ::127.0.0.1 100::1"
)
PRIVATE = (
    "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 192.0.2.1 203.0.113.9 198.19.0.1 fc00::1 fd12::1 "
    "2001:db8::1 ::ffff:10.0.0.1 64:ff9b::a00:1 3fff::1"
)
PUBLIC = "1.1.1.1 93.184.216.34 172.32.0.1 192.0.1.1 100.128.0.1 2606:2800::34 ::ffff:1.1.1.1 64:ff9b::101:101"


@pytest.mark.parametrize(
    ("kind", "addresses"), [(Kind.BLOCKED, BLOCKED), (Kind.PRIVATE, PRIVATE), (Kind.PUBLIC, PUBLIC)]
)
def test_kinds_of_addresses(kind: Kind, addresses: str) -> None:
    assert {text: kind_of(parse_address(text)) for text in addresses.split()} == dict.fromkeys(
        addresses.split(), kind
    )


def test_an_address_has_one_form() -> None:
    assert str(parse_address("::ffff:10.0.0.1")) == "10.0.0.1"
    assert str(parse_address("64:ff9b::a9fe:a9fe")) == "169.254.169.254"
    assert str(parse_address("fe80::1%eth0")) == "fe80::1"


@pytest.mark.parametrize(
    ("network", "kind"),
    [
        ("10.0.0.0/8", Kind.PRIVATE),
        ("10.1.0.0/16", Kind.PRIVATE),
        ("8.0.0.0/8", Kind.PUBLIC),
        ("0.0.0.0/0", None),
        ("127.0.0.0/9", Kind.BLOCKED),
        ("192.0.0.0/16", None),
        ("::/0", None),
        ("fe80::/10", Kind.BLOCKED),
        ("fd00::/8", None),
        ("fd12::/16", Kind.PRIVATE),
        ("2606::/16", Kind.PUBLIC),
        ("4000::/3", Kind.BLOCKED),
    ],
)
def test_kinds_of_networks(network: str, kind: Kind | None) -> None:
    assert kind_of_network(ipaddress.ip_network(network)) is kind
