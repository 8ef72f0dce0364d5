"""Host names in one form: lower case, no trailing dot, A-labels."""

import re

MAX_NAME = 253
MAX_LABEL = 63

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII)
# Browsers and curl read a name whose last label is a number as an IPv4 address ("127.1", "0x7f.1").
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)", re.ASCII)
_TRANSPORTS = ("_tcp", "_udp")


def canonical_name(text: str) -> str:
    """The one form of a host name. Raises: ValueError saying what is wrong with it."""
    name = text.removesuffix(".")
    if not name:
        raise ValueError("it is empty")
    if not name.isascii():
        name = _a_labels(name)
    name = name.lower()
    if len(name) > MAX_NAME:
        raise ValueError(f"it has {len(name)} characters, and a host name has {MAX_NAME} at most")
    labels = name.split(".")
    for label in labels:
        if not label:
            raise ValueError("it has two dots in a row, or begins with one")
        if len(label) > MAX_LABEL:
            raise ValueError(f"{label[:12]}… has {len(label)} characters, and a label has {MAX_LABEL} at most")
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{label!r} is no label of a host name: letters, digits and inner hyphens are")
    if _NUMBER.fullmatch(labels[-1]):
        raise ValueError("it ends in a number, as only addresses do; write an IPv4 address as four decimal numbers")
    return name


def _a_labels(name: str) -> str:
    import idna  # it is large, and hardly any name needs it

    try:
        return idna.encode(name, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError) as error:
        raise ValueError(f"it is no valid international name: {error}") from error


def name_from_wire(raw: bytes) -> str | None:
    """A name that a client sent (SNI, Host, DNS) in its one form; None if it is none, as real clients never send."""
    try:
        return canonical_name(raw.decode("ascii"))
    except ValueError:
        return None


def service_host(name: str) -> str:
    """The host that a service's name is about: `_http._tcp.example.com`, which apt asks for, is example.com's."""
    labels = name.split(".", 2)
    if len(labels) == 3 and labels[0].startswith("_") and labels[1] in _TRANSPORTS:
        return labels[2]
    return name
