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
class LaunchPlan:
    sandbox: str
    ids: IdRange
    layers: tuple[Path, ...]
    """read-only root file system layers, uppermost first"""
    writable: Path
    """directory holding `upper` and `work`"""
    runtime: Path
    """directory for the init socket; only the daemon can reach it"""
    hostname: str
    boot_id: str
    machine_id: str
    init: Path
    """the sandbox-init binary"""
    binds: tuple[Bind, ...] = ()
    hidden: tuple[str, ...] = ()

    @property
    def socket(self) -> Path:
        return self.runtime / "init.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMount:
    """One tree to show in the launching child's stage directory, under a short name."""

    source: str
    name: str
    idmapped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkRequest:
    """One launch, as the fork server executes it: build the root on the stage, enter the namespace, exec."""

    range_start: int
    max_processes: int
    idmapped: bool
    stage: str
    mounts: tuple[StageMount, ...]
    lowers: tuple[str, ...]
    """names of `mounts`, uppermost first"""
    writable: str
    root: str
    init: str
    init_inside: str
    mount_points: tuple[str, ...]
    argv: tuple[str, ...]
    descriptors: tuple[str, ...]
    """what travels beside the request, in order; `{name}` in argv becomes the descriptor's number"""
    identity: tuple[tuple[str, str], ...]
    """path and contents of files that are this sandbox's own, in a layer above the image's"""

    def to_wire(self) -> dict[str, Any]:
        wire = {name: getattr(self, name) for name in self.__slots__ if name != "mounts"}
        wire["mounts"] = [[mount.source, mount.name, mount.idmapped] for mount in self.mounts]
        return wire
