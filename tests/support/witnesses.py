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
from sandboxd.service.sandboxes.slots import READY
from tests.support import census
from tests.support.daemon import Daemon
from tests.support.waiting import PATIENCE

Sets = dict[str, frozenset[str]]
Findings = dict[str, tuple[list[str], list[str]]]


def ask(daemon: Daemon) -> Sets:
    """Every witness but the API, which need not be up. None of them counts the slots that wait."""
    processes = [each for each in census.processes() if each.daemon == str(daemon.root)]
    marked = [each for each in processes if each.sandbox]
    seen = {
        "monitors": {each.sandbox or "" for each in marked if "bwrap" in each.command.split(" ")[0]},
        "inits": {each.sandbox or "" for each in marked if each.command.startswith("/dev/sandbox-init")},
        "cgroups": _cgroups(daemon),
        "files": os.listdir(daemon.volume / "sandboxes"),
        "layers": os.listdir(daemon.volume / "layers"),
        "runtime": os.listdir(daemon.runtime / "sandboxes"),
        "trash": os.listdir(daemon.volume / "trash"),
        "mounts": _mounts(daemon),
    }
    slots = census.waiting(processes)
    return {name: frozenset(found) - slots for name, found in seen.items()}


def slots(daemon: Daemon) -> frozenset[str]:
    """The ids of the slots that it keeps."""
    return census.waiting(each for each in census.processes() if each.daemon == str(daemon.root))


def has_its_slots(daemon: Daemon, *, running: int = 0) -> bool:
    """All of them, beside so many sandboxes that run: the last is its own when it holds both of its processes."""
    return len(slots(daemon)) == READY and census.pidfds(daemon.pid) >= 2 * (READY + running)


def init_of(sandbox: str) -> int:
    """The host pid of a sandbox's pid 1. Its forks bear its name, and once pids wrap around, lower pids."""
    return next(pid for pid in _pids_of(sandbox, "/dev/sandbox-init") if _pid_inside(pid) == 1)


def _pid_inside(pid: int) -> int:
    """As its own pid namespace has it; 0 if it has gone."""
    return int(_status(pid).get("NSpid", "0").split()[-1])


def _parent(pid: int) -> int:
    """0 if it has gone."""
    return int(_status(pid).get("PPid", "0"))


def _status(pid: int) -> dict[str, str]:
    """proc_pid_status(5); empty if it has gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in status.splitlines())}


def monitor_of(sandbox: str) -> int:
    """The host pid of the bwrap that started it: of the outer one, its processes' forebear."""
    found = _pids_of(sandbox, "/usr/bin/bwrap")
    return next(pid for pid in found if _parent(pid) not in found)


def fork_server_of(daemon: Daemon) -> int:
    """The host pid of the process that makes its sandboxes."""
    return next(
        each.pid
        for each in census.processes()
        if each.daemon == str(daemon.root) and "forkserver.py" in each.command and each.sandbox is None
    )


def _pids_of(sandbox: str, program: str) -> list[int]:
    """Of the processes that run a program."""
    return [each.pid for each in census.processes() if each.sandbox == sandbox and each.command.startswith(program)]


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


def _layers(daemon: Daemon, seen: frozenset[str]) -> tuple[frozenset[str], set[str]]:
    """The API tells how many there are, and that nothing stands on some of them; none of those is to stay."""
    told = daemon.call("GET", "/v1/storage").json
    agreed = len(seen) == told["layers"] and not told["unused_layers"]
    return (frozenset() if agreed else seen), set()


# What a deletion leaves to be removed in the background, after it was answered.
IN_THE_BACKGROUND = ("trash", "cgroups", "layers")


def disagreement(daemon: Daemon, *, ignore: tuple[str, ...] = ()) -> Findings:
    """By witness: what it sees beyond what the API says, and what it misses. Empty when all agree, soon enough."""

    def look() -> Findings:
        return {name: found for name, found in _compare(daemon).items() if name not in ignore}

    return settled(look)


def _compare(daemon: Daemon) -> Findings:
    seen, views = ask(daemon), daemon.views()
    known = {view["id"] for view in views}
    live = {view["id"] for view in views if view["status"] in {"running", "paused"}}
    found = {
        "monitors": (seen["monitors"] - live, live - seen["monitors"]),
        "inits": (seen["inits"] - live, live - seen["inits"]),
        # A sandbox that has exited may keep its cgroup until it is deleted.
        "cgroups": (seen["cgroups"] - known, live - seen["cgroups"] if cgroup_directory(daemon) else set()),
        "files": (seen["files"] - known, known - seen["files"]),
        "runtime": (seen["runtime"] - known, known - seen["runtime"]),
        "layers": _layers(daemon, seen["layers"]),
        "trash": (seen["trash"], set()),
        "mounts": (seen["mounts"], set()),
    }
    return {name: (sorted(extra), sorted(missing)) for name, (extra, missing) in found.items() if extra or missing}


def settled(look: Callable[[], Findings]) -> Findings:
    """What `look` still finds when it had time to find nothing: files are removed in the background."""
    deadline = time.monotonic() + PATIENCE
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found
