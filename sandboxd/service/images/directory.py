"""What the image store does to its directory: whole writes, locks, removal, durability."""

import contextlib
import ctypes
import fcntl
import json
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sandboxd.errors import Unprocessable
from sandboxd.kernel import syscalls

log = logging.getLogger(__name__)

_ONLY_HERE: Final = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV
_BUILDING: Final = ".building-"
_MOUNT_POINTS: Final = (("dev", 0o755), ("proc", 0o755), ("run", 0o755), ("sys", 0o755), ("tmp", 0o1777))

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Staging:
    """A directory to make an image in. `root` is an open descriptor of its rootfs, `lock` keeps it from sweeping."""

    path: Path
    root: int
    lock: int


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Exclude every other user of this image directory. Held for moments only: never while a tree is written."""
    with open(directory / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def sole_builder(directory: Path, key: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Exclude others who would make the same image: they wait, and find it made. `waiting` is called if we do."""
    path = directory / f"{_BUILDING}{key}"
    with _lock_file(path, waiting):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _lock_file(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Make and lock a file that whoever holds it deletes: the one locked has to be the one that is there yet."""
    while True:
        with open(path, "w") as file:
            if not _try_lock(file.fileno()):
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(path, file.fileno()):
                yield
                return


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def staging(directory: Path, *, id_base: int) -> Iterator[Staging]:
    """A new place to make an image in, removed at the end unless it was renamed."""
    with contextlib.ExitStack() as stack:
        with locked(directory):  # so that no sweep sees it before its own lock is held
            path = Path(tempfile.mkdtemp(prefix=".tmp-", dir=directory))
            stack.callback(remove_tree, path)
            lock = stack.enter_context(open_directory(path))
            fcntl.flock(lock, fcntl.LOCK_EX)
        (path / "rootfs").mkdir()
        root = stack.enter_context(open_directory(path / "rootfs"))
        os.fchown(root, id_base, id_base)
        os.fchmod(root, 0o755)
        yield Staging(path, root, lock)


def add_mount_points(root: int, *, id_base: int) -> None:
    """Make the directories that every sandbox expects, where the image's maker left them out.

    Raises: Unprocessable when one that something is mounted on is there as anything but a directory. The launch would
    refuse it too (kernel/overlay), but the person to tell is the one who brings the image.
    """
    for name, mode in _MOUNT_POINTS:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=root)
            os.chown(name, id_base, id_base, dir_fd=root)
            os.chmod(name, mode, dir_fd=root)
    for name in ("dev", "proc"):
        if not stat.S_ISDIR(os.stat(name, dir_fd=root, follow_symlinks=False).st_mode):
            raise Unprocessable(
                f"cannot use this as an image: its /{name} is not a directory, and sandboxes have one mounted there",
                kind="bad_mount_point",
            )


def sweep(directory: Path) -> None:
    """Delete what interrupted work left behind: whatever is being worked on is locked."""
    with locked(directory):
        abandoned = [path for path in directory.glob(".tmp-*") if not _is_locked(path)]
    for path in abandoned:
        remove_tree(path)
    for path in directory.glob(f"{_BUILDING}*"):
        _sweep_lock_file(path)


def _sweep_lock_file(path: Path) -> None:
    """Delete what a builder that was killed left; the next one of the same image would take it over, if it comes."""
    with contextlib.suppress(FileNotFoundError), open(path) as file:
        if _try_lock(file.fileno()) and _is_at(path, file.fileno()):
            path.unlink()


def move_away(path: Path) -> Path:
    """Take `path` out of sight in one step; what is returned is left to remove_tree(), or the next sweep."""
    doomed = Path(tempfile.mkdtemp(prefix=".tmp-", dir=path.parent))
    path.rename(doomed / path.name)
    return doomed


def remove_tree(path: Path) -> None:
    """Delete a tree that may be gone already, or be going in another process.

    Never through a mount point: a build that was killed may have left the host's /dev mounted in its directory. What
    such a mount keeps from being deleted stays, and is tried again by the next sweep.
    """
    try:
        with open_directory(path) as directory:
            _empty(directory)
        path.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("cannot delete %s: %s; unmount what is mounted there", path, error)


def _empty(directory: int) -> None:
    for name in os.listdir(directory):
        try:
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            continue
        except IsADirectoryError:
            below = syscalls.openat2(directory, name, flags=os.O_RDONLY | os.O_DIRECTORY, resolve=_ONLY_HERE)
            try:
                _empty(below)
            finally:
                os.close(below)
            os.rmdir(name, dir_fd=directory)


class JsonFiles:
    """JSON files read again only when they have changed: others may share the directory. Not to be modified."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, ...], Any]] = {}

    def read(self, path: Path) -> Any:
        """Raises: OSError, ValueError."""
        found = os.stat(path)
        stamp = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            known = self._known[path] = (stamp, json.loads(path.read_bytes()))
        return known[1]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace the file as a whole; after a crash it holds the old value or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def open_directory(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def syncfs(descriptor: int) -> None:
    """Bring the file system to disk: without it, a power cut could leave a published image with empty files."""
    if _libc.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"syncfs: {os.strerror(number)}")


def _is_locked(path: Path) -> bool:
    try:
        with open_directory(path) as descriptor:
            return not _try_lock(descriptor)
    except FileNotFoundError:
        return True
