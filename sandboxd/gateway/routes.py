"""Whether an address is one of this host's own, asked of the kernel.

It knows secondary addresses and whole local ranges too, which comparing with a list of interfaces would miss.
"""

import errno
import socket
import struct

from sandboxd.gateway.addresses import Address

# <linux/rtnetlink.h>
_RTM_GETROUTE, _RTA_DST = 26, 1
_NLM_F_REQUEST, _NLMSG_ERROR = 1, 2
_OTHERS = (1,)
"""route types of addresses that are somebody else's: RTN_UNICAST"""
_NOWHERE = (errno.ENETUNREACH, errno.EHOSTUNREACH)


def is_local(address: Address) -> bool:
    """True also of what the kernel takes for local in a wider sense: broadcast, multicast, what it refuses to route.

    An address that no route leads to is nobody's: connecting to it fails by itself.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    route = struct.pack("=BBBBBBBBI", family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    body = route + struct.pack("=HH", 4 + len(address.packed), _RTA_DST) + address.packed
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.send(struct.pack("=IHHII", 16 + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0) + body)
        reply = netlink.recv(4096)
    if struct.unpack_from("=H", reply, 4)[0] == _NLMSG_ERROR:
        return -struct.unpack_from("=i", reply, 16)[0] not in _NOWHERE
    return reply[16 + 7] not in _OTHERS
