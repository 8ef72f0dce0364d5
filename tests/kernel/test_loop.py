"""Loop devices are found again by the file they are over, whatever has become of the path it was opened by."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxd.kernel.loop import attached
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices take root")

# As a daemon that was killed leaves it: the mount by which it saw the file has gone with its mount namespace.
SCRIPT = """
import subprocess, sys
from pathlib import Path
from sandboxd.kernel.loop import attached, enter_private_mounts, loop_device
real, seen = Path(sys.argv[1], "real"), Path(sys.argv[1], "seen")
enter_private_mounts()
subprocess.run(["mount", "--bind", real, seen], check=True)
with loop_device(seen / "file") as device:
    subprocess.run(["umount", "--lazy", seen], check=True)
    with loop_device(real / "file") as again:
        print(device == again, attached(real / "file") == [device], attached(real / "other"))
"""


def test_a_device_is_known_by_its_file_and_goes_with_its_last_user(tmp_path: Path) -> None:
    for name in ("real", "seen"):
        (tmp_path / name).mkdir()
    for name in ("file", "other"):
        (tmp_path / "real" / name).write_bytes(bytes(1 << 20))
    done = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True True []\n", "")
    wait_until(lambda: attached(tmp_path / "real/file") == [])


def test_no_device_is_over_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert attached(tmp_path / "none") == []
