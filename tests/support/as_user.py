"""Run a program as an ordinary user who can reach what the tests run with, wherever that lies.

    python -I -S as_user.py USER VISIBLE... -- PROGRAM ARGUMENT...

The checkout or the interpreter may lie in a directory that only root may enter (root's home, a CI runner's). In a
mount namespace of its own, the program sees each such directory replaced by an empty one that anybody may enter, with
the VISIBLE paths mounted into it under their own names. Nothing of that is visible, or left, outside.

Standard library and sandboxd.kernel only. Root runs it, and it becomes the program.
"""

import os
import pwd
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sandboxd.kernel import syscalls


def main(user: str, visible: list[Path], command: list[str]) -> None:
    entry = pwd.getpwnam(user)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    show([path.resolve() for path in visible])
    os.setgroups([])
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    os.environ.update(HOME=entry.pw_dir, USER=user, LOGNAME=user)
    os.environ.pop("XDG_RUNTIME_DIR", None)
    os.execvp(command[0], command)


def show(visible: list[Path]) -> None:
    """Make these paths reachable for everybody, in this mount namespace."""
    trees = {path: syscalls.open_tree(str(path)) for path in visible if closed_directory(path)}
    for gate in {closed_directory(path) for path in trees}:
        syscalls.mount("gate", str(gate), "tmpfs", data="mode=0755,size=64k")
    for path, tree in trees.items():
        path.mkdir(parents=True, exist_ok=True)
        syscalls.move_mount(tree, str(path))
        os.close(tree)


def closed_directory(path: Path) -> Path | None:
    """The uppermost directory on the way that others may not pass through."""
    return next((above for above in reversed(path.parents) if not above.stat().st_mode & 0o001), None)


if __name__ == "__main__":
    separator = sys.argv.index("--")
    main(sys.argv[1], [Path(path) for path in sys.argv[2:separator]], sys.argv[separator + 1 :])
