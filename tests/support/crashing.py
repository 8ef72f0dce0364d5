"""The places at which a test lets a daemon die: those with a name in the code, and those between steps of a walk."""

from typing import Final

import sandboxd.daemon  # noqa: F401 - so that every kind of resource is known
from sandboxd.crashpoints import POINTS
from sandboxd.service.resources import WALKS, Lifetime, Resource

KINDS: Final = tuple(kind for kind in Resource.__subclasses__() if kind.__module__.startswith("sandboxd."))
"""the daemon's kinds of resources, in no order"""


def _is_walked(walk: str, kind: type[Resource]) -> bool:
    return walk != "stop" or kind.lifetime is Lifetime.MACHINE


RESOURCE_POINTS: Final = tuple(f"{walk}:{kind.name}" for walk in WALKS for kind in KINDS if _is_walked(walk, kind))
ALL_POINTS: Final = (*POINTS, *RESOURCE_POINTS)


def points_of(*walks: str) -> list[str]:
    """Those of what is done to a sandbox under these names."""
    return [point for point in ALL_POINTS if point.partition(":")[0] in walks]
