"""Visiting the namespaces of another process, and coming back (setns(2))."""

import contextlib
import os
from collections.abc import Iterator

from sandboxd.kernel import syscalls


def own_namespaces() -> None:
    """Where this process is root of a user namespace only, give it namespaces of that one.

    It may neither clone the host's mounts nor come back to the host's namespaces. (The gateway, which connects
    sandboxes to the world, is no child of this process: it stays in the host's network.)
    """
    try:
        os.close(syscalls.open_tree("/"))
    except PermissionError:
        syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWNET)


class Home:
    """The mount, UTS and network namespace, root and working directory that a visit ends in: those at construction.

    Only for a single-threaded process: the kernel lets no thread leave a root that it shares with others.
    """

    def __init__(self) -> None:
        self._mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self._names = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        self._network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._directory = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    @contextlib.contextmanager
    def visit(self, process: int) -> Iterator[None]:
        """Be where the process of this pidfd is, with one's own rights: at its root, under its host name."""
        syscalls.setns(process, syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS)
        try:
            yield
        finally:
            self._return()

    @contextlib.contextmanager
    def visit_network(self, process: int) -> Iterator[None]:
        """Be in the network namespace of the process of this pidfd. What is opened there stays there."""
        syscalls.setns(process, syscalls.CLONE_NEWNET)
        try:
            yield
        finally:
            try:
                syscalls.setns(self._network, syscalls.CLONE_NEWNET)
            except OSError:
                os._exit(1)

    def _return(self) -> None:
        """A process that cannot come back may do nothing more: everything it did would happen to the other."""
        try:
            syscalls.setns(self._mounts, syscalls.CLONE_NEWNS)
            syscalls.setns(self._names, syscalls.CLONE_NEWUTS)
            # setns leads to the namespace's root, which is not ours if we were chrooted.
            os.fchdir(self._root)
            os.chroot(".")
            os.fchdir(self._directory)
        except OSError:
            os._exit(1)
