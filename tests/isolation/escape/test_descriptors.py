"""Descriptors that reach out of the sandbox, and working directories by way of them (CVE-2024-21626)."""

import os
from pathlib import Path

import pytest

from tests.isolation.escape.inside import Sandbox, plain_bwrap, unconfined
from tests.support import census

pytestmark = pytest.mark.needs_root

# Everything open, other than the directory being listed and the script itself.
OPEN = """
found = {}
for number in os.listdir("/proc/self/fd"):
    try:
        found[int(number)] = os.readlink(f"/proc/self/fd/{number}")
    except FileNotFoundError:
        pass
"""

# From each open directory, up to its root and down again to the host's file.
CLIMB = (
    OPEN
    + """
reached = []
for number in found:
    for depth in range(12):
        path = f"/proc/self/fd/{number}/" + "../" * depth + SECRET.lstrip("/")
        if not opened(path):
            reached.append(path)
report(reached)
"""
)


def test_a_command_has_three_descriptors(sandbox: Sandbox):
    """The control: one more, left open by whoever starts a program."""
    assert set(sandbox.python(OPEN + "report(found)")) == {"0", "1", "2"}
    directory = os.open("/", os.O_RDONLY)
    try:
        leaked = unconfined(OPEN + "report(found)", pass_fds=[directory])
    finally:
        os.close(directory)
    assert leaked[str(directory)] == "/"


def test_no_descriptor_leads_to_the_host(sandbox: Sandbox, secret: Path):
    attack = f"SECRET = {str(secret)!r}" + CLIMB
    assert sandbox.python(attack) == []
    directory = os.open("/", os.O_RDONLY)
    try:
        # A root without the host's /var: what is reached there is reached by the descriptor.
        assert unconfined(attack, prefix=plain_bwrap("--tmpfs", "/var"), pass_fds=[directory]) != []
    finally:
        os.close(directory)


@pytest.mark.parametrize("numbers", [range(64), range(190, 230)], ids=["low", "as passed to bwrap"])
def test_no_working_directory_leads_to_the_host(sandbox: Sandbox, secret: Path, numbers: range):
    """runc took /proc/self/fd/7 as a working directory while it still held a directory of the host under 7."""
    up = "../" * 12
    for number in numbers:
        answer = sandbox.daemon.call(
            "POST",
            f"/v1/sandboxes/{sandbox.id}/shell",
            {"cmd": f"cat {up}{secret}", "cwd": f"/proc/self/fd/{number}", "user": "root"},
        )
        assert "the host's secret" not in str(answer.data)
    directory = os.open("/", os.O_RDONLY)
    try:
        prefix = plain_bwrap("--tmpfs", "/var", "--chdir", f"/proc/self/fd/{directory}")
        attack = f"report(opened({'.' + str(secret)!r}))"
        assert unconfined(attack, prefix=prefix, pass_fds=[directory]) == ""
    finally:
        os.close(directory)


def test_init_holds_nothing_of_the_host(sandbox: Sandbox):
    """Seen from the host: sockets, pipes and /dev/null; no file, no directory. The control: this process's own."""
    sandbox.run("true")
    assert kinds_of(sandbox.init) <= {"socket", "pipe", "anon_inode", "/dev/null"}
    with open(__file__) as file:
        assert file.name in kinds_of(os.getpid())


def kinds_of(pid: int) -> set[str]:
    """What the descriptors of a process are: the part before ":[inode]", or the path."""
    return {link.partition(":")[0] for link in census.descriptors(pid)}
