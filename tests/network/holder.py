"""A process that makes network namespaces, with no more rights than its user has over a user namespace of its own.

    python -I holder.py SOCKET_FD CHECKOUT

Each request over the socket is one word: `empty` is answered with a namespace whose loopback is up, `sandbox` with
one that has a sandbox's network, and its sockets. It ends with the socket. Standard library and sandboxd.kernel only.
"""

import array
import os
import socket
import sys

sys.path.insert(0, sys.argv[2])

from sandboxd.kernel import sandbox_network, syscalls


def main(control: socket.socket) -> None:
    kind = sandbox_network.find_kind()
    while word := control.recv(100):
        syscalls.unshare(syscalls.CLONE_NEWNET)
        sandbox_network.bring_loopback_up()
        made = sandbox_network.make_network(kind=kind, ipv6=True) if word == b"sandbox" else ()
        namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        descriptors = [namespace, *(each.fileno() for each in made)]
        control.sendmsg([b"made"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])
        os.close(namespace)
        for each in made:
            each.close()


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
