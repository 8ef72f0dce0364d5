"""The files of sandboxes on the host: what is made for one, and how it is thrown away.

    <state>/sandboxes/<id>/upper   what the sandbox wrote; `work` beside it belongs to overlayfs
    <state>/sandboxes/<id>/commands/<command>/   a background command's output (command_log.py)
    <state>/trash/<id>             on its way out: renamed first, which is instant, and removed by a thread later
    <runtime>/sandboxes/<id>/      sandbox-init's socket

Nothing here opens a path inside `upper` once the sandbox has run, other than to remove it as a whole.
"""

import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sandboxd.kernel import syscalls
from sandboxd.kernel.overlay import UPPER, WORK


@dataclass(frozen=True, slots=True)
class SandboxDirectories:
    writable: Path
    runtime: Path

    @property
    def commands(self) -> Path:
        return self.writable / "commands"


class Disk:
    """Synchronous. make() is a handful of mkdirs; purge() takes as long as the files are many."""

    def __init__(self, *, state_dir: Path, runtime_dir: Path, root_id: int) -> None:
        self._sandboxes = state_dir / "sandboxes"
        self._trash = state_dir / "trash"
        self._runtime = runtime_dir / "sandboxes"
        self._root_id = root_id
        for directory in (self._sandboxes, self._trash, self._runtime):
            directory.mkdir(parents=True, exist_ok=True)
            # Setuid files of a sandbox are setuid files of root here: nobody else may get at them.
            directory.chmod(0o700)

    def paths(self, sandbox: str) -> SandboxDirectories:
        return SandboxDirectories(self._sandboxes / sandbox, self._runtime / sandbox)

    def make(self, sandbox: str) -> SandboxDirectories:
        """The directories of a new sandbox."""
        paths = self.paths(sandbox)
        os.mkdir(paths.runtime, 0o700)
        os.mkdir(paths.writable, 0o700)
        for name in (UPPER, WORK):
            self._make_overlay_directory(f"{paths.writable}/{name}")
        return paths

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
        shutil.rmtree(paths.writable / WORK)
        self._make_overlay_directory(f"{paths.writable}/{WORK}")

    def sync(self, sandbox: str) -> None:
        """Write what the sandbox wrote to the disk itself. Takes as long as that takes."""
        directory = os.open(self.paths(sandbox).writable, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.syncfs(directory)
        finally:
            os.close(directory)

    def unmake(self, sandbox: str) -> None:
        """Take away the directories of a sandbox that never ran. Fine if they were made in part, or not at all."""
        for directory in (self.paths(sandbox).writable, self.paths(sandbox).runtime):
            shutil.rmtree(directory, ignore_errors=True)

    def discard(self, sandbox: str) -> None:
        """Take a sandbox's files out of the way; purge() removes them for good. Fine to repeat."""
        paths = self.paths(sandbox)
        if paths.writable.exists():
            paths.writable.rename(self._trash / f"{sandbox}-{secrets.token_hex(4)}")
        shutil.rmtree(paths.runtime, ignore_errors=True)

    def purge(self) -> None:
        """Remove what was discarded. With rm, because a hostile tree can be deeper than Python may recurse."""
        if doomed := [entry.path for entry in os.scandir(self._trash)]:
            subprocess.run(["rm", "-rf", "--one-file-system", "--", *doomed], check=True, capture_output=True)

    def known(self) -> frozenset[str]:
        """Sandboxes that have files here, for the sweep at start-up."""
        return frozenset(entry.name for place in (self._sandboxes, self._runtime) for entry in os.scandir(place))
