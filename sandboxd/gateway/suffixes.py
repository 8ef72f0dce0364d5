"""Public suffixes: names under which anybody may register a name. A rule for all below one is a rule for everybody.

Mozilla's list, as the package publicsuffixlist brings it (its private part too: anybody may have a `*.github.io`).
Loading it takes some 50 ms and is done when the first wildcard is checked.
"""

import functools

from publicsuffixlist import PublicSuffixList

# Never delegated in the public DNS, or reserved: somebody's own.
_INTERNAL = frozenset({"corp", "home", "internal", "intranet", "lan", "local", "private", "test"})


@functools.cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()


def is_public_suffix(name: str) -> bool:
    """Of a name in its one form. An unknown top-level name is taken for a public one."""
    return name not in _INTERNAL and bool(_suffixes().is_public(name))
