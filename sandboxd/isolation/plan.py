"""What a sandbox is to be made of, in plain values: any backend can render it, a test can compare it without root."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandboxd.model import Bind


@dataclass(frozen=True, slots=True, kw_only=True)
class IdRange:
    """The host ids of one sandbox."""

    start: int
    """first of 65536 ids, as the daemon's own user namespace counts them"""
    idmapped: bool
    """files lie on disk with ids 0..65535 and idmapped mounts shift them; otherwise they lie there shifted already"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """What can be known of a sandbox before anybody asks for it: enough to start everything but its root."""

    sandbox: str
    ids: IdRange
    runtime: Path
    """directory for the init socket; only the daemon can reach it"""
    boot_id: str
    init: Path
    """the sandbox-init binary"""

    @property
    def socket(self) -> Path:
        return self.runtime / "init.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    slot: Slot
    layers: tuple[Path, ...]
    """read-only root file system layers, uppermost first"""
    writable: Path
    """directory holding `upper` and `work`"""
    hostname: str
    machine_id: str
    binds: tuple[Bind, ...] = ()
    hidden: tuple[str, ...] = ()


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
    descriptors: tuple[str, ...]
    """what travels beside the request, in order; `{name}` in argv becomes the descriptor's number"""

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
