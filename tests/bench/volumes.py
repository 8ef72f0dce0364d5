"""Disks to copy files on, each its own, new and empty: none has to be tidied, or waits for what others write."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final

from sandboxd.kernel import syscalls
from sandboxd.kernel.loop import loop_device
from tests.bench.provision import NotAvailable, debian_program
from tests.bench.sandboxd import Sandboxd
from tests.bench.systems import System, Workplace
from tests.support import pool

SIZE: Final = 12 << 30
_PACKAGES: Final = {"ext4": "e2fsprogs", "xfs": "xfsprogs", "btrfs": "btrfs-progs"}
_MAKE: Final = {"ext4": ("-q", "-F"), "xfs": ("-q", "-f", "-m", "reflink=1", "-s", "size=4096")}
_OPTIONS: Final = {"ext4": "noinit_itable", "xfs": ""}


class OnExt4(Sandboxd):
    name = "sandboxd ext4"


class OnXfs(Sandboxd):
    """Without a pool, where files can share blocks."""

    name = "sandboxd xfs"
    disk = "xfs"


class InPool(Sandboxd):
    disk = None
    file_system: ClassVar[str]

    def prepare(self) -> None:
        _tool(self.file_system)
        pool.init(self.daemon, self.file_system, str(SIZE))


class InXfsPool(InPool):
    name = "sandboxd xfs pool"
    file_system = "xfs"


class InBtrfsPool(InPool):
    name = "sandboxd btrfs pool"
    file_system = "btrfs"


OURS: tuple[type[Sandboxd], ...] = (OnExt4, OnXfs, InXfsPool, InBtrfsPool)


@contextmanager
def opened(kind: type[System], workplace: Workplace) -> Iterator[System]:
    """A system of that kind on a disk of its own, ready. Raises: NotAvailable."""
    disk = nullcontext(workplace.scratch) if kind.disk is None else _new_disk(workplace.scratch, kind.disk)
    with disk as place:
        system = kind(replace(workplace, scratch=place))
        try:
            system.open()
            yield system
        finally:
            system.close()


@contextmanager
def _new_disk(scratch: Path, file_system: str) -> Iterator[Path]:
    """Mounted in the bench's own mounts, over a loop device that goes with the mount."""
    image, point = scratch / "disk.img", scratch / "disk"
    program = _tool(file_system)
    point.mkdir()
    with open(image, "xb") as file:
        file.truncate(SIZE)
    try:
        subprocess.run([program, *_MAKE[file_system], image], check=True, capture_output=True)
        with loop_device(image) as device:
            syscalls.mount(device, str(point), file_system, data=_OPTIONS[file_system])
        yield point
    finally:
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
        image.unlink()
        point.rmdir()


def _tool(file_system: str) -> Path:
    if os.geteuid():
        raise NotAvailable("mounting takes root")
    return debian_program(f"mkfs.{file_system}", _PACKAGES[file_system])
