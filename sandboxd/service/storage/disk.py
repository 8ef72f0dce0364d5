"""The files of sandboxes on the host: what is made for one, and how it is thrown away.

    <volume>/sandboxes/<id>/upper   what the sandbox wrote; `work` beside it belongs to overlayfs
    <volume>/sandboxes/<id>/commands/<command>/   a background command's output (commands/log.py)
    <volume>/trash/<id>             on its way out: renamed first, which is instant, and removed by a thread later
    <runtime>/sandboxes/<id>/       sandbox-init's socket

The volume is the state directory, or the pool in it (see volume.py).

Nothing here opens a path inside `upper` once the sandbox has run, other than to remove it as a whole.
"""

import contextlib
import errno
import logging
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from sandboxd.errors import Unavailable
from sandboxd.isolation.plan import Slot
from sandboxd.kernel import syscalls
from sandboxd.kernel.inodeflags import spread_subdirectories
from sandboxd.kernel.overlay import UPPER, WORK
from sandboxd.service.resources import Lifetime, Resource
from sandboxd.service.storage.volume import Volume, seed
from sandboxd.threads import run_in_thread, run_in_thread_or_here

log = logging.getLogger(__name__)

COMMANDS = "commands"
# What was thrown away goes together: removing it one sandbox at a time would cost a process for each.
PURGE_DELAY = 0.5
PURGE_RETRY = 5.0
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def no_space(verb: str, number: int | None) -> Unavailable | None:
    """What to answer when an operation on a sandbox failed with that errno, if that was for want of room."""
    if number not in _FULL:
        return None
    return Unavailable(
        f"cannot {verb} the sandbox: no space left in the state directory; delete sandboxes or snapshots that nobody "
        "needs, or give it more room",
        kind="no_space",
    )


@dataclass(frozen=True, slots=True)
class SandboxDirectories:
    writable: Path
    runtime: Path

    @property
    def commands(self) -> Path:
        return self.writable / COMMANDS


class Disk(Resource):
    """Every sandbox's directories. But for what a Resource does, all is synchronous and works in any thread: make()
    is a handful of mkdirs; purge() takes as long as the files are many.
    """

    name: Final = "directories"
    lifetime = Lifetime.SANDBOX

    def __init__(self, *, volume: Volume, runtime_dir: Path, root_id: int) -> None:
        self.volume = volume
        self._thrown_away = trio.Event()
        self._loop: trio.lowlevel.TrioToken | None = None
        self._sandboxes = volume.root / "sandboxes"
        self._trash = volume.root / "trash"
        self._runtime = runtime_dir / "sandboxes"
        self._root_id = root_id
        for directory in (self._sandboxes, self._trash, self._runtime):
            directory.mkdir(parents=True, exist_ok=True)
            # Setuid files of a sandbox are setuid files of root here: nobody else may get at them.
            directory.chmod(0o700)
        spread_subdirectories(self._sandboxes)

    def paths(self, sandbox: str) -> SandboxDirectories:
        return SandboxDirectories(self._sandboxes / sandbox, self._runtime / sandbox)

    # -- as a resource --------------------------------------------------------------------------------------------

    async def take(self, slot: Slot) -> None:
        if self.paths(slot.sandbox).writable.exists():
            self.renew(slot.sandbox)
        else:
            self.make(slot.sandbox)

    async def release(self, sandbox: str) -> None:
        # In a thread, so that who waits for the deletion goes first.
        await run_in_thread_or_here(partial(self.discard, sandbox))

    def known(self) -> frozenset[str]:
        return frozenset(entry.name for place in (self._sandboxes, self._runtime) for entry in os.scandir(place))

    async def sweep(self, sandboxes: AbstractSet[str]) -> None:
        for sandbox in sandboxes:
            sweep_away(self.discard, sandbox)

    async def keep_purged(self) -> None:
        """A task of the service: remove for good what was thrown away, off the path of those who did."""
        self._loop = trio.lowlevel.current_trio_token()
        try:
            while True:
                self._thrown_away = trio.Event()
                try:
                    await run_in_thread(self.purge)
                except (Unavailable, OSError, subprocess.CalledProcessError) as error:
                    log.error("cannot remove what was thrown away yet: %s", error)
                    await trio.sleep(PURGE_RETRY)
                    continue
                await self._thrown_away.wait()
                await trio.sleep(PURGE_DELAY)
        finally:
            self._loop = None

    # -- directories ----------------------------------------------------------------------------------------------

    def make(self, sandbox: str) -> SandboxDirectories:
        """The directories of a new sandbox."""
        paths = self.paths(sandbox)
        os.mkdir(paths.runtime, 0o700)
        self._make_tree(paths.writable)
        return paths

    def stand_on(self, sandbox: str, *, limit: int | None, layer: Path | None) -> None:
        """Ready a tree in which nothing was written yet: it may take `limit` bytes, and lies over a layer's tree."""
        tree = self.paths(sandbox).writable
        if limit is not None:
            self.volume.limit(tree, limit)
        if layer is not None:
            seed(layer, tree)

    def replace_tree(self, sandbox: str, *, limit: int | None, layer: Path | None) -> None:
        """Throw away what a sandbox that does not run has written, if that is there, and let it begin anew.

        What is kept for the sandbox beside that (the output of its commands) stays.
        """
        tree, before = self.paths(sandbox).writable, self._trash / f"{sandbox}-{secrets.token_hex(4)}"
        if tree.exists():
            tree.rename(before)
        self._make_tree(tree)
        self.stand_on(sandbox, limit=limit, layer=layer)
        if (before / COMMANDS).exists():
            shutil.move(before / COMMANDS, tree / COMMANDS)
        self._note_thrown_away()

    def _make_tree(self, tree: Path) -> None:
        self.volume.make(tree)
        for name in (UPPER, WORK):
            self._make_overlay_directory(f"{tree}/{name}")

    def _make_overlay_directory(self, path: str) -> None:
        os.mkdir(path, 0o755)
        if self._root_id:
            os.chown(path, self._root_id, self._root_id)

    def renew(self, sandbox: str) -> None:
        """What is left of a sandbox's last machine makes place for the next one; what it wrote stays.

        overlayfs refuses a `work` in which a volatile mount has been. No sandbox ever sees that directory. A reboot
        of the host takes the runtime directory.
        """
        paths = self.paths(sandbox)
        shutil.rmtree(paths.runtime, ignore_errors=True)
        os.mkdir(paths.runtime, 0o700)
        shutil.rmtree(paths.writable / WORK, ignore_errors=True)
        self._make_overlay_directory(f"{paths.writable}/{WORK}")

    def has_files(self, sandbox: str) -> bool:
        """Whether what the sandbox wrote is there: a power cut, or a person, may have taken it."""
        return (self.paths(sandbox).writable / UPPER).is_dir()

    def sync(self, sandbox: str) -> None:
        """Write what the sandbox wrote to the disk itself. Takes as long as that takes."""
        directory = os.open(self.paths(sandbox).writable, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.syncfs(directory)
        finally:
            os.close(directory)

    def discard(self, sandbox: str) -> None:
        """Take a sandbox's files out of the way; purge() removes them for good. Fine to repeat."""
        self._discard_tree(sandbox)
        shutil.rmtree(self.paths(sandbox).runtime, ignore_errors=True)

    def _discard_tree(self, sandbox: str) -> None:
        tree = self.paths(sandbox).writable
        if tree.exists():
            self.throw_away(tree)

    def throw_away(self, tree: Path) -> None:
        """Put a tree where purge() finds it."""
        try:
            tree.rename(self._trash / f"{tree.name}-{secrets.token_hex(4)}")
        except OSError as error:
            if error.errno not in _FULL:
                raise
            # btrfs needs room even to rename. Now it takes as long as it takes, but gives some back.
            self.volume.remove([tree])
        self._note_thrown_away()

    def _note_thrown_away(self) -> None:
        if (loop := self._loop) is not None:
            with contextlib.suppress(trio.RunFinishedError):
                loop.run_sync_soon(lambda: self._thrown_away.set())

    def purge(self) -> None:
        """Remove for good what was thrown away."""
        self.volume.remove([Path(entry.path) for entry in os.scandir(self._trash)])


def sweep_away(discard: Callable[[str], None], stray: str) -> None:
    """Discard what no record knows. What cannot be discarded is told, and tried again by the next start-up."""
    try:
        discard(stray)
    except (OSError, subprocess.CalledProcessError) as error:
        log.error("cannot sweep %s: %s; remove it by hand", stray, error)
