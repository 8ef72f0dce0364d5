"""What a sandbox is to be made of, in plain values: any backend can render it, a test can compare it without root."""

from dataclasses import dataclass
from pathlib import Path

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
