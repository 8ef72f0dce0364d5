"""New namespaces, mounts, chroot: the ways to a view of the system other than the sandbox's own."""

from pathlib import Path

import pytest

from tests.isolation.escape.inside import Sandbox, unconfined, unconfined_outcomes

pytestmark = pytest.mark.needs_root

FLAGS = {
    "NEWNS": 0x20000,
    "NEWCGROUP": 0x2000000,
    "NEWUTS": 0x4000000,
    "NEWIPC": 0x8000000,
    "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
    "NEWTIME": 0x80,
}

# What the calls below do in a child, so that nobody is left in a new namespace; SIGCHLD and no stack make it a fork.
CLONING = """
def in_child(function):
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, json.dumps(function()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return json.loads(os.read(read_end, 100))

def cloned(number, *arguments):
    ctypes.set_errno(0)
    child = libc.syscall(ctypes.c_long(number), *arguments)
    if child == 0:
        os._exit(0)
    if child < 0:
        return errno.errorcode[ctypes.get_errno()]
    os.waitpid(child, 0)
    return ""

def clone(flags):
    return cloned(56, ctypes.c_ulong(flags | 17), None, None, None, None)

def clone3(flags):
    arguments = struct.pack("11Q", flags, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)
    return cloned(435, arguments, ctypes.c_long(len(arguments)))
"""


@pytest.mark.parametrize("user", ["root", "user"])
def test_unshare_is_refused(sandbox: Sandbox, user: str):
    attack = CLONING + f"report([in_child(lambda: call(272, flag)) for flag in {list(FLAGS.values())}])"
    assert set(sandbox.python(attack, user=user)) == {"EPERM"}
    assert set(unconfined(attack)) == {""}


def test_clone_makes_processes_but_no_namespaces(sandbox: Sandbox):
    flags = [flag for name, flag in FLAGS.items() if name != "NEWTIME"]  # to clone that is a part of the exit signal
    attack = CLONING + f"report([clone(flag) for flag in {[0, *flags]}])"
    assert sandbox.python(attack) == ["", *["EPERM"] * len(flags)]
    assert set(unconfined(attack)) == {""}


def test_clone3_looks_unimplemented(sandbox: Sandbox):
    """Its flags are out of a filter's reach, so none of it is let in."""
    attack = CLONING + f"report([clone3(flag) for flag in {[0, *FLAGS.values()]}])"
    assert set(sandbox.python(attack)) == {"ENOSYS"}
    assert set(unconfined(attack)) == {""}


def test_setns_is_refused(sandbox: Sandbox):
    attack = "report(call(308, os.open('/proc/self/ns/uts', os.O_RDONLY), 0))"
    assert sandbox.python(attack) == "EPERM"
    assert unconfined(attack) == ""


MOUNTS = {
    "mount": "call(165, b'none', b'/mnt', b'tmpfs', 0, None)",
    "bind": "call(165, b'/usr', b'/mnt', None, 4096, None)",
    "proc": "call(165, b'none', b'/mnt', b'proc', 0, None)",
    "remount": "call(165, b'none', b'/', None, 4096 | 32, None)",
    "umount": "call(166, b'/proc', 2)",
    "fsopen": "call(430, b'tmpfs', 0)",
    "fspick": "call(433, -100, b'/', 0)",
    "open_tree": "call(428, -100, b'/', 1)",
    "mount_setattr": "call(442, -100, b'/mnt', 0, struct.pack('4Q', 0, 0, 0, 0), 32)",
}


def test_mounting_is_refused(sandbox: Sandbox):
    """The control mounts in a mount namespace of its own, which ends with it."""
    assert sandbox.outcomes(MOUNTS) == dict.fromkeys(MOUNTS, "EPERM")
    control = unconfined_outcomes(MOUNTS, prefix=["unshare", "--mount", "--propagation", "private"])
    assert "EPERM" not in control.values()


# The classic way out of a chroot: keep a directory above the new root, and walk up from it.
CHROOT = """
os.makedirs("/tmp/jail", exist_ok=True)
outside = os.open("/", os.O_RDONLY)
os.chroot("/tmp/jail")
os.fchdir(outside)
for _ in range(20):
    os.chdir("..")
os.chroot(".")
report([os.path.exists("/tmp/jail"), opened({secret!r})])
os.chdir("/")
os.rmdir("/tmp/jail")
"""


def test_breaking_out_of_a_chroot_leads_to_the_sandboxs_root(sandbox: Sandbox, secret: Path):
    assert sandbox.python(CHROOT.format(secret=str(secret))) == [True, "ENOENT"]
    assert unconfined(CHROOT.format(secret=str(secret))) == [True, ""]
