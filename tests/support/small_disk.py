"""Run a program in a mount namespace of its own, in which a directory is a small file system.

    python -I -S small_disk.py DIRECTORY MEBIBYTES -- PROGRAM ARGUMENT...

The file system is ext4 on a loop device, since a sandbox's files need idmapped mounts, which tmpfs has only since
Linux 6.3. It goes with the last process of the namespace; its image is an unlinked file by then. Root only.
"""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sandboxd.kernel import syscalls


def main(directory: str, mebibytes: int, command: list[str]) -> None:
    image = f"{directory}.img"
    with open(image, "wb") as file:
        file.truncate(mebibytes << 20)
    subprocess.run(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", image], check=True)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    # `-o loop` sets autoclear: the device goes when the file system is unmounted.
    subprocess.run(["mount", "-t", "ext4", "-o", "loop", image, directory], check=True)
    os.unlink(image)
    os.execvp(command[0], command)


if __name__ == "__main__":
    separator = sys.argv.index("--")
    main(sys.argv[1], int(sys.argv[2]), sys.argv[separator + 1 :])
