"""Which sandboxes this daemon makes, and how what a client left open is filled in."""

from dataclasses import dataclass, replace

from sandboxd.config import SandboxConfig
from sandboxd.constraints import MAX_MAPPING_BYTES, mapping_bytes
from sandboxd.errors import InvalidRequest, Unprocessable
from sandboxd.isolation.backend import Backends
from sandboxd.model import Limits, SandboxSpec
from sandboxd.service.access import quotas
from sandboxd.service.access.holdings import Holdings, holdings
from sandboxd.service.access.keys import Keys
from sandboxd.service.sandboxes.registry import Registry
from sandboxd.service.storage.layers import Layers

# Which of CgroupTree.limits each limit of ours needs; the disk's are the volume's.
_CONTROLLER = {
    "memory": "memory",
    "swap": "swap",
    "pids": "pids",
    "cpus": "cpu",
    "cpu_weight": "cpu",
    "read_bps": "io",
    "write_bps": "io",
    "disk": "disk",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What this daemon can do on this host."""

    backend: str
    """the default one"""
    backends: tuple[str, ...]
    rootless: bool
    enforceable: frozenset[str]
    """of memory, swap, pids, cpu, io, disk"""
    limits_reason: str
    """what is missing for the rest, and what would help"""
    disk_reason: str
    """the same for the disk"""
    volume: str
    """how trees are copied: plain, xfs or btrfs"""
    max_sandboxes: int
    max_lifetime: float
    default_image: str


class Admission:
    """Completes what clients ask for, and refuses what they may not have, or nobody can have here."""

    def __init__(
        self,
        config: SandboxConfig,
        *,
        capabilities: Capabilities,
        backends: Backends,
        keys: Keys,
        registry: Registry,
        layers: Layers,
    ) -> None:
        self.config = config
        """replaced when the configuration is read again"""
        self._capabilities = capabilities
        self._backends = backends
        self._keys = keys
        self._registry = registry
        self._layers = layers

    def complete(self, spec: SandboxSpec, defaults: SandboxSpec, *, owner: str | None) -> SandboxSpec:
        """What the client asked for, over what it begins with (an image, or a snapshot's sandbox), over the daemon's
        own defaults. `owner`: id of the key it is counted for.

        Raises: InvalidRequest, Unprocessable (a limit or a backend that this host does not have).
        """
        limits = self._enforceable(spec.limits)
        limits = self.with_shares(limits if limits.named() else defaults.limits, owner)
        return replace(
            spec,
            image=defaults.image,
            image_name=defaults.image_name,
            limits=self._enforceable(limits),
            owner=owner,
            user=spec.user or defaults.user,
            workdir=spec.workdir or defaults.workdir,
            env={**defaults.env, **spec.env},
            timeout=self.lifetime(spec.timeout),
            backend=self._backends.get(spec.backend or defaults.backend or self._backends.default).name,
        )

    def copy(self, source: SandboxSpec, *, lifetime: float | None, owner: str | None) -> SandboxSpec:
        """What a clone of such a sandbox is to be; it has the lifetime of its source if none is given. Raises: as
        complete.
        """
        limits = self._enforceable(self.with_shares(source.limits, owner))
        seconds = self.lifetime(lifetime if lifetime is not None else source.timeout)
        return replace(source, timeout=seconds, limits=limits, owner=owner)

    def admit(self, spec: SandboxSpec) -> None:
        """That there is room for such a sandbox, now. Raises: TooManyRequests, Unavailable, Unprocessable."""
        _check_size(spec)
        sandboxes = self._registry.all()
        quotas.check_all(self.config, spec, sandboxes)
        key = None if spec.owner is None else self._keys.get(spec.owner)
        if key is not None:
            quotas.check_key(key, spec, sandboxes, self.holdings(spec.owner))

    def holdings(self, owner: str | None) -> Holdings:
        """What the holder of a key has in all; None: what everybody has."""
        kept = ((each, self._layers.layer(each.layer)) for each in self._layers.snapshots())
        return holdings(owner, self._registry.all(), kept)

    def room_for_snapshot(self, owner: str | None) -> int | None:
        """Bytes that a new snapshot of this key's may have; None: not bounded. Raises: TooManyRequests."""
        key = None if owner is None else self._keys.get(owner)
        return None if key is None else quotas.room_for_snapshot(key, self.holdings(owner))

    def check_lifetime(self, seconds: float | None) -> float | None:
        """The lifetime if it is allowed. Raises: InvalidRequest."""
        most = self.config.max_timeout
        if seconds is not None and seconds > most:
            raise InvalidRequest(
                f"cannot set a lifetime of {seconds:g} s: the most is {most:g} s", max_timeout_ms=int(most * 1000)
            )
        return seconds

    def lifetime(self, seconds: float | None) -> float | None:
        """The lifetime asked for, or the daemon's default. Raises: InvalidRequest."""
        return self.check_lifetime(seconds if seconds is not None else self.config.default_timeout)

    def with_shares(self, limits: Limits, owner: str | None) -> Limits:
        """The limits, with shares of what the owner's quota bounds where they are open. Raises: Unprocessable."""
        key = None if owner is None else self._keys.get(owner)
        return limits if key is None else quotas.with_shares(limits, key.quota)

    def _enforceable(self, limits: Limits) -> Limits:
        """The limits this host can enforce: all of those asked for, or (if lenient) as many as possible."""
        beyond = [name for name in limits.named() if _CONTROLLER[name] not in self._capabilities.enforceable]
        if not beyond:
            return limits
        if self.config.lenient_limits:
            return replace(limits, **dict.fromkeys(beyond))
        reasons = {self._missing(name) for name in beyond}
        raise Unprocessable(
            f"cannot limit {', '.join(beyond)} on this host: {'; '.join(sorted(reasons))}. "
            "Leave the limit out, or set sandbox.lenient_limits in the daemon's configuration to have it ignored",
            kind="limit_not_enforceable",
            limits=beyond,
        )

    def _missing(self, limit: str) -> str:
        """Why it cannot be enforced."""
        if limit == "disk":
            return self._capabilities.disk_reason
        return self._capabilities.limits_reason or "no such device"


def _check_size(spec: SandboxSpec) -> None:
    """That a sandbox's record stays small, whatever it was put together from. Raises: Unprocessable."""
    for name in ("env", "metadata"):
        size = mapping_bytes(getattr(spec, name))
        if size > MAX_MAPPING_BYTES:
            raise Unprocessable(
                f"cannot create the sandbox: its {name}, with that of its image or snapshot, has names and values of "
                f"{size} bytes, and the most is {MAX_MAPPING_BYTES}; put more into a file",
                kind="too_large",
            )
