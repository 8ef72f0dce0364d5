"""How the tests are shared out between processes (pytest-xdist)."""

import os
from typing import Any

from xdist.scheduler import LoadFileScheduling

# They wait for daemons and for clocks nearly half of their time: two for each processor. But each has a daemon or
# three, and there are host ids for sixteen on a machine (sandboxd.service.sandboxes.ranges).
PER_PROCESSOR = 2
MOST_PROCESSES = 5
# What takes longest, a minute and more, begins first: at the end one process would be alone with it.
LONG = (
    "tests/uml",
    "tests/e2e/test_model.py",
    "tests/e2e/test_crash_sleep.py",
    "tests/e2e/test_crash.py",
    "tests/e2e/test_schema.py",
    "tests/e2e/test_pool.py",
    "tests/e2e/test_snapshot_crash.py",
    "tests/e2e/test_background_crash.py",
    "tests/cli/test_terminal.py",
    "tests/service/test_image_build.py",
)


def processes() -> int:
    """How many `--numprocesses=auto` makes."""
    return min(PER_PROCESSOR * len(os.sched_getaffinity(0)), MOST_PROCESSES)


class ByFile(LoadFileScheduling):
    """A file's tests stay together, for they share daemons; those of User-Mode Linux, which share a machine, too."""

    def _split_scope(self, nodeid: str) -> str:
        path = str(super()._split_scope(nodeid))
        return "tests/uml" if path.startswith("tests/uml/") else path

    def _assign_work_unit(self, node: Any) -> None:
        waiting = [name for name in LONG if name in self.workqueue]
        if waiting:
            self.workqueue.move_to_end(waiting[0], last=False)
        super()._assign_work_unit(node)
