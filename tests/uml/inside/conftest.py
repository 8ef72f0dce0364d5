"""The machine's own cgroup2 goes through the same fixtures as any host's."""

from tests.kernel.conftest import cgroup, tree

__all__ = ("cgroup", "tree")
