"""Network namespaces of the tests, and being in one for a moment."""

import array
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from sandboxd.kernel import syscalls

CHECKOUT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def inside(namespace: int) -> Iterator[None]:
    """This thread is in that network namespace. What is opened there belongs there, wherever it is used."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(namespace, syscalls.CLONE_NEWNET)
        try:
            yield
        finally:
            syscalls.setns(home, syscalls.CLONE_NEWNET)
    finally:
        os.close(home)


class Holder:
    """Makes namespaces as somebody else: see holder.py. Owns: its process, and every descriptor it gave."""

    def __init__(self, prefix: tuple[str, ...]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        script = str(CHECKOUT / "tests" / "network" / "holder.py")
        with theirs:
            command = [*prefix, sys.executable, "-I", script, str(theirs.fileno()), str(CHECKOUT)]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        self._control = ours

    def make(self, word: str) -> list[int]:
        """The namespace, and its sockets if it has some. They are the caller's."""
        self._control.send(word.encode())
        data, ancillary, _, _ = self._control.recvmsg(100, socket.CMSG_SPACE(5 * 4), socket.MSG_CMSG_CLOEXEC)
        assert data == b"made"
        descriptors = array.array("i")
        descriptors.frombytes(ancillary[0][2])
        return list(descriptors)

    def close(self) -> None:
        self._control.close()
        assert self._process.wait(30) == 0
