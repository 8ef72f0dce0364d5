"""Which sandboxes there are, by every witness that can be asked; a healthy daemon's witnesses agree.

    api         what the daemon says exists (and which of them run)
    monitors    bwrap processes            inits     sandbox-init processes, each pid 1 of its own namespace
    cgroups     directories in the cgroup tree, where the daemon has one
    files       state/sandboxes            runtime   run/sandboxes

No mount is among them since none is ever made in the host's namespace: what must hold is that there are none.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from sandboxd.kernel.cgroup_tree import discover_cgroups
from tests.support import census
from tests.support.daemon import Daemon

SETTLE = 10.0
Sets = dict[str, frozenset[str]]


def ask(daemon: Daemon) -> Sets:
    """Every witness but the API, which need not be up."""
    found = list(census.processes())
    own = frozenset(os.listdir(daemon.runtime / "sandboxes")) | frozenset(os.listdir(daemon.state / "sandboxes"))
    # Another daemon of this run has sandboxes too: those whose launch log is not here are not ours.
    processes = [each for each in found if each.sandbox and (each.sandbox in own or _is_ours(daemon, each))]
    return {
        "monitors": frozenset(each.sandbox or "" for each in processes if "bwrap" in each.command.split(" ")[0]),
        "inits": frozenset(each.sandbox or "" for each in processes if each.command.startswith("/dev/sandbox-init")),
        "cgroups": _cgroups(daemon),
        "files": frozenset(os.listdir(daemon.state / "sandboxes")),
        "runtime": frozenset(os.listdir(daemon.runtime / "sandboxes")),
        "trash": frozenset(os.listdir(daemon.state / "trash")),
        "mounts": frozenset(_mounts(daemon)),
    }


def _is_ours(daemon: Daemon, process: census.Process) -> bool:
    """bwrap's output goes to the launch log, in the runtime directory of the daemon that started it."""
    try:
        return os.readlink(f"/proc/{process.pid}/fd/1").startswith(str(daemon.runtime))
    except OSError:
        return False


def _mounts(daemon: Daemon) -> list[str]:
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in mounted if point.startswith(str(daemon.root))]


def _cgroups(daemon: Daemon) -> frozenset[str]:
    directory = cgroup_directory(daemon)
    return frozenset() if directory is None else frozenset(path.name for path in directory.iterdir() if path.is_dir())


def cgroup_directory(daemon: Daemon) -> Path | None:
    """Where it keeps its sandboxes' cgroups, if it has such a place."""
    root = discover_cgroups().root
    return root / daemon.cgroup_name if root is not None and (root / daemon.cgroup_name).exists() else None


def expected(daemon: Daemon) -> Sets:
    """What the witnesses have to say, going by the API."""
    views = daemon.views()
    known = frozenset(view["id"] for view in views)
    live = frozenset(view["id"] for view in views if view["status"] == "running")
    has_cgroups = cgroup_directory(daemon) is not None
    return {
        "monitors": live,
        "inits": live,
        "cgroups": live if has_cgroups else frozenset(),
        "files": known,
        "runtime": known,
        "trash": frozenset(),
        "mounts": frozenset(),
    }


def disagreement(daemon: Daemon) -> dict[str, tuple[list[str], list[str]]]:
    """By witness: what it sees beyond the API, and what it misses. Empty when all agree, at the latest in a while."""

    def look() -> dict[str, tuple[list[str], list[str]]]:
        seen, told = ask(daemon), expected(daemon)
        return {name: (sorted(seen[name] - told[name]), sorted(told[name] - seen[name])) for name in told
                if seen[name] != told[name]}  # fmt: skip

    return settled(look)


def settled(look: Callable[[], dict[str, tuple[list[str], list[str]]]]) -> dict[str, tuple[list[str], list[str]]]:
    """What `look` still finds when it had time to find nothing: files are removed in the background."""
    deadline = time.monotonic() + SETTLE
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found
