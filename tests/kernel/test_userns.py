"""User namespaces for id ranges, made for real; takes root, or the root of a namespace."""

import os
import subprocess
import sys

import pytest

from sandboxd.kernel.userns import IDS_PER_RANGE, make_userns

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="maps ids that are not its own, which takes root")

START = 0x7100_0000


def test_the_namespace_maps_one_range() -> None:
    descriptor = make_userns(START, max_processes=100)
    try:
        command = ["nsenter", f"--user=/proc/self/fd/{descriptor}", "cat", "/proc/self/uid_map", "/proc/self/gid_map"]
        output = subprocess.run(command, pass_fds=(descriptor,), check=True, capture_output=True, text=True).stdout
    finally:
        os.close(descriptor)
    assert [line.split() for line in output.splitlines()] == [["0", str(START), str(IDS_PER_RANGE)]] * 2


def test_a_lower_hard_limit_of_processes_is_kept_to() -> None:
    script = f"""
import os, resource
resource.setrlimit(resource.RLIMIT_NPROC, (200, 200))
from sandboxd.kernel.userns import make_userns
os.close(make_userns({START}, max_processes=4096))
"""
    # Root may go beyond its hard limit by CAP_SYS_RESOURCE; an ordinary user's daemon may not.
    command = [
        "setpriv",
        "--bounding-set",
        "-sys_resource",
        "--inh-caps",
        "-sys_resource",
        sys.executable,
        "-c",
        script,
    ]
    subprocess.run(command, check=True)


def test_whatever_fails_in_the_child_is_an_error_here_and_never_a_second_copy_of_us() -> None:
    mine = os.getpid()
    with pytest.raises(OSError, match=f"cannot make a user namespace for ids from {1 << 40}: .+"):
        make_userns(1 << 40, max_processes=100)
    assert os.getpid() == mine
