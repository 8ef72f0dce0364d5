"""Quotas of memory, which take a kernel that limits it."""

from tests.support import quotas
from tests.support.daemon import Daemon


def test_a_bound_on_memory_is_kept(own_root_daemon: Daemon) -> None:
    port = quotas.listen_with_bound(own_root_daemon, "memory", 3 * 64 * quotas.MIB)
    quotas.a_bound_is_kept(own_root_daemon.start(), port, "memory", 64 * quotas.MIB)
