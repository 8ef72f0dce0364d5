"""Become root of a user namespace, as a daemon without root does, and have its fork server make a network for a
process that waits in namespaces of its own. Prints how many sockets came of it, and whether an interface did.

Run as an ordinary user.
"""

import os
import subprocess
from pathlib import Path

import trio

from sandboxd.isolation.bwrap.launcher import Launcher
from sandboxd.kernel.rootless import enter_rootless_namespace

# What bwrap would have done by the time it waits.
WAITING = ("unshare", "--user", "--map-root-user", "--net", "sh", "-c", "ip link set lo up && echo up && exec cat")


def main() -> None:
    with subprocess.Popen(WAITING, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == b"up\n"
        machine = os.pidfd_open(waiting.pid)
        print(trio.run(make_network, machine))
        print("eth0" in Path(f"/proc/{waiting.pid}/net/dev").read_text())
        os.close(machine)


async def make_network(machine: int) -> int:
    launcher = Launcher()
    try:
        made = await launcher.make_network(machine, kind=await launcher.find_network(), ipv6=True)
        for each in made:
            each.close()
        return len(made)
    finally:
        launcher.close()


enter_rootless_namespace()
main()
