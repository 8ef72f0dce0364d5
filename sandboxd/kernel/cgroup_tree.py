"""Where this daemon may keep its sandboxes' cgroups, and making that place ready.

    discover_cgroups()   looks, and changes nothing that lasts: which directory, which controllers
    prepare_cgroups()    makes <root>/sandboxd-<instance>, with every controller that the kernel lets us
    enable

Two rules of the kernel shape this. A cgroup that passes controllers on to children may hold no process itself
(the real root excepted), so a daemon that was put into the delegated cgroup moves itself to a leaf, `daemon`.
And only what the parent has in cgroup.subtree_control can be enabled below. Version 1 hierarchies, and the
part of a hybrid host that they serve, are never touched. Source: Documentation/admin-guide/cgroup-v2.rst,
"Delegation" and "No Internal Process Constraint"; systemd's docs/CGROUP_DELEGATION.md.
"""

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sandboxd.kernel.cgroups import NO_CGROUP, Cgroup, CgroupLimits

# The controllers that a limit or a counter of ours comes from.
CONTROLLERS = ("cpu", "io", "memory", "pids")
DAEMON_LEAF = "daemon"

# Limit -> the file that exists in a (non-root) cgroup when the kernel can enforce it there.
_LIMIT_FILES = {
    "memory": "memory.max",
    "swap": "memory.swap.max",
    "pids": "pids.max",
    "cpu": "cpu.max",
    "io": "io.max",
}


@dataclass(frozen=True, slots=True)
class CgroupSupport:
    """What was found. `root` is None when sandboxes cannot have cgroups here at all.

    `controllers` are those that the parent passes to `root`; prepare_cgroups tells which of them could be
    enabled. `reason` says what is missing and what would help; it is empty when everything is there.
    """

    mount: Path | None
    root: Path | None
    controllers: frozenset[str]
    can_freeze: bool
    can_kill: bool
    reason: str


@dataclass(frozen=True, slots=True)
class CgroupTree:
    """The directory of one daemon's sandboxes. `refused` maps a controller to the kernel's objection."""

    path: Path
    controllers: frozenset[str]
    refused: Mapping[str, str]

    @property
    def limits(self) -> frozenset[str]:
        """Which of memory, swap, pids, cpu and io can be enforced for a sandbox here."""
        return frozenset(
            limit
            for limit, file in _LIMIT_FILES.items()
            if file.partition(".")[0] in self.controllers and (self.path / file).exists()
        )

    def sandbox(self, name: str) -> Cgroup:
        """The handle for a sandbox, made or not."""
        return Cgroup(self.path / name)

    def create(self, name: str, limits: CgroupLimits | None = None) -> Cgroup:
        """Make a sandbox's cgroup. Raises as Cgroup.create."""
        return Cgroup.create(self.path / name, limits)

    def names(self) -> frozenset[str]:
        """The sandboxes that have a cgroup, a previous daemon's included: what a sweep goes through."""
        with os.scandir(self.path) as entries:
            return frozenset(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))

    def remove(self) -> None:
        """Remove the directory and every sandbox's cgroup. Raises OSError EBUSY while a process is in one."""
        Cgroup(self.path).remove()


class NoCgroupTree(CgroupTree):
    """The tree of a daemon that has no place for cgroups: every sandbox has NO_CGROUP."""

    def __init__(self) -> None:
        super().__init__(NO_CGROUP.path, frozenset(), {})

    def sandbox(self, name: str) -> Cgroup:
        return NO_CGROUP

    def create(self, name: str, limits: CgroupLimits | None = None) -> Cgroup:
        return NO_CGROUP

    def names(self) -> frozenset[str]:
        return frozenset()

    def remove(self) -> None:
        pass


def discover_cgroups(configured: Path | None = None, *, proc: Path = Path("/proc/self")) -> CgroupSupport:
    """Find the directory for sandboxes' cgroups: the configured one, or the best this process may use.

    Without configuration that is, in this order: our own cgroup if it was delegated to us; the top of the
    hierarchy (root without a service manager, hybrid hosts); our own cgroup if we may write it.
    """
    mounts = list(_cgroup2_mounts(os.fsdecode((proc / "mountinfo").read_bytes())))
    own_path = _own_cgroup(os.fsdecode((proc / "cgroup").read_bytes()))
    mount, own = _locate(mounts, own_path)
    if mount is None:
        return _unsupported("cgroup2 is not mounted; mount it at /sys/fs/cgroup (mount -t cgroup2 none …)")
    candidates = [configured] if configured else _candidates(mount, own)
    refusals = []
    for root in candidates:
        refusal = _why_unusable(root)
        if refusal is None:
            return _describe(mount, root)
        refusals.append(refusal)
    return _unsupported("; ".join(refusals) + _DELEGATION_HINT, mount=mount)


def prepare_cgroups(support: CgroupSupport, *, instance: str) -> CgroupTree:
    """Make (or find again) `sandboxd-<instance>` under the root, and enable controllers for its children.

    Each controller is enabled by itself, so that one the kernel refuses does not cost the others. Calling it
    again, after a restart, changes nothing. Raises OSError when the directory itself cannot be made.
    """
    if support.root is None:
        raise FileNotFoundError(f"cannot prepare cgroups: {support.reason}")
    tree = support.root / f"sandboxd-{instance}"
    tree.mkdir(exist_ok=True)
    if not _is_hierarchy_root(support.root):
        _leave_for_leaf(support.root)
    refused: dict[str, str] = {}
    enabled = _enable(support.root, support.controllers, refused)
    enabled = _enable(tree, enabled, refused)
    return CgroupTree(tree, enabled, refused)


_DELEGATION_HINT = (
    "; under systemd, start the daemon as a service with Delegate=yes, or from a shell by"
    " `systemd-run --user --scope -p Delegate=yes`; or configure a cgroup that this user may write"
)


@dataclass(frozen=True, slots=True)
class _Mount:
    point: Path
    root: str  # which part of the hierarchy is mounted, in /proc/self/cgroup's terms


def _cgroup2_mounts(mountinfo: str) -> Iterator[_Mount]:
    """The cgroup2 mounts that can be reached, the last one first."""
    for line in reversed(mountinfo.splitlines()):
        left, _, right = line.partition(" - ")
        if not right.startswith("cgroup2 "):
            continue
        _id, _parent, device, root, point, *_ = left.split(" ")
        mount = _Mount(Path(_unescape(point)), _unescape(root))
        if _device_of(mount.point) == device:
            yield mount


def _device_of(path: Path) -> str | None:
    try:
        device = path.stat().st_dev
    except OSError:
        return None
    return f"{os.major(device)}:{os.minor(device)}"


def _unescape(field: str) -> str:
    """Undo mountinfo's octal escapes (space, tab, newline, backslash)."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _own_cgroup(text: str) -> str | None:
    for line in text.splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::")
    return None


def _locate(mounts: list[_Mount], own: str | None) -> tuple[Path | None, Path | None]:
    """The mount to use, and our own cgroup's directory if it is visible there."""
    for mount in mounts:
        # In a container without a cgroup namespace a part of the hierarchy is mounted, and ours may be
        # outside it. A cgroup namespace shows what is outside as /../…, which leads nowhere.
        if own is not None and ".." not in own.split("/") and Path(own).is_relative_to(mount.root):
            return mount.point, mount.point / Path(own).relative_to(mount.root)
    return (mounts[0].point if mounts else None), None


def _candidates(mount: Path, own: Path | None) -> list[Path]:
    if own is None:
        return [mount]
    # A daemon that is started again inside its leaf (exec, or systemd's DelegateSubgroup=daemon) still owns
    # the parent.
    if own.name == DAEMON_LEAF and own != mount:
        own = own.parent
    return [own] if own == mount else [own, mount] if _is_delegated(own) else [mount, own]


def _is_delegated(cgroup: Path) -> bool:
    """Whether systemd handed this cgroup over. Permissions do not say: root may write them all."""
    for name in ("trusted.delegate", "user.delegate"):
        try:
            if os.getxattr(cgroup, name) == b"1":
                return True
        except OSError:
            continue
    return False


def _why_unusable(root: Path) -> str | None:
    """None when a daemon may keep its cgroups here; else the reason."""
    if not (root / "cgroup.controllers").is_file():
        return f"{root} is not a cgroup (v2)"
    # The kernel's three conditions for delegation: these, writable by us.
    for needed in (root, root / "cgroup.procs", root / "cgroup.subtree_control"):
        if not os.access(needed, os.W_OK, effective_ids=True):
            return f"{needed} is not writable by uid {os.geteuid()}"
    return None


def _describe(mount: Path, root: Path) -> CgroupSupport:
    passed_on = (root / "cgroup.controllers").read_text().split()
    controllers = frozenset(CONTROLLERS).intersection(passed_on)
    can_freeze, can_kill = _probe_features(root)
    missing = []
    if len(controllers) < len(CONTROLLERS):
        names = ", ".join(name for name in CONTROLLERS if name not in controllers)
        missing.append(f"no {names} controller at {root} (in use by cgroup v1, or not passed on by its parent)")
    if not (can_freeze and can_kill):
        missing.append("the kernel has no cgroup.freeze or cgroup.kill; 5.14 or newer has both")
    return CgroupSupport(mount, root, controllers, can_freeze, can_kill, "; ".join(missing))


def _probe_features(root: Path) -> tuple[bool, bool]:
    """Whether a child of root has cgroup.freeze and cgroup.kill; the top of a hierarchy shows neither."""
    probe = root / f"sandboxd-probe-{secrets.token_hex(4)}"
    probe.mkdir()
    try:
        return (probe / "cgroup.freeze").exists(), (probe / "cgroup.kill").exists()
    finally:
        probe.rmdir()


def _unsupported(reason: str, *, mount: Path | None = None) -> CgroupSupport:
    return CgroupSupport(mount, None, frozenset(), can_freeze=False, can_kill=False, reason=reason)


def _is_hierarchy_root(cgroup: Path) -> bool:
    """The real root is the only cgroup without cgroup.events, and the only one that may hold processes and
    children.
    """
    return not (cgroup / "cgroup.events").exists()


def _leave_for_leaf(root: Path) -> None:
    """Move this process out of root, into its `daemon` leaf, if root is where it is."""
    if os.getpid() in map(int, (root / "cgroup.procs").read_text().split()):
        leaf = root / DAEMON_LEAF
        leaf.mkdir(exist_ok=True)
        Cgroup(leaf).attach(os.getpid())


def _enable(cgroup: Path, wanted: frozenset[str], refused: dict[str, str]) -> frozenset[str]:
    """Pass controllers on to the children of a cgroup, one by one; note in `refused` those that cannot be."""
    control = cgroup / "cgroup.subtree_control"
    enabled = set(control.read_text().split())
    for controller in sorted(wanted - enabled):
        try:
            control.write_text(f"+{controller}")
        except OSError as error:
            refused[controller] = f"cannot enable {controller} in {control}: {_explain(cgroup, error)}"
        else:
            enabled.add(controller)
    return wanted & enabled


def _explain(cgroup: Path, error: OSError) -> str:
    others = (cgroup / "cgroup.procs").read_text().split()
    if others and not _is_hierarchy_root(cgroup):
        return f"{error.strerror}; {len(others)} processes are in that cgroup itself, move them to a child"
    return error.strerror or str(error)
