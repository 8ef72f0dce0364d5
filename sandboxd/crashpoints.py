"""Numbered places at which a test lets the daemon die, to prove that the next start finds a way from there.

The environment variable SANDBOXD_CRASH_AT names a file that, while it is there, names a point; the daemon SIGKILLs
itself on reaching that. Without the variable a point costs one comparison.
"""

import contextlib
import os
import signal
from pathlib import Path
from typing import Final

# Those between the steps of a walk over resources are not among them: service/resources.py names them.
POINTS: Final = (
    "slot:forked",
    "create:taken",
    "create:assembled",
    "create:confirmed",
    "create:launched",
    "pause:recorded",
    "pause:frozen",
    "pause:confirmed",
    "resume:recorded",
    "resume:thawed",
    "resume:confirmed",
    "stop:recorded",
    "stop:asked",
    "stop:killed",
    "stopped:confirmed",
    "exited:confirmed",
    "start:recorded",
    "start:launched",
    "start:confirmed",
    "snapshot:frozen",
    "layer:copied",
    "layer:sealed",
    "snapshot:recorded",
    "layer:moved",
    "snapshot:confirmed",
    "snapshot:forgotten",
    "layer:forgotten",
    "clone:sealed",
    "restore:recorded",
    "restore:replaced",
    "restore:confirmed",
    "import:unpacking",
    "import:confirmed",
    "export:staged",
    "storage:allocated",
    "storage:formatted",
    "storage:named",
    "storage:enlarged",
    "storage:removed",
    "delete:asked",
    "delete:forgotten",
    "delete:killed",
    "command:recorded",
    "command:spawned",
    "command:confirmed",
    "command:logged",
    "command:ended",
    "command:released",
)

_FILE = os.environ.get("SANDBOXD_CRASH_AT")


def crash_point(name: str) -> None:
    if _FILE is None:
        return
    with contextlib.suppress(FileNotFoundError):
        if Path(_FILE).read_text() == name:
            os.kill(os.getpid(), signal.SIGKILL)
