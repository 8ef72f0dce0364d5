"""What a sandbox is to be made of, in plain values: any backend can render it, a test can compare it without root."""

from dataclasses import dataclass
from pathlib import Path

from sandboxd.kernel.cgroups import Cgroup
from sandboxd.model import Image, Sandbox


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
    backend: str
    ids: IdRange
    runtime: Path
    """directory for the init socket; only the daemon can reach it"""
    cgroup: Cgroup
    """where its processes are born; NO_CGROUP on a host that has none"""
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
    sandbox: Sandbox
    """its record: whatever its client wants of it"""
    image: Image
    """what `layers` stand on; it also says what of the host is to be shown, and hidden"""
