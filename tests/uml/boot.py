"""Process 1 of the User-Mode Linux machine (see machine.py): mounts, network, modules; runs the job; halts.

Standard library only and no import of ours: it is run as `python -I boot.py job.json`, by the kernel.
"""

import ctypes
import fcntl
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import termios
import traceback
import tty
from pathlib import Path
from typing import Any, Final

MNT_DETACH: Final = 2
MS_BIND: Final = 4096
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_NOSUID: Final = 2
MS_RDONLY: Final = 1
RB_POWER_OFF: Final = 0x4321FEDC
IFF_UP: Final = 1
SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914

# machine.py connects console 1 to the channel and console 2 to the file "output".
CHANNEL: Final = "/dev/tty1"
OUTPUT: Final = "/dev/tty2"
MODULES: Final = Path("/usr/lib/uml/modules")

_libc = ctypes.CDLL(None, use_errno=True)


def main(job_file: str) -> None:
    job = json.loads(Path(job_file).read_text())
    try:
        mount_kernel_file_systems()
        channel = open_terminal(CHANNEL)
        for module in job["modules"]:
            load_module(module)
        mount_private_file_systems(job)
        bring_loopback_up()
        returncode = run(job)
        os.write(channel, f"exit {returncode}\n".encode())
        termios.tcdrain(channel)
    except BaseException:
        # Ends on the console; with no exit line the outside knows that the job was not done.
        traceback.print_exc()
    finally:
        halt(job["disks"])


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    if _libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot mount {kind}: {os.strerror(number)}", target)


def mount_kernel_file_systems() -> None:
    """The kernel itself has mounted the root and a devtmpfs."""
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    Path("/dev/pts").mkdir()
    mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=620,ptmxmode=666,gid=5")
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        Path("/dev", name).symlink_to(f"/proc/self/{target}")


def mount_private_file_systems(job: dict[str, Any]) -> None:
    Path("/dev/shm").mkdir()
    for target, mode in (("/tmp", "1777"), ("/run", "755"), ("/dev/shm", "1777")):
        mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode}")
    for device, target in zip(("/dev/ubda", "/dev/ubdb"), job["disks"], strict=False):
        Path(target).mkdir(exist_ok=True)
        mount(device, target, "ext4")
    make_changeable(Path(job["disks"][0]))
    mount_host(job["shared"], 0)
    for path in job["visible"]:
        if not Path(path).exists():
            mount_host(path, MS_RDONLY)


def make_changeable(disk: Path) -> None:
    """Places on the disk for temporary files, for users' homes and for changes to /etc."""
    for name in ("tmp", "home", "etc/upper", "etc/work"):
        (disk / name).mkdir(parents=True)
    (disk / "tmp").chmod(0o1777)
    mount(f"{disk}/home", "/home", "", MS_BIND)
    mount("overlay", "/etc", "overlay", 0, f"lowerdir=/etc,upperdir={disk}/etc/upper,workdir={disk}/etc/work")


def mount_host(path: str, flags: int) -> None:
    """Put a directory of the host at its own place, over whatever hides it."""
    Path(path).mkdir(parents=True, exist_ok=True)
    mount("none", path, "hostfs", flags, path)


def bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def load_module(name: str) -> None:
    """insmod a module and, before it, what it depends on (modprobe would look in the host's /lib/modules)."""
    directory = MODULES / os.uname().release
    for line in (directory / "modules.dep").read_text().splitlines():
        path, _, dependencies = line.partition(":")
        if Path(path).name.split(".")[0] == name:
            for needed in (*reversed(dependencies.split()), path):
                subprocess.run(["/sbin/insmod", directory / needed], check=True)
            return
    raise FileNotFoundError(f"cannot load the module {name}: not in {directory}/modules.dep")


def open_terminal(path: str) -> int:
    """Open a console as a plain byte stream, and not as our controlling terminal."""
    fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    tty.setraw(fd)
    return fd


def run(job: dict[str, Any]) -> int:
    """Run the job's program to its end, reaping orphans meanwhile: that is process 1's duty."""
    output = open_terminal(OUTPUT)
    environment = {
        "HOME": "/tmp",
        "TMPDIR": f"{job['disks'][0]}/tmp",
        "SANDBOXD_UML": "1",
        "SANDBOXD_UML_CHANNEL": CHANNEL,
        "SANDBOXD_UML_SHARED": job["shared"],
        **job["env"],
    }
    # As systemd does for services: the kernel's own default of 4096 is less than any host gives a daemon.
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 524288))
    child = subprocess.Popen(
        job["argv"],
        cwd=job["cwd"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode


def halt(disks: list[str]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.sync()
    # Lazily: a process that the job left behind may still use them, and dies with the kernel in a moment.
    for disk in reversed(disks):
        _libc.umount2(disk.encode(), MNT_DETACH)
    _libc.reboot(RB_POWER_OFF)


if __name__ == "__main__":
    main(sys.argv[1])
