"""Files of the host, and files that would do on a host what they must not do here: devices, setuid, the init."""

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.isolation.escape.inside import Sandbox, unconfined, unconfined_outcomes

pytestmark = pytest.mark.needs_root

WAYS = [
    "",
    "/../../../../../..",
    "/oldroot",
    "/newroot",
    "/tmp/oldroot",
    "/tmp/r",
    "/tmp/w/upper",
    "/proc/self/root",
    "/proc/2/root",
    "/dev/fd/../../..",
]


def test_no_path_leads_to_a_file_of_the_host(sandbox: Sandbox, secret: Path):
    attacks = {way or "plainly": f"opened({way + str(secret)!r}, os.O_RDWR)" for way in WAYS}
    assert "" not in sandbox.outcomes(attacks).values()
    assert "" in unconfined_outcomes(attacks).values()


SEARCH = """
found = []
for top, directories, files in os.walk(TOP):
    directories[:] = [name for name in directories if top != "/proc" or not name.isdigit()]
    found += [os.path.join(top, name) for name in files if name == NAME]
report(found)
"""


def test_no_file_of_the_host_is_anywhere(sandbox: Sandbox, secret: Path):
    """The whole tree is searched. The controls: the search finds a file made inside, and outside the secret."""
    sandbox.run("mkdir -p /opt/x && touch /opt/x/own")
    assert sandbox.python(f"TOP, NAME = '/', {secret.name!r}" + SEARCH) == []
    assert sandbox.python("TOP, NAME = '/', 'own'" + SEARCH) == ["/opt/x/own"]
    assert unconfined(f"TOP, NAME = '/var/tmp', {secret.name!r}" + SEARCH) == [str(secret)]


MKNOD = """
def made(path, kind, device):
    outcome = attempt(os.mknod, path, kind | 0o666, device)
    if not outcome:
        outcome = opened(path)
        os.unlink(path)
    return outcome
import stat
NULL, MEMORY = os.makedev(1, 3), os.makedev(1, 1)
report([made(f"{top}/sandboxd-node", kind, device)
        for top in TOPS
        for kind, device in ((stat.S_IFCHR, NULL), (stat.S_IFCHR, MEMORY), (stat.S_IFBLK, DISK))])
"""


def test_no_device_can_be_made(sandbox: Sandbox):
    """Not /dev/null, nor memory, nor the disk. The control makes them on the host."""
    disk = os.stat("/").st_dev
    places = ["/tmp", "/dev", "/dev/shm", "/root"]
    inside = sandbox.python(f"TOPS = {places!r}; DISK = {disk}\n" + MKNOD)
    assert set(inside) == {"EPERM"}
    assert unconfined(f"TOPS = ['/var/tmp']; DISK = {disk}\n" + MKNOD)[0] == ""


def test_only_harmless_devices_exist(sandbox: Sandbox):
    attack = """
import stat
devices = []
for top, _, files in os.walk("/dev"):
    for name in files:
        status = os.lstat(os.path.join(top, name))
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            devices.append(os.path.join(top, name))
report(sorted(devices))
"""
    assert sandbox.python(attack) == [
        *("/dev/full", "/dev/null", "/dev/pts/ptmx", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"),
    ]
    assert len(unconfined(attack)) > 7


# Whatever a sandbox's image may hold, put into the sandbox from outside: an import would refuse some of it.


def planted(sandbox: Sandbox, name: str) -> Path:
    """A path in the sandbox's writable layer. The daemon never opens one; a test may, while nothing hostile runs."""
    return sandbox.daemon.state / "sandboxes" / sandbox.id / "upper" / name


def root_id(sandbox: Sandbox) -> int:
    """The id that the sandbox's root has on disk."""
    return planted(sandbox, "tmp").parent.stat().st_uid


def test_a_device_of_the_image_cannot_be_opened(sandbox: Sandbox, tmp_path: Path):
    node = planted(sandbox, "device")
    os.mknod(node, stat.S_IFCHR, os.makedev(1, 3))
    node.chmod(0o666)
    assert sandbox.python("report([opened('/device'), oct(os.stat('/device').st_mode)])") == ["EACCES", "0o20666"]
    assert unconfined(f"report(opened({str(node)!r}))") == ""


IDENTITY = """
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(void) {
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    printf("%d", (int)geteuid());
    while (fgets(line, sizeof line, status))
        if (!strncmp(line, "CapEff:", 7)) printf(" %s", line + 8);
    return 0;
}
"""
# struct vfs_cap_data of <linux/capability.h>, version 2, effective, with CAP_NET_RAW (13) permitted.
NET_RAW = bytes.fromhex("01000002 00200000 00000000 00000000 00000000")


def test_a_setuid_program_stays_the_callers(sandbox: Sandbox, compiled: Callable[[str], Path]):
    program = planted(sandbox, "setuid")
    shutil.copy(compiled(IDENTITY), program)
    os.chown(program, root_id(sandbox), root_id(sandbox))
    program.chmod(0o6755)
    assert sandbox.run("/setuid; stat -c %a /setuid", user="user").stdout.split() == ["1000", "0" * 16, "6755"]
    assert outside(program, user=65534).split()[0] == str(root_id(sandbox))


def test_a_program_with_file_capabilities_gets_none(sandbox: Sandbox, compiled: Callable[[str], Path]):
    program = planted(sandbox, "capable")
    shutil.copy(compiled(IDENTITY), program)
    program.chmod(0o755)
    os.setxattr(program, "security.capability", NET_RAW)
    assert sandbox.run("/capable", user="user").stdout.split() == ["1000", "0" * 16]
    assert outside(program, user=65534).split() == ["65534", f"{1 << 13:016x}"]


def outside(program: Path, *, user: int) -> str:
    """The control: the same file run by another user of the host, where nothing holds it back."""
    copy = Path(f"/var/tmp/sandboxd-escape-program-{os.getpid()}")
    try:
        subprocess.run(["cp", "--archive", program, copy], check=True)
        return subprocess.run([copy], user=user, capture_output=True, text=True, check=True).stdout
    finally:
        copy.unlink(missing_ok=True)


def test_setuid_files_of_a_sandbox_cannot_be_run_on_the_host(sandbox: Sandbox, compiled: Callable[[str], Path]):
    """On disk a sandbox's root is root, so what it makes setuid would make root of anyone with an account on the
    host: nobody else may get near it. The control: a copy of it where all may go.
    """
    sandbox.place(compiled(IDENTITY), "/setuid", mode="6755")
    program = planted(sandbox, "setuid")
    assert stat.S_IMODE(program.stat().st_mode) == 0o6755
    with pytest.raises(PermissionError):
        subprocess.run([program], user=65534, check=False)
    assert outside(program, user=65534).split()[0] == str(program.stat().st_uid) == str(root_id(sandbox))
    directories = [program.parents[1], program.parents[2]]
    assert [stat.S_IMODE(directory.stat().st_mode) & 0o077 for directory in directories] == [0, 0]


REWRITE = """
def rewritten(path):
    "CVE-2019-5736: the program that runs the sandbox, through the links of /proc or where it lies."
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        if not opened(path, flags):
            return ""
    return attempt(os.unlink, path) if path.startswith("/dev") else "refused"
"""


def test_the_init_program_cannot_be_rewritten(sandbox: Sandbox):
    """Nor replaced: another file put over it would be run as root by `sudo`. The control: a program of one's own."""
    before = digest_of(sandbox.init)
    paths = ["/dev/sandbox-init", "/proc/1/exe", "/usr/bin/sudo"]
    assert "" not in sandbox.python(REWRITE + f"report([rewritten(path) for path in {paths}])")
    replace = "report(attempt(os.rename, '/tmp/own', '/dev/sandbox-init'))"
    sandbox.run("cp /bin/true /tmp/own")
    assert sandbox.python(replace) in ("EBUSY", "EXDEV")
    assert sandbox.python(REWRITE + "report(rewritten('/tmp/own'))") == ""
    assert digest_of(sandbox.init) == before


def digest_of(pid: int) -> str:
    return hashlib.sha256(Path(f"/proc/{pid}/exe").read_bytes()).hexdigest()
