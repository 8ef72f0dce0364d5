"""What must go on working under all that: the other half of an allow-list's correctness."""

import shutil
import subprocess
from pathlib import Path

import pytest

from sandboxd.config import find_asset
from sandboxd.isolation.bwrap.seccomp import compile_profile
from tests.isolation.escape.inside import Sandbox

pytestmark = pytest.mark.needs_root

PACKAGE = """
mkdir -p p/DEBIAN p/opt/greeting &&
printf 'Package: greeting\\nVersion: 1\\nArchitecture: all\\nMaintainer: none <none@localhost>\\nDescription: x\\n' \\
    >p/DEBIAN/control &&
echo hello >p/opt/greeting/text &&
dpkg-deb --build p greeting.deb && dpkg -i greeting.deb && cat /opt/greeting/text && dpkg -P greeting
"""

INSIDE = {
    "adding a user": "useradd --create-home newcomer && id newcomer && userdel --remove newcomer",
    "a package": PACKAGE,
    "git": "git init -q r && cd r && git -c user.name=n -c user.email=e commit -qm m --allow-empty && git log",
    "threads": "python3 -c 'import threading; [threading.Thread(target=print).start() for _ in range(20)]'",
    "processes": "python3 -c 'import multiprocessing as m; print(m.Pool(3).map(abs, range(9)))'",
    "sockets": 'python3 -c \'import socket; s = socket.create_server(("::1", 0), family=socket.AF_INET6); '
    "socket.create_connection(s.getsockname()[:2])'",
    "addresses": "python3 -c 'import socket; print(socket.getaddrinfo(\"localhost\", 80))'",
    "a terminal": "script -qec 'tty && stty size' /dev/null",
    "a fifo": "mkfifo f && (echo x >f & cat f)",
    "a virtual environment": "python3 -m venv --without-pip v && v/bin/python -c 'import sys; print(sys.prefix)'",
    "memory": "python3 -c 'import mmap, os; d = os.memfd_create(\"m\"); os.truncate(d, 4096); mmap.mmap(d, 4096)'",
    "chroot": "chroot / true",
}


@pytest.mark.parametrize("command", INSIDE.values(), ids=INSIDE)
def test_it_works_in_a_sandbox(sandbox: Sandbox, command: str):
    done = sandbox.run(f"set -e; mkdir /var/work; cd /var/work; {command}")
    assert done.exit_code == 0, done


# Programs that the base image lacks, run from the host's files with the filter alone.
UNDER_THE_FILTER = {
    "gcc": "echo 'int main(void) { return 0; }' >p.c && gcc p.c -o p && ./p",
    "node": 'node -e \'require("fs").promises.readFile("/etc/hostname").then(console.log)\'',
    "strace": "strace -f -o log sh -c 'true; true' && grep -q execve log",
    "tmux": "tmux -L sandboxd-test -f /dev/null new-session -d 'sleep 60' && tmux -L sandboxd-test kill-server",
    "ip": "ip address show lo",
    "make": "printf 'all:\\n\\ttrue\\n' >Makefile && make",
    "gdb": "gdb -batch -ex run -ex quit --args true",
}


@pytest.mark.parametrize("name", UNDER_THE_FILTER)
def test_it_works_under_the_filter(tmp_path: Path, name: str):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    program = tmp_path / "filter"
    program.write_bytes(compile_profile(find_asset("seccomp/default.json")))
    with program.open("rb") as filter_file:
        number = filter_file.fileno()
        # fmt: off
        command = ["bwrap", "--dev-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "--seccomp", str(number),
                   "sh", "-ec", UNDER_THE_FILTER[name]]
        # fmt: on
        done = subprocess.run(command, pass_fds=[number], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
