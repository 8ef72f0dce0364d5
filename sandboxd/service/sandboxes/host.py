"""What the sandboxes stand on, gathered so that it is passed as one thing."""

import secrets
import uuid
from dataclasses import dataclass
from pathlib import Path

from sandboxd.isolation.backend import Backends
from sandboxd.isolation.plan import Slot
from sandboxd.service.resources import Resources
from sandboxd.service.sandboxes.limits import Cgroups
from sandboxd.service.sandboxes.processes import Processes
from sandboxd.service.sandboxes.ranges import IdRanges
from sandboxd.service.storage.disk import Disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The backends, and what sandboxes take of the host: all in `resources`, and by name what others need to ask."""

    backends: Backends
    resources: Resources
    ranges: IdRanges
    disk: Disk
    cgroups: Cgroups
    processes: Processes
    root_id: int
    """id on disk of a sandbox's root: 0, or 1 where the daemon itself lives in a user namespace"""
    init: Path
    """the sandbox-init binary"""

    def slot(self, sandbox: str, backend: str) -> Slot:
        """What the sandbox's next machine is to be made of, its ids reserved. Raises: Unavailable (no ids left)."""
        return Slot(
            sandbox=sandbox,
            backend=backend,
            ids=self.ranges.reserve(sandbox),
            runtime=self.disk.paths(sandbox).runtime,
            cgroup=self.cgroups.of(sandbox),
            boot_id=str(uuid.uuid4()),
            init=self.init,
        )


def new_id() -> str:
    """A sandbox's. A letter first and nothing but letters and digits: good in host names, paths and cgroup names."""
    return "s" + secrets.token_hex(10)
