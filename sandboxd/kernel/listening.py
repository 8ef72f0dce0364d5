"""Which TCP ports are listened on in another process's network namespace, and who listens: from /proc, by the host.

What the kernel writes there is its own; only the command's name is chosen by the program. A sandbox can have any
number of sockets and processes, so every look is bounded, and what is beyond the bound is left out.
"""

import contextlib
import os
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

# Listening sockets come first in these files (tcp_get_idx in the kernel), so the rest need not be read at all.
MAX_LISTENERS = 4096
MAX_PROCESSES = 512
MAX_DESCRIPTORS = 1024

_LISTEN = "0A"
_SOCKET = re.compile(r"socket:\[(\d+)\]")
_INNER_PID = re.compile(r"^NSpid:.*?(\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    port: int
    address: str
    uid: int
    """who made the socket, as the reader's user namespace numbers it"""
    inode: int


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    """as its own pid namespace numbers it"""
    command: str
    """at most 15 characters, chosen by the program"""


def listening_sockets(pid: int) -> list[ListeningSocket]:
    """The listening TCP sockets in the network namespace of `pid`. Raises: OSError when the process is gone."""
    found = []
    for name in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{name}", encoding="ascii") as table:
            next(table, None)
            for line in islice(table, MAX_LISTENERS):
                fields = line.split()
                if fields[3] != _LISTEN:
                    break
                found.append(_listener(fields))
    return found


def _listener(fields: list[str]) -> ListeningSocket:
    address, _, port = fields[1].partition(":")
    return ListeningSocket(int(port, 16), _address(address), int(fields[7]), int(fields[9]))


def _address(text: str) -> str:
    """The kernel prints each 32 bits of a network-order address as one number of the host's order."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
    return socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words))


def owners(root: int, inodes: set[int]) -> dict[int, Process]:
    """For each socket, one process at or below `root` that has it open, as far as they can be seen."""
    found: dict[int, Process] = {}
    for pid in _family(root):
        for inode in _sockets_of(pid) & inodes - found.keys():
            if (process := _describe(pid)) is not None:
                found[inode] = process
        if len(found) == len(inodes):
            break
    return found


def _family(root: int) -> Iterator[int]:
    """A process and its descendants, the nearest first."""
    waiting = [root]
    for pid in islice(waiting, MAX_PROCESSES):  # the list grows while it is walked
        yield pid
        with contextlib.suppress(OSError):
            for task in islice(Path(f"/proc/{pid}/task").iterdir(), MAX_PROCESSES):
                waiting.extend(map(int, (task / "children").read_text().split()))


def _sockets_of(pid: int) -> set[int]:
    found = set()
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in islice(entries, MAX_DESCRIPTORS):
            with contextlib.suppress(OSError):
                if match := _SOCKET.fullmatch(os.readlink(entry.path)):
                    found.add(int(match[1]))
    return found


def _describe(pid: int) -> Process | None:
    try:
        command = Path(f"/proc/{pid}/comm").read_bytes().decode("utf-8", "replace").removesuffix("\n")
        match = _INNER_PID.search(Path(f"/proc/{pid}/status").read_bytes().decode("utf-8", "replace"))
    except OSError:
        return None
    return Process(int(match[1]) if match else pid, command)
