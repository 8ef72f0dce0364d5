"""This machine: the facts a reader of the figures needs, and the private view of it in which all is measured."""

import os
import platform
import subprocess
import tempfile
from pathlib import Path

from sandboxd.kernel import overlay, syscalls

CGROUPS = Path("/sys/fs/cgroup")


def enter_private_view() -> str:
    """Give this process, and all it starts, a mount namespace of its own; says what cgroups look like in it.

    Nothing that a measured tool mounts can outlive the run then. On a hybrid host /sys/fs/cgroup becomes a plain
    cgroup v2 mount, which is what tools expect today, and no version 1 hierarchy can be reached, let alone changed.
    """
    if os.geteuid():
        return "as the host has them (not root)"
    syscalls.unshare(syscalls.CLONE_NEWNS)
    overlay.make_private()
    if not (CGROUPS / "cgroup.procs").exists():
        if CGROUPS.is_mount():
            subprocess.run(["umount", "--recursive", str(CGROUPS)], check=True)
        syscalls.mount("none", str(CGROUPS), "cgroup2")
    controllers = (CGROUPS / "cgroup.controllers").read_text().split()
    return f"v2, controllers: {' '.join(controllers) or 'none'}"


def unmount_below(directory: Path) -> None:
    """Whatever a tool that had to be killed has left mounted there, in the private view."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed(points):
        if Path(point).is_relative_to(directory):
            subprocess.run(["umount", "--lazy", point], check=True)


def facts() -> dict[str, str]:
    return {
        "kernel": platform.release(),
        "cores": str(os.cpu_count()),
        "processor": _field("/proc/cpuinfo", "model name"),
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) // 1024} MiB",
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "python": platform.python_version(),
        "scratch on": _file_system(Path(tempfile.gettempdir())),
        "load at start": f"{os.getloadavg()[0]:.2f}",
        "commit": _commit(),
    }


def memory_available() -> int:
    """Bytes that could be had without swapping."""
    return int(_field("/proc/meminfo", "MemAvailable").split()[0]) * 1024


def _field(file: str, name: str) -> str:
    for line in Path(file).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "0"


def _file_system(directory: Path) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _commit() -> str:
    here = Path(__file__).parent
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    return done.stdout.strip() or "not a checkout"
