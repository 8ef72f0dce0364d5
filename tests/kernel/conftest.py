"""A place for cgroups on this host, for one test."""

import os
from collections.abc import Iterator

import pytest

from sandboxd.kernel.cgroup_tree import CgroupTree, discover_cgroups, prepare_cgroups
from sandboxd.kernel.cgroups import Cgroup
from tests.kernel.processes import empty


@pytest.fixture
def tree() -> Iterator[CgroupTree]:
    support = discover_cgroups()
    if support.root is None:
        pytest.skip(support.reason)
    tree = prepare_cgroups(support, instance=f"test-{os.getpid()}")
    try:
        yield tree
    finally:
        empty(Cgroup(tree.path))
        tree.remove()


@pytest.fixture
def cgroup(tree: CgroupTree) -> Cgroup:
    return tree.create("one")
