"""The front door without root: become root of a user namespace made of the user's subordinate ids (subuid(5)).

Inside, the user is id 0 and their 65536 subordinate ids are 1..65536. From there the daemon does the same work as
with root, except that idmapped mounts are not to be had: files lie on disk with the ids 1..65536 already.
"""

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass

from sandboxd.kernel import syscalls
from sandboxd.kernel.userns import IDS_PER_RANGE

# In the daemon's namespace: the sandboxes' root, and the id on disk that stands for root in images.
FIRST_ID = 1


@dataclass(frozen=True, slots=True)
class SubordinateIds:
    uids: int
    """first of 65536 host uids that belong to the user"""
    gids: int


def find_subordinate_ids() -> SubordinateIds:
    """What /etc/subuid and /etc/subgid give this user. Raises: PermissionError that says what to install or add."""
    for tool in ("newuidmap", "newgidmap"):
        if shutil.which(tool) is None:
            raise PermissionError(f"{tool} is missing: install the package uidmap")
    return SubordinateIds(_first_range("/etc/subuid"), _first_range("/etc/subgid"))


def _first_range(path: str) -> int:
    user = pwd.getpwuid(os.getuid()).pw_name
    owners = {user, str(os.getuid())}
    try:
        with open(path) as file:
            entries = [line.strip().split(":") for line in file]
    except FileNotFoundError:
        entries = []
    for entry in entries:
        if len(entry) == 3 and entry[0] in owners and int(entry[2]) >= IDS_PER_RANGE:
            return int(entry[1])
    raise PermissionError(
        f"{path} gives {user} no range of {IDS_PER_RANGE} ids: "
        f"run `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}` as root"
    )


def rejoin_rootless_namespace(namespace: int) -> None:
    """Become root of a namespace that an earlier process of this user made. Raises: OSError.

    A daemon whose sandboxes outlived it has to: over what runs below another namespace, even one with the same ids,
    the root of a new one has no power.
    """
    syscalls.setns(namespace, syscalls.CLONE_NEWUSER)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def enter_rootless_namespace() -> None:
    """Move this (single-threaded) process into its own user namespace, as root there. Raises: OSError."""
    ids = find_subordinate_ids()
    me = os.getpid()
    start, told = os.pipe()
    helper = os.fork()
    if helper == 0:  # stays outside: newuidmap must be run from the parent namespace
        os.close(told)
        os.read(start, 1)
        os._exit(_write_maps(me, ids))
    os.close(start)
    try:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
    finally:
        os.close(told)
        _, status = os.waitpid(helper, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise PermissionError("newuidmap or newgidmap refused the ids of /etc/subuid and /etc/subgid")
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _write_maps(pid: int, ids: SubordinateIds) -> int:
    maps = (("newuidmap", os.getuid(), ids.uids), ("newgidmap", os.getgid(), ids.gids))
    for tool, own, first in maps:
        arguments = [tool, str(pid), "0", str(own), "1", str(FIRST_ID), str(first), str(IDS_PER_RANGE)]
        if subprocess.run(arguments, check=False).returncode != 0:
            return 1
    return 0
