"""A sandbox's /dev: a bounded tmpfs with the harmless devices, terminals of its own, shared memory, and its pid 1.

Made by the fork server's child rather than by bwrap's --dev, whose tmpfs has no size (a sandbox could fill the host's
memory with it) and whose every bind reads the whole mount table again.

The devices are nodes of this file system, not the host's: otherwise whoever locks, watches or measures /dev/null
reaches the host's, and with it every other sandbox. Only root can make devices (CAP_MKNOD in the initial user
namespace, so this happens before the sandbox's own is entered). Without root the host's are shown.
"""

import os
import stat

from sandboxd.kernel import overlay, syscalls
from sandboxd.kernel.syscalls import MS_NOEXEC, MS_NOSUID

NODES = {
    "full": (1, 7),
    "null": (1, 3),
    "random": (1, 8),
    "tty": (5, 0),
    "urandom": (1, 9),
    "zero": (1, 5),
}
LINKS = {
    "core": "/proc/kcore",
    "fd": "/proc/self/fd",
    "ptmx": "pts/ptmx",
    "stderr": "/proc/self/fd/2",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
}
# Docker's size of /dev/shm; here it bounds everything below /dev.
SIZE = "64m"
# kernel.pty.max is the host's, and 4096 as it comes; without this one sandbox takes all of them.
MAX_TERMINALS = 128
# The group `tty` of every distribution: write(1) and wall(1) need it.
TTY_GROUP = 5


def make_dev(target: str, *, root_id: int) -> None:
    """Mount a /dev at `target`, which is created."""
    os.mkdir(target)
    owner = f"uid={root_id},gid={root_id}"
    syscalls.mount("dev", target, "tmpfs", flags=MS_NOSUID, data=f"mode=0755,size={SIZE},nr_inodes=4096,{owner}")
    for name, number in NODES.items():
        _make_node(f"{target}/{name}", f"/dev/{name}", os.makedev(*number))
    for name, destination in LINKS.items():
        os.symlink(destination, f"{target}/{name}")
    os.mkdir(f"{target}/shm")
    os.chmod(f"{target}/shm", 0o1777)
    os.mkdir(f"{target}/pts", 0o755)
    options = f"newinstance,ptmxmode=0666,mode=0620,max={MAX_TERMINALS},gid={root_id + TTY_GROUP}"
    syscalls.mount("devpts", f"{target}/pts", "devpts", flags=MS_NOSUID | MS_NOEXEC, data=options)


def _make_node(path: str, of_the_host: str, number: int) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, number)
    except PermissionError:
        node = overlay.clone_tree(of_the_host)
        syscalls.mount_setattr(node, attr_set=syscalls.MOUNT_ATTR_NOSUID)
        overlay.attach(node, path)
    else:
        os.chmod(path, 0o666)  # whatever the umask left of it


def add_program(target: str, program: int) -> None:
    """Put a copy of the program open as `program` into a /dev, where it can be neither written nor replaced.

    A copy, since a bind would show where the host has it, and be one file for all sandboxes; a mount of its own,
    since the sandbox's root owns the directory.
    """
    descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o555)
    try:
        os.fchmod(descriptor, 0o555)
        while os.sendfile(descriptor, program, None, 1 << 30):
            pass
    finally:
        os.close(descriptor)
    tree = overlay.clone_tree(target, read_only=True)
    try:
        syscalls.move_mount(tree, target)
    finally:
        os.close(tree)
