"""Names that nobody may give: they would be taken for something else."""

import re
from typing import Final

from sandboxd.errors import Unprocessable

# In some API they are words of a path where a name could stand.
WORDS: Final = frozenset({"create", "delete-all", "list", "router"})
# What the daemon itself makes up for sandboxes, snapshots and layers; commands, terminals and watches; API keys. Who
# looks for a thing by its id, long after it was deleted too, must not find another thing by its name.
IDS: Final = re.compile(r"[snl][0-9a-f]{20}|[cpw][0-9a-f]{16}|key[0-9a-f]{12}")


def check_name(name: str | None) -> None:
    """That a sandbox or a snapshot may be called so. Raises: Unprocessable."""
    if name is None:
        return
    if name in WORDS:
        raise Unprocessable(
            f"cannot use the name {name!r}: it is a word of an API's paths; give another name", kind="reserved_name"
        )
    if IDS.fullmatch(name):
        raise Unprocessable(
            f"cannot use the name {name!r}: it could be the id of something; give another name", kind="reserved_name"
        )
