"""What exists on this machine that only this run of the tests makes: around each test, it must not have grown.

Several runs, a daemon in earnest and whatever else mounts things may share the machine, so everything is counted by
whose it is:

    processes     by a mark in their environment, which the daemon, its fork server and bwrap inherit; sandbox-init,
                  which inherits nothing, by the id of a sandbox that we have seen
    mounts        by the directories they show, lie on or are made of, which must be this run's (directories, below);
                  and those that only sandboxd makes, which no host's mount namespace may ever hold
    cgroups       by the name of a daemon of ours
    descriptors   those of the test's own process
    files         what lies in this process's directory for temporary files

Each process of a run (pytest-xdist's workers) counts for itself: what the others make is not its own.
"""

import os
import re
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from sandboxd.isolation.bwrap.marks import MARK
from sandboxd.service.sandboxes.slots import READY
from tests.support.waiting import PATIENCE

RUN = "SANDBOXD_TEST_RUN"
DAEMON = "SANDBOXD_TEST_DAEMON"

cgroup_names: set[str] = {f"sandboxd-test-{os.getpid()}"}
"""cgroup directories that belong to this run; a daemon of the tests adds its own"""
sandboxes: dict[str, str] = {}
"""ids of this run's sandboxes, with the directory of their daemon; every look at the processes adds those it sees"""
directories: set[str] = set()
"""absolute paths of what only this run writes to"""
SOURCES = frozenset({"stage", "cover", "gate"})
"""what sandboxd (kernel/overlay.py) and as_user.py name the file systems they mount, in namespaces of their own"""


def mark_this_run() -> None:
    """Mark every process that this one starts from now on."""
    os.environ[RUN] = f"{os.getpid()}.{time.monotonic_ns()}"


def make_temporary_directory(prefix: str) -> Callable[[], None]:
    """Give this process and all that it starts a TMPDIR of their own; returns what removes it again.

    Its name and those within are short, since the paths of daemons' sockets have room for 107 bytes.
    """
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # tmp_path of failed tests stays
    directory = tempfile.mkdtemp(prefix=prefix)
    os.chmod(directory, 0o1777)  # daemons of an ordinary user write there too
    os.environ["TMPDIR"] = tempfile.tempdir = directory
    directories.add(directory)

    def remove() -> None:
        if not any(our_mounts(Path("/proc/self/mountinfo").read_text())):  # or what is mounted there would go, too
            shutil.rmtree(directory, ignore_errors=True)

    return remove


@dataclass(frozen=True)
class Process:
    pid: int
    command: str
    sandbox: str | None
    """the sandbox whose bwrap or sandbox-init it is"""
    daemon: str | None
    """the directory of the daemon that it belongs to"""


@dataclass(frozen=True)
class Census:
    processes: frozenset[Process] = frozenset()
    mounts: Counter[str] = field(default_factory=Counter)
    cgroups: frozenset[str] = frozenset()
    descriptors: Counter[str] = field(default_factory=Counter)
    files: frozenset[str] = frozenset()

    def grown_since(self, before: "Census") -> dict[str, list[str]]:
        """What is here now and was not then, by kind; empty if nothing is."""
        grown = {
            "processes": [f"{process.pid} {process.command}" for process in self.processes - before.processes],
            "mounts": sorted((self.mounts - before.mounts).elements()),
            "cgroups": sorted(self.cgroups - before.cgroups),
            "descriptors": sorted((self.descriptors - before.descriptors).elements()),
            "files": sorted(self.files - before.files),
        }
        return {kind: found for kind, found in grown.items() if found}


def take() -> Census:
    """Without the slots that daemons keep: they come and go by themselves."""
    found = list(processes())
    slots = waiting(found)
    return Census(
        processes=frozenset(process for process in found if process.sandbox not in slots),
        mounts=Counter(our_mounts(Path("/proc/self/mountinfo").read_text())),
        cgroups=frozenset(path for path in _cgroups() if os.path.basename(path) not in slots),
        descriptors=descriptors("self"),
        files=frozenset(os.listdir(tempfile.gettempdir())) if tempfile.gettempdir() in directories else frozenset(),
    )


def settled_growth(before: Census) -> dict[str, list[str]]:
    """What has grown and does not go away by itself."""
    # The kernel finishes some things after it told us: a network namespace, a dead process's cgroup, a reaped zombie.
    deadline = time.monotonic() + PATIENCE
    while (grown := take().grown_since(before)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return grown


def processes() -> Iterator[Process]:
    """The processes of this run: this one's descendants, and those of sandboxes, which have left the family."""
    found = [described for entry in os.listdir("/proc") if entry.isdigit() and (described := _described(entry))]
    sandboxes.update({each.sandbox: each.daemon for each, ours in found if ours and each.sandbox and each.daemon})
    for process, ours in found:
        if process.sandbox in sandboxes:
            yield replace(process, daemon=sandboxes[process.sandbox])
        elif ours and process.pid != os.getpid():
            yield process


def waiting(found: Iterable[Process]) -> frozenset[str]:
    """Ids of the slots: no sandbox-init yet, only bwrap, and a daemon that has a fork server and so lives.

    Of a daemon that seems to have more of them than it keeps none counts as one: some are leaks.
    """
    found = list(found)
    alive = {each.daemon for each in found if "forkserver.py" in each.command and each.sandbox is None}
    launched = {each.sandbox for each in found if each.command.startswith("/dev/sandbox-init")}
    slots: dict[str | None, set[str]] = defaultdict(set)
    for each in found:
        if each.sandbox and each.sandbox not in launched and each.daemon in alive:
            slots[each.daemon].add(each.sandbox)
    return frozenset[str]().union(*(ids for ids in slots.values() if len(ids) <= READY))


def _described(pid: str) -> tuple[Process, bool] | None:
    """The process, and whether it carries this run's mark; None for one that is dead, and only waits to be reaped."""
    try:
        # Half of what is there are the kernel's threads, which have no words: done with as soon as that is seen.
        given = _content(f"/proc/{pid}/cmdline")
        environment = _content(f"/proc/{pid}/environ") if given else b""
    except OSError:
        return None
    command = given.replace(b"\0", b" ").decode(errors="replace")[:120].strip()
    described = Process(int(pid), command, _sandbox(given), _value(DAEMON, environment))
    return (described, _value(RUN, environment) == os.environ.get(RUN)) if command else None


def _content(path: str) -> bytes:
    """Of a file in /proc. Bare calls: this is done a few hundred times around each test."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        whole = b""
        while part := os.read(descriptor, 1 << 16):
            whole += part
        return whole
    finally:
        os.close(descriptor)


def _value(name: str, environment: bytes) -> str | None:
    _, found, rest = (b"\0" + environment).partition(f"\0{name}=".encode())
    return rest.partition(b"\0")[0].decode(errors="replace") if found else None


def _sandbox(words: bytes) -> str | None:
    """What follows the mark in a command line."""
    _, found, rest = words.partition(b"\0" + MARK.encode() + b"\0")
    return rest.partition(b"\0")[0].decode(errors="replace") if found else None


def our_mounts(mountinfo: str) -> Iterator[str]:
    """Root and mount point of those in a mountinfo (proc_pid_mountinfo(5)) that this run has made."""
    shown = {_within_its_file_system(directory) for directory in directories}
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        root, point = (_plain(word) for word in fields.split()[3:5])
        _, source, options = (_plain(word) for word in rest.split(" ", 2))
        # An overlay names its layers among its options.
        named = (point, source, *re.split("[,=:]", options))
        if source in SOURCES or _any_within(named, directories) or _any_within([root], shown):
            yield f"{root} {point}"


def _any_within(paths: Iterable[str], places: Iterable[str]) -> bool:
    return any(f"{path}/".startswith(f"{place}/") for path in paths for place in places)


def _plain(word: str) -> str:
    """As it was before mountinfo escaped blanks and backslashes in it."""
    for escaped, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        word = word.replace(escaped, plain)
    return word


def _within_its_file_system(directory: str) -> str:
    """The path by which a mount of a part of its file system has it as its root."""
    above = next(path for path in (directory, *map(str, Path(directory).parents)) if os.path.ismount(path))
    return "/" + os.path.relpath(directory, above)


def _cgroups() -> Iterator[str]:
    for top in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
        if (top / "cgroup.controllers").exists():
            for path, names, _ in os.walk(top):
                within = not cgroup_names.isdisjoint(path.split("/"))
                yield from (f"{path}/{name}" for name in names if within or name in cgroup_names)
            return


def descriptors(pid: int | str) -> Counter[str]:
    """A process's open files, counted by what they are."""
    # Numbers in names (socket:[123]) differ from one to the next; what counts is how many there are of a kind.
    return Counter(target.partition(":[")[0] if ":[" in target else target for target in _descriptors(pid))


def pidfds(pid: int) -> int:
    """How many processes it holds."""
    return sum("pidfd" in target for target in _descriptors(pid))


def _descriptors(pid: int | str) -> Iterator[str]:
    for entry in os.listdir(f"/proc/{pid}/fd"):
        try:
            yield os.readlink(f"/proc/{pid}/fd/{entry}")
        except OSError:
            continue
