"""What the fork server is asked to do: start a slot's bwrap, and assemble a root where it waits, as plain values."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequest:
    """A slot, as the fork server starts it: bwrap in namespaces of its own, with everything made but the root."""

    range_start: int
    max_processes: int
    stage: str
    init: str
    init_name: str
    """what sandbox-init is called in the sandbox's /dev"""
    argv: tuple[str, ...]
    """`{name}` becomes the number of the descriptor of that name that travels beside the request"""

    def to_wire(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMount:
    """One tree of the host to show on the stage, under a short name; at `target` in the sandbox too, if given."""

    source: str
    name: str
    idmapped: bool = False
    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssembleRequest:
    """A root, as the fork server puts it together where a slot's bwrap waits for it."""

    range_start: int
    max_processes: int
    userxattr: bool
    stage: str
    new_root: str
    mounts: tuple[StageMount, ...]
    lowers: tuple[str, ...]
    """names of `mounts`, uppermost first"""
    writable: str
    hidden: tuple[str, ...]
    hostname: str
    identity: tuple[tuple[str, str], ...]
    """path and contents of files that are this sandbox's own, in a layer above the image's"""

    def to_wire(self) -> dict[str, Any]:
        wire = {name: getattr(self, name) for name in self.__slots__ if name != "mounts"}
        wire["mounts"] = [[mount.source, mount.name, mount.idmapped, mount.target] for mount in self.mounts]
        return wire
