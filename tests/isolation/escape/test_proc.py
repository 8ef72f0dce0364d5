"""/proc: other processes by way of it, the kernel's settings, files that tell of or act on the whole machine."""

import os
from pathlib import Path

import pytest

from tests.isolation.escape.inside import Sandbox, plain_bwrap, unconfined, unconfined_outcomes

pytestmark = pytest.mark.needs_root

# Windows on another process: its memory, its files, its view of the file system.
LOOK_INTO = """
def look_into(pid):
    names = ("exe", "cwd", "root", "fd/0", "fd/1", "ns/mnt")
    links = {name: attempt(os.readlink, f"/proc/{pid}/{name}") for name in names}
    files = {name: opened(f"/proc/{pid}/{name}") for name in ("mem", "environ", "maps", "auxv", "pagemap")}
    return links | files | {"mem for writing": opened(f"/proc/{pid}/mem", os.O_RDWR)}
child = subprocess.Popen(["sleep", "60"])
"""


@pytest.mark.parametrize("who", ["1", "os.getppid()"], ids=["pid 1", "the keeper of the command"])
def test_sandbox_init_cannot_be_looked_into(sandbox: Sandbox, who: str):
    """It and its forks are not dumpable, so not even root inside gets at them. The control: an ordinary child."""
    init, child = sandbox.python(LOOK_INTO + f"report([look_into({who}), look_into(child.pid)])")
    assert set(init.values()) <= {"EACCES", "EPERM"}
    assert set(child.values()) == {""}


PTRACE_ATTACH, PTRACE_SEIZE, PTRACE_DETACH = 16, 0x4206, 17


@pytest.mark.parametrize("request_number", [PTRACE_ATTACH, PTRACE_SEIZE], ids=["attach", "seize"])
def test_pid_1_cannot_be_traced(sandbox: Sandbox, request_number: int):
    """But one's own child can, with the same call."""
    attack = f"""
child = subprocess.Popen(["sleep", "60"])
report([call(101, {request_number}, pid, 0, 0) for pid in (1, os.getppid(), child.pid)])
"""
    assert sandbox.python(attack) == ["EPERM", "EPERM", ""]


LINKS = ("/proc/1/root", "/proc/1/cwd", "/proc/self/root", "/proc/self/cwd", "/proc/thread-self/root", "/proc/2/root")


def test_no_link_in_proc_leads_to_the_host(sandbox: Sandbox, secret: Path):
    attacks = {link + up: f"opened({link + up + str(secret)!r})" for link in LINKS for up in ("", "/.." * 12)}
    assert "" not in sandbox.outcomes(attacks).values()
    assert "" in unconfined_outcomes(attacks).values()


HOST_SETTINGS = [
    "kernel/core_pattern",
    "kernel/panic",
    "kernel/printk",
    "kernel/randomize_va_space",
    "kernel/threads-max",
    "fs/file-max",
    "fs/suid_dumpable",
    "vm/overcommit_memory",
    "vm/drop_caches",
    "vm/panic_on_oom",
]


def test_the_kernels_settings_cannot_be_changed(sandbox: Sandbox):
    attacks = {name: f"opened('/proc/sys/{name}', os.O_WRONLY)" for name in HOST_SETTINGS}
    assert set(sandbox.outcomes(attacks).values()) <= {"EACCES", "EROFS", "EPERM", "ENOENT"}
    assert set(unconfined_outcomes(attacks).values()) == {""}


WRITABLE = """
import stat
found = []
for top, directories, files in os.walk("/proc"):
    if top == "/proc":
        directories[:] = [name for name in directories if not name.isdigit() and name not in ("self", "thread-self")]
    for name in files:
        path = f"{top}/{name}"
        if stat.S_ISREG(os.lstat(path).st_mode) and not opened(path, os.O_WRONLY):
            found.append(path)
report(found)
"""


def test_nothing_in_proc_is_writable(sandbox: Sandbox):
    """All of it, tried one by one; settings of the sandbox's own namespaces too."""
    assert sandbox.python(WRITABLE) == []


def test_settings_of_ones_own_namespaces_would_be_writable(sandbox: Sandbox):
    """The control of the test above: in the same namespaces, over another mount of /proc, root may change them."""
    setting = "kernel/msgmax"
    attack = {"write": f"opened('/proc/sys/{setting}', os.O_WRONLY)"}
    assert sandbox.outcomes(attack) == {"write": "EROFS"}
    enter = ["nsenter", "--user", "--net", "--ipc", "--pid", f"--target={sandbox.init}", "--setuid=0", "--setgid=0"]
    prefix = [*enter, "unshare", "--mount", "sh", "-c", 'mount -t proc proc /proc && exec "$@"', "sh"]
    assert unconfined_outcomes({"write": f"opened('/proc/sys/{setting}', os.O_WRONLY)"}, prefix=prefix) == {
        "write": ""
    }


CLOSED = (
    *("kcore", "keys", "kmsg", "kpagecgroup", "kpagecount", "kpageflags"),
    *("mtrr", "sysrq-trigger", "timer_list", "vmallocinfo"),
)


def test_files_that_tell_of_the_machine_are_closed(sandbox: Sandbox):
    attacks = {name: f"opened('/proc/{name}')" for name in CLOSED}
    assert set(sandbox.outcomes(attacks).values()) <= {"EACCES", "EPERM", "ENOENT"}
    assert "" in unconfined_outcomes(attacks).values()


def test_kernel_addresses_are_hidden(sandbox: Sandbox):
    attack = "report(sorted({line.split()[0].strip('0') for line in open('/proc/kallsyms')})[-1])"
    assert sandbox.python(attack) == ""
    assert sandbox.python(attack, user="user") == ""
    assert unconfined("report([opened('/proc/kallsyms'), open('/proc/sys/kernel/kptr_restrict').read()])")[0] == ""


IDENTITY = """
report({
    "boot_id": open("/proc/sys/kernel/random/boot_id").read(),
    "machine_id": open("/etc/machine-id").read() if os.path.exists("/etc/machine-id") else "",
    "hostname": os.uname().nodename,
})
"""


def test_each_sandbox_is_a_machine_of_its_own(new_sandbox):
    """Boot id, machine id and host name are neither the host's nor another's. The control: bwrap shows the host's."""
    one, other = new_sandbox().python(IDENTITY), new_sandbox().python(IDENTITY)
    host = unconfined(IDENTITY)
    assert len({machine["boot_id"] for machine in (one, other, host)}) == 3
    assert len({machine["machine_id"] for machine in (one, other, host)}) == 3
    assert one["hostname"] != host["hostname"]
    assert unconfined(IDENTITY, prefix=plain_bwrap()) == host


MOUNTS = "report([line.split() for line in open('/proc/self/mountinfo')])"


def test_no_mount_honours_setuid_or_devices(sandbox: Sandbox):
    """But for the devices of /dev, which are mounts of their own. (Privileges could not grow by setuid anyway.)"""
    options = {fields[4]: set(fields[5].split(",")) for fields in sandbox.python(MOUNTS)}
    assert [place for place, given in options.items() if "nosuid" not in given] == []
    assert [place for place, given in options.items() if "nodev" not in given and not place.startswith("/dev")] == []
    assert "ro" in options["/dev/sandbox-init"]
    assert "nosuid" not in {
        option for fields in unconfined(MOUNTS) if fields[4] == "/" for option in fields[5].split(",")
    }


def test_mounts_do_not_tell_where_things_are_on_the_host(sandbox: Sandbox):
    """What still shows: kinds and options of file systems, the number of the disk, the first id of the range; and the
    place of sandbox-init below its file system's root, which is a constant where the runtime directory is in /run.
    """
    mounts = " ".join(" ".join(fields) for fields in sandbox.python(MOUNTS))
    own = (str(sandbox.daemon.state), str(sandbox.daemon.image_dir), str(Path(__file__).parents[3]))
    assert [path for path in own if path in mounts] == []
    shown = unconfined(MOUNTS, prefix=plain_bwrap("--tmpfs", "/mnt", "--ro-bind", __file__, "/mnt/file"))
    assert any(os.path.basename(__file__) in " ".join(fields) for fields in shown)
