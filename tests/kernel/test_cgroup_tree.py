"""Where the daemon puts its cgroups, decided over directories that look like a cgroup2 mount.

The kernel's side of it (delegation, controllers, internal processes) is tested in tests/uml/inside.
"""

import os
from pathlib import Path

import pytest

from sandboxd.kernel.cgroup_tree import CgroupSupport, discover_cgroups, prepare_cgroups

ALL = "cpuset cpu io memory hugetlb pids rdma misc"


class Host:
    """A /proc/self and a cgroup2 mount, both made of plain files."""

    def __init__(self, directory: Path) -> None:
        self.proc = directory / "proc"
        self.proc.mkdir()
        self.mount = directory / "cgroup with space"
        self.mounts: list[str] = []
        self.be_in("/")

    def add_cgroup(self, path: str, *, controllers: str = ALL, delegated: bool = False) -> Path:
        cgroup = self.mount / path.lstrip("/")
        cgroup.mkdir(parents=True, exist_ok=True)
        for name, text in (("controllers", controllers), ("procs", ""), ("subtree_control", "")):
            (cgroup / f"cgroup.{name}").write_text(text + "\n")
        if delegated:
            try:
                os.setxattr(cgroup, "user.delegate", b"1")
            except OSError:
                pytest.skip("the temporary directory has no user xattrs")
        return cgroup

    def mount_cgroup2(self, *, root: str = "/", device: str | None = None) -> None:
        number = self.mount.stat().st_dev
        where = str(self.mount).replace(" ", "\\040")
        device = device or f"{os.major(number)}:{os.minor(number)}"
        self.mounts.append(f"30 23 {device} {root} {where} rw,nosuid shared:9 - cgroup2 cgroup2 rw")
        self._write_mountinfo()

    def be_in(self, own: str) -> None:
        (self.proc / "cgroup").write_text(f"4:memory:/elsewhere\n0::{own}\n")
        self._write_mountinfo()

    def discover(self, configured: Path | None = None) -> CgroupSupport:
        return discover_cgroups(configured, proc=self.proc)

    def _write_mountinfo(self) -> None:
        lines = ["22 1 0:21 / /proc rw - proc proc rw", "31 23 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"]
        (self.proc / "mountinfo").write_text("\n".join(lines + self.mounts) + "\n")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_without_cgroup2_the_reason_says_what_to_mount(host: Host) -> None:
    support = host.discover()
    assert (support.mount, support.root, support.controllers) == (None, None, frozenset())
    assert "cgroup2 is not mounted" in support.reason
    with pytest.raises(FileNotFoundError, match="cannot prepare cgroups: cgroup2 is not mounted"):
        prepare_cgroups(support, instance="x")


def test_at_the_top_of_a_pure_v2_host(host: Host) -> None:
    top = host.add_cgroup("/")
    host.mount_cgroup2()
    support = host.discover()
    assert (support.mount, support.root) == (top, top)
    assert support.controllers == {"cpu", "io", "memory", "pids"}
    assert [entry.name for entry in top.iterdir() if entry.is_dir()] == []


def test_a_hybrid_host_lacks_the_controllers_that_v1_holds(host: Host) -> None:
    host.add_cgroup("/", controllers="hugetlb")
    host.mount_cgroup2()
    support = host.discover()
    assert support.root is not None
    assert support.controllers == frozenset()
    assert "no cpu, io, memory, pids controller" in support.reason


def test_a_delegated_cgroup_of_our_own_comes_before_the_top(host: Host) -> None:
    host.add_cgroup("/")
    own = host.add_cgroup("/system.slice/sandboxd.service", controllers="memory pids", delegated=True)
    host.mount_cgroup2()
    host.be_in("/system.slice/sandboxd.service")
    support = host.discover()
    assert support.root == own
    assert support.controllers == {"memory", "pids"}


def test_a_cgroup_that_nobody_delegated_comes_after_the_top(host: Host) -> None:
    top = host.add_cgroup("/")
    host.add_cgroup("/user.slice/session-1.scope")
    host.mount_cgroup2()
    host.be_in("/user.slice/session-1.scope")
    assert host.discover().root == top


def test_a_daemon_in_its_own_leaf_still_owns_the_parent(host: Host) -> None:
    host.add_cgroup("/")
    own = host.add_cgroup("/sandboxd.service", delegated=True)
    host.add_cgroup("/sandboxd.service/daemon")
    host.mount_cgroup2()
    host.be_in("/sandboxd.service/daemon")
    assert host.discover().root == own


def test_a_mounted_part_of_the_hierarchy_is_looked_at_from_its_own_root(host: Host) -> None:
    own = host.add_cgroup("/inner", delegated=True)
    host.add_cgroup("/")
    host.mount_cgroup2(root="/docker/abc")
    host.be_in("/docker/abc/inner")
    assert host.discover().root == own


def test_our_own_cgroup_may_be_out_of_sight(host: Host) -> None:
    top = host.add_cgroup("/")
    host.mount_cgroup2(root="/docker/abc")
    for own in ("/docker/xyz", "/../xyz"):
        host.be_in(own)
        assert host.discover().root == top


def test_a_mount_that_another_one_hides_is_not_used(host: Host) -> None:
    host.add_cgroup("/")
    host.mount_cgroup2(device="0:999")
    assert host.discover().mount is None


def test_the_configured_cgroup_is_used_or_refused_never_replaced(host: Host) -> None:
    host.add_cgroup("/")
    wanted = host.add_cgroup("/wanted")
    host.mount_cgroup2()
    assert host.discover(wanted).root == wanted
    refused = host.discover(host.mount / "missing")
    assert refused.root is None
    assert "missing is not a cgroup (v2)" in refused.reason
    assert "Delegate=yes" in refused.reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_cgroup_without_write_permission_is_refused_with_the_file(host: Host) -> None:
    top = host.add_cgroup("/")
    (top / "cgroup.subtree_control").chmod(0o444)
    host.mount_cgroup2()
    support = host.discover()
    assert support.root is None
    assert f"cgroup.subtree_control is not writable by uid {os.geteuid()}" in support.reason
