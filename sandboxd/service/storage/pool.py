"""The pool: one sparse file with a file system in it that can share blocks and keep quotas, whatever the host has.

    <state>/pool.img   the file; .pool.img.new while it is made
    <state>/pool       where the daemon, and nobody else, has it mounted; tells that there was a pool, should the file
                       be missing

It is mounted in the daemon's own mount namespace over a loop device that detaches itself, so nothing has to be undone
when the daemon ends, however it ends; sandboxes that live on keep what they need of it.

Everything blocks. Raises (every function): StartupError, with what to do.
"""

import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from sandboxd.crashpoints import crash_point
from sandboxd.errors import StartupError
from sandboxd.kernel import btrfs, loop, syscalls
from sandboxd.service.storage.volume import BtrfsVolume, PlainVolume, Volume, XfsVolume

FileSystem = Literal["btrfs", "xfs"]
FILE_SYSTEMS: Final[tuple[FileSystem, ...]] = ("btrfs", "xfs")

SMALLEST: Final = 512 << 20
"""XFS refuses less than 300 MB, and btrfs works badly when small"""
_MAGIC: Final[dict[FileSystem, tuple[int, bytes]]] = {"xfs": (0, b"XFSB"), "btrfs": (0x10040, b"_BHRfS_M")}
_MAKE: Final[dict[FileSystem, tuple[str, ...]]] = {
    # The metadata twice, as btrfs would by itself, takes twice the writes for a disk whose host should do that.
    "btrfs": ("mkfs.btrfs", "--quiet", "--metadata", "single"),
    # The sectors of the loop device (kernel/loop.py): XFS is not mounted on larger ones than it was made for.
    "xfs": ("mkfs.xfs", "-q", "-f", "-m", "reflink=1", "-s", "size=4096"),
}
_GROW: Final[dict[FileSystem, tuple[str, ...]]] = {
    "btrfs": ("btrfs", "filesystem", "resize", "max"),
    "xfs": ("xfs_growfs",),
}
_PACKAGE: Final[dict[FileSystem, str]] = {"btrfs": "btrfs-progs", "xfs": "xfsprogs"}
_MOUNT_FLAGS: Final = syscalls.MS_NODEV | syscalls.MS_NOSUID | syscalls.MS_NOATIME


@dataclass(frozen=True, slots=True)
class Pool:
    state_dir: Path

    @property
    def file(self) -> Path:
        return self.state_dir / "pool.img"

    @property
    def new(self) -> Path:
        return self.state_dir / ".pool.img.new"

    @property
    def point(self) -> Path:
        return self.state_dir / "pool"

    def expected(self) -> bool:
        """Whether there is a pool, or traces of one."""
        return self.file.exists() or self.point.exists()


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    file_system: FileSystem
    size: int
    """bytes that the file may come to take"""
    taken: int
    """bytes that it takes on the host's disk now"""
    in_use: bool


def open_volume(state_dir: Path, *, rootless: bool) -> Volume:
    """The pool, mounted in this process's mount namespace, or the state directory where there is none."""
    pool = Pool(state_dir)
    pool.new.unlink(missing_ok=True)
    if not pool.expected():
        return PlainVolume(state_dir, userxattr=rootless)
    if rootless:
        raise StartupError(f"cannot use {pool.file}: mounting a pool takes root")
    file_system = _file_system(pool)
    pool.point.mkdir(mode=0o700, exist_ok=True)
    with _device(pool) as device:
        quotas = _mount(pool, device, file_system)
    if file_system == "xfs":
        return XfsVolume(pool.point, device, quotas=quotas)
    return BtrfsVolume(pool.point, quotas=quotas)


@contextlib.contextmanager
def _device(pool: Pool) -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        try:
            device = stack.enter_context(loop.loop_device(pool.file))
        except OSError as error:
            raise StartupError(
                f"cannot use the pool {pool.file}: no loop device for it: {error.strerror}; load the kernel's module "
                "`loop`, and in a container see that /dev has its devices"
            ) from error
        yield device


def _mount(pool: Pool, device: str, file_system: FileSystem) -> bool:
    """Mount it with quotas if this kernel has them for that file system, and whether it has."""
    if file_system == "btrfs":
        _mount_with(pool, device, file_system, "discard=async")
        return _try_quotas(pool.point)
    try:
        _mount_with(pool, device, file_system, "discard,prjquota")
    except StartupError:
        _mount_with(pool, device, file_system, "discard")
        return False
    return True


def _try_quotas(point: Path) -> bool:
    try:
        btrfs.enable_quotas(point)
    except OSError as error:
        return error.errno == errno.EEXIST
    return True


def _mount_with(pool: Pool, device: str, file_system: FileSystem, options: str) -> None:
    try:
        syscalls.mount(device, str(pool.point), file_system, flags=_MOUNT_FLAGS, data=options)
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise StartupError(f"cannot mount the pool {pool.file}: this kernel has no {file_system}") from error
        check = "btrfs check" if file_system == "btrfs" else "xfs_repair"
        raise StartupError(
            f"cannot mount the pool {pool.file}: {error.strerror or error}; it may be damaged: try `{check}` on "
            "it, or give up what is in it with `sandboxd storage destroy --force`"
        ) from error


def _file_system(pool: Pool) -> FileSystem:
    """By its magic number."""
    try:
        with open(pool.file, "rb") as file:
            for name, (offset, magic) in _MAGIC.items():
                if os.pread(file.fileno(), len(magic), offset) == magic:
                    return name
    except FileNotFoundError:
        raise StartupError(
            f"cannot find the pool {pool.file}: bring it back, or give up what was in it with "
            "`sandboxd storage destroy --force`"
        ) from None
    raise StartupError(
        f"cannot use the pool {pool.file}: it holds neither btrfs nor XFS; bring it back from where you saved it, or "
        "give it up with `sandboxd storage destroy --force`"
    )


# -- commands -----------------------------------------------------------------------------------------------------


def init(state_dir: Path, *, size: int, file_system: FileSystem) -> PoolStatus:
    """Make the pool. Until the last step nothing but a file that the next start-up removes is there."""
    pool = Pool(state_dir)
    _require_room(pool, size)
    pool.new.unlink(missing_ok=True)
    try:
        with open(pool.new, "xb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.truncate(size)
            crash_point("storage:allocated")
            _run(file_system, *_MAKE[file_system], str(pool.new))
            os.fsync(file.fileno())
        crash_point("storage:formatted")
        pool.new.rename(pool.file)
    except OSError as error:
        raise StartupError(f"cannot make {pool.file}: {error.strerror or error}") from error
    finally:
        pool.new.unlink(missing_ok=True)
    crash_point("storage:named")
    pool.point.mkdir(mode=0o700, exist_ok=True)
    return status(state_dir)


def _require_room(pool: Pool, size: int) -> None:
    if pool.expected():
        raise StartupError(f"cannot make a pool: there is one in {pool.state_dir}; `sandboxd storage status` tells")
    if size < SMALLEST:
        raise StartupError(f"cannot make a pool of {size} bytes: it takes {SMALLEST} at least")
    free = shutil.disk_usage(pool.state_dir).free
    if size > free:
        raise StartupError(f"cannot make a pool of {size} bytes: {pool.state_dir} has {free} bytes left")
    if records := _records(pool):
        raise StartupError(
            f"cannot make a pool: {records} sandboxes and layers lie outside of it; delete sandboxes and snapshots"
        )


def grow(state_dir: Path, *, size: int) -> PoolStatus:
    """Make it larger. For a process that is in a mount namespace of its own."""
    pool = Pool(state_dir)
    file_system = _file_system(pool)
    now = pool.file.stat().st_size
    if size < now:
        raise StartupError(f"cannot make the pool smaller: it has {now} bytes")
    if size - now > shutil.disk_usage(pool.state_dir).free:
        raise StartupError(f"cannot grow the pool to {size} bytes: the disk has no room for {size - now} more")
    os.truncate(pool.file, size)
    crash_point("storage:enlarged")
    with _device(pool) as device:
        loop.refresh_size(device)
        _mount(pool, device, file_system)
        _run(file_system, *_GROW[file_system], str(pool.point))
    return replace(status(state_dir), in_use=False)


def status(state_dir: Path) -> PoolStatus:
    pool = Pool(state_dir)
    if not pool.expected():
        raise StartupError(f"cannot find a pool in {state_dir}: make one with `sandboxd storage init`")
    file_system = _file_system(pool)
    found = pool.file.stat()
    return PoolStatus(
        file_system=file_system,
        size=found.st_size,
        taken=found.st_blocks * 512,
        in_use=bool(loop.attached(pool.file)),
    )


def destroy(state_dir: Path, *, force: bool) -> None:
    """Remove the pool; `force`: with the files of sandboxes and snapshots that are in it."""
    pool = Pool(state_dir)
    if not pool.expected():
        raise StartupError(f"cannot find a pool in {state_dir}")
    if loop.attached(pool.file):
        raise StartupError("cannot remove the pool: sandboxes run on it; start the daemon and delete them")
    if not force and (records := _records(pool)):
        raise StartupError(
            f"cannot remove the pool: {records} sandboxes and layers are in it; delete them, or say --force"
        )
    pool.file.unlink(missing_ok=True)
    crash_point("storage:removed")
    with contextlib.suppress(FileNotFoundError):
        pool.point.rmdir()


def _records(pool: Pool) -> int:
    """How many sandboxes and layers the database knows."""
    database = pool.state_dir / "state.db"
    if not database.exists():
        return 0
    with contextlib.closing(sqlite3.connect(database)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        counts = [
            connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("sandboxes", "layers")
            if table in tables
        ]
    return int(sum(counts))


def _run(file_system: FileSystem, program: str, *arguments: str) -> None:
    """One of the file system's own tools; what it says goes into the error."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if found is None:
        raise StartupError(f"cannot find {program}: install the package {_PACKAGE[file_system]}")
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise StartupError(f"cannot go on: {program} said: {(done.stderr or done.stdout).strip()[-500:]}")
