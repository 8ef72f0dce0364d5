"""A sandbox's /dev: a bounded tmpfs with the harmless devices, terminals of its own, and shared memory.

Made by the fork server's child rather than by bwrap's --dev, whose tmpfs has no size (a sandbox could fill the host's
memory with it) and whose every bind reads the whole mount table again.
"""

import os

from sandboxd.kernel import overlay, syscalls
from sandboxd.kernel.syscalls import MS_NOEXEC, MS_NOSUID

NODES = ("full", "null", "random", "tty", "urandom", "zero")
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
# The group `tty` of every distribution: write(1) and wall(1) need it.
TTY_GROUP = 5


def make_dev(target: str, *, root_id: int) -> None:
    """Mount a /dev at `target`, which is created."""
    os.mkdir(target)
    owner = f"uid={root_id},gid={root_id}"
    syscalls.mount("dev", target, "tmpfs", flags=MS_NOSUID, data=f"mode=0755,size={SIZE},nr_inodes=4096,{owner}")
    for name in NODES:
        node = overlay.clone_tree(f"/dev/{name}")
        syscalls.mount_setattr(node, attr_set=syscalls.MOUNT_ATTR_NOSUID)
        overlay.attach(node, f"{target}/{name}")
    for name, destination in LINKS.items():
        os.symlink(destination, f"{target}/{name}")
    os.mkdir(f"{target}/shm")
    os.chmod(f"{target}/shm", 0o1777)
    os.mkdir(f"{target}/pts", 0o755)
    options = f"newinstance,ptmxmode=0666,mode=0620,gid={root_id + TTY_GROUP}"
    syscalls.mount("devpts", f"{target}/pts", "devpts", flags=MS_NOSUID | MS_NOEXEC, data=options)
