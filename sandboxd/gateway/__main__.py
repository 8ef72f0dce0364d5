"""The gateway's process: python -m sandboxd.gateway CONTROL_FD [UID]

CONTROL_FD is a listening SOCK_SEQPACKET socket, on which only the daemon can connect. With UID it becomes that user
(and the group of the same number) before anything from a sandbox reaches it. In any case it gives up all
capabilities, the ways to gain any, and what it has no use for: new processes, files to write, being looked into.
"""

import ctypes
import os
import resource
import signal
import socket
import sys

import dns.rdata
import trio

from sandboxd.gateway.server import DESCRIPTORS_PER_CONNECTION, Gateway

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_SET_NAME = 4, 38, 15
_CAPABILITY_VERSION_3 = 0x20080522
_SPARE_DESCRIPTORS = 512
_NAME = b"sandboxd-gate"


def main(control: int, user: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    descriptors = raise_descriptor_limit()
    load_everything()
    give_up_privileges(user)
    listener = trio.socket.from_stdlib_socket(socket.socket(fileno=control))
    most = max(1, (descriptors - _SPARE_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION)
    trio.run(Gateway(most_connections=most).run, listener)


def raise_descriptor_limit() -> int:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def load_everything() -> None:
    """The files of what is imported later may be out of this user's reach.

    dnspython loads the code of a record type when it meets the first of them.
    """
    import encodings.idna  # noqa: F401  the codec of socket's own

    dns.rdata.load_all_types()  # type: ignore[no-untyped-call]


def give_up_privileges(user: int | None) -> None:
    """Raises: OSError."""
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        resource.setrlimit(limit, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    if libc.capset(header, none) != 0:
        raise OSError(ctypes.get_errno(), "cannot give up capabilities")
    for option, value in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "cannot give up what leads to privileges")
    libc.prctl(_PR_SET_NAME, _NAME, 0, 0, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
