"""The network of a sandbox, as far as the kernel makes it: a namespace that has no way out.

It has an interface `eth0` that leads nowhere, for programs that look at interfaces, with an address of either family
and default routes. nftables rules hand every TCP connection and every datagram that is not for the sandbox itself to
sockets that are made here and given to the gateway, with the address that it was meant for (TPROXY); anything else is
rejected at once. The rules are a convenience and no boundary: who changes or removes them in there reaches nothing,
or the same sockets.

Every sandbox has the same addresses, since no two namespaces meet, so all of it is two messages that are encoded
once. The marks, routes and rules are the namespace's own: nothing of the host's is touched.
"""

import contextlib
import errno
import functools
import os
import socket
import sys
from collections.abc import Callable
from typing import Final

from sandboxd.kernel import netlink, syscalls

SANDBOX4: Final = "198.18.0.2"
GATEWAY4: Final = "198.18.0.1"
"""where the sandbox's resolv.conf(5) points; every other address leads to the gateway as well"""
SANDBOX6: Final = "fd5b:d::2"
GATEWAY6: Final = "fd5b:d::1"
PORT: Final = 1
"""of the sockets that everything is handed to"""

# The kinds of interface that lead nowhere. Not every kernel has the first.
KINDS: Final = ("dummy", "ifb")
_NAME, _INDEX, _MTU = "eth0", 0x5B, 65535
_LOOPBACK = 1
_MARK = _TABLE = 0x5B
_PRIORITY = 100
_BACKLOG = 4096

# <linux/in.h>, <linux/in6.h>
_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75
_IP_RECVORIGDSTADDR, _IPV6_RECVORIGDSTADDR = 20, 74
# Of each connection on the sandbox's side, which inherits them: what is left in the kernel by a client that never
# reads, or by one that sends to a server that stops reading. The kernel doubles them.
_SEND_BUFFER, _RECEIVE_BUFFER = 128 << 10, 256 << 10

_OWN: Final = (
    (netlink.IPV4, b"\x7f"),
    (netlink.IPV4, netlink.packed(SANDBOX4)),
    (netlink.IPV6, netlink.packed("::1")),
    (netlink.IPV6, netlink.packed(SANDBOX6)),
    (netlink.IPV6, b"\xfe\x80"),
    (netlink.IPV6, b"\xff"),
)


def make_network(*, kind: str, ipv6: bool) -> tuple[socket.socket, ...]:
    """Make it in the network namespace of this thread, whose loopback is up. Raises: OSError.

    The sockets are for TCP, for datagrams, and for answers to those: a raw one of each family. All belong to the
    namespace, whoever holds them. `ipv6`: give the sandbox an IPv6 address, so that it tries to use it.
    """
    _routes(kind, ipv6).send()
    _rules().send()
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(make()) for make in _sockets()]
        stack.pop_all()
    return tuple(made)


@functools.cache
def _routes(kind: str, ipv6: bool) -> netlink.Request:
    request = netlink.Request(netlink.ROUTE)
    netlink.add_link(request, _NAME, kind=kind, index=_INDEX, mtu=_MTU)
    families = [(socket.AF_INET, SANDBOX4, 30, GATEWAY4)]
    if ipv6:
        families.append((socket.AF_INET6, SANDBOX6, 126, GATEWAY6))
    for family, address, prefix, gateway in families:
        netlink.add_address(request, _INDEX, address, prefix)
        netlink.add_default_route(request, family, index=_INDEX, via=gateway)
        # What the rules have marked is for this host, whatever its address: so it comes to prerouting, and to tproxy.
        netlink.add_mark_rule(request, family, mark=_MARK, table=_TABLE, priority=_PRIORITY)
        netlink.add_default_route(
            request, family, index=_LOOPBACK, table=_TABLE, kind=netlink.LOCAL, scope=netlink.HOST
        )
    return request


@functools.cache
def _rules() -> netlink.Request:
    batch = netlink.NftBatch("sandboxd")
    batch.chain("out", kind="route", hook=netlink.OUTPUT, priority=netlink.MANGLE)
    for family, prefix in _OWN:
        batch.rule("out", netlink.destination_begins(family, prefix), netlink.accept())
    for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        carried = netlink.meta_is(netlink.META_L4PROTO, bytes([protocol]))
        batch.rule("out", carried, netlink.set_mark(_MARK), netlink.accept())
    batch.rule("out", netlink.reject())
    batch.chain("pre", kind="filter", hook=netlink.PREROUTING, priority=netlink.MANGLE)
    unmarked = netlink.meta_is(netlink.META_MARK, _MARK.to_bytes(4, sys.byteorder), negated=True)
    batch.rule("pre", unmarked, netlink.accept())
    batch.rule("pre", netlink.tproxy(PORT), netlink.accept())
    return batch.finish()


def _sockets() -> tuple[Callable[[], socket.socket], ...]:
    has_ipv6 = os.path.exists("/proc/sys/net/ipv6")
    raw = [lambda: _raw(socket.AF_INET)]
    if has_ipv6:
        raw.append(lambda: _raw(socket.AF_INET6))
    return (lambda: _listener(has_ipv6), lambda: _datagrams(has_ipv6), *raw)


def _listener(dual: bool) -> socket.socket:
    listener = _transparent(socket.SOCK_STREAM, dual)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    listener.listen(_BACKLOG)
    return listener


def _datagrams(dual: bool) -> socket.socket:
    datagrams = _transparent(socket.SOCK_DGRAM, dual)
    datagrams.setsockopt(socket.IPPROTO_IP, _IP_RECVORIGDSTADDR, 1)
    if dual:
        datagrams.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVORIGDSTADDR, 1)
    return datagrams


def _transparent(kind: int, dual: bool) -> socket.socket:
    """A socket for what is addressed to anybody, of both families (`dual`) or of IPv4."""
    made = socket.socket(socket.AF_INET6 if dual else socket.AF_INET, kind)
    try:
        made.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        if dual:
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind(("::" if dual else "0.0.0.0", PORT))
    except BaseException:
        made.close()
        raise
    return made


def _raw(family: int) -> socket.socket:
    return socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)


# -- what this host can do ------------------------------------------------------------------------------------------


def find_kind() -> str:
    """The kind of interface that this kernel has, by making a network in a namespace of a child's that is gone after.

    The kernel may load modules for the first, which takes a second. Only for a single-threaded process.
    Raises: OSError naming what the kernel lacks.
    """
    failure: OSError | None = None
    for kind in KINDS:
        try:
            _try_in_child(kind)
        except OSError as error:
            failure = error
            if error.errno != errno.EOPNOTSUPP or "interface" not in str(error):
                break
        else:
            return kind
    assert failure is not None
    raise failure


def _try_in_child(kind: str) -> None:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            _try(kind)
        except OSError as error:
            os.write(write_end, f"{error.errno} {error.strerror}".encode()[:1000])
        finally:
            os._exit(0)
    os.close(write_end)
    try:
        said = os.read(read_end, 1000).decode()
    finally:
        os.close(read_end)
        os.waitpid(child, 0)
    if said:
        number, _, reason = said.partition(" ")
        raise OSError(int(number), reason)


def _try(kind: str) -> None:
    syscalls.unshare(syscalls.CLONE_NEWNET)
    bring_loopback_up()
    made = make_network(kind=kind, ipv6=has_ipv6_here())
    for each in made:
        each.close()


def bring_loopback_up() -> None:
    """In a namespace of one's own; a sandbox's bwrap does it there. Raises: OSError."""
    request = netlink.Request(netlink.ROUTE)
    netlink.set_link_up(request, _LOOPBACK)
    request.send()


def has_ipv6_here() -> bool:
    """Whether a new interface in this namespace would get an IPv6 address if it is given one."""
    try:
        with open("/proc/sys/net/ipv6/conf/default/disable_ipv6") as file:
            return file.read().strip() == "0"
    except OSError:
        return False
