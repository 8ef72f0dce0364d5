"""What the holder of a key has of the daemon in all, as its quota counts it."""

from collections.abc import Iterable
from dataclasses import dataclass

from sandboxd.model import Layer, Sandbox, Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """Sizes are bytes."""

    sandboxes: int
    memory: int
    """of its sandboxes' limits together"""
    sandbox_disk: int
    """the same"""
    snapshots: int
    snapshot_disk: int
    """what each snapshot adds to the one below it, of sandboxes that are gone and of imported files too"""

    @property
    def disk(self) -> int:
        """What is counted against the quota's disk."""
        return self.sandbox_disk + self.snapshot_disk


def holdings(
    owner: str | None, sandboxes: Iterable[Sandbox], snapshots: Iterable[tuple[Snapshot, Layer]]
) -> Holdings:
    """Of one key, or with None of everybody."""
    own = [each for each in sandboxes if owner in (None, each.spec.owner)]
    kept = [(snapshot, layer) for snapshot, layer in snapshots if owner in (None, snapshot.spec.owner)]
    layers = {layer.id: _size(snapshot, layer) for snapshot, layer in kept}
    return Holdings(
        sandboxes=len(own),
        memory=sum(each.spec.limits.memory or 0 for each in own),
        sandbox_disk=sum(each.spec.limits.disk or 0 for each in own),
        snapshots=len(kept),
        snapshot_disk=sum(layers.values()),
    )


def _size(snapshot: Snapshot, layer: Layer) -> int:
    """Until it has been counted: what it took to make it."""
    return snapshot.cost.copied + snapshot.cost.shared if layer.size is None else layer.size
