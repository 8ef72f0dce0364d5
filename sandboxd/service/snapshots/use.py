"""What sandboxes, snapshots and images take on disk."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from sandboxd.kernel.overlay import UPPER
from sandboxd.model import Image, Sandbox, Snapshot
from sandboxd.service.storage.disk import Disk
from sandboxd.service.storage.layer_files import measure_tree
from sandboxd.service.storage.layers import Layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    id: str
    name: str | None
    size_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageUse:
    volume: str
    size_bytes: int
    available_bytes: int
    sandboxes: tuple[Use, ...]
    snapshots: tuple[Use, ...]
    images: tuple[Use, ...]
    layers: int
    layers_bytes: int
    """of those that have been counted, each once, whatever stands on it: snapshots, or clones only"""
    unused_layers: int


def measure(disk: Disk, layers: Layers, sandboxes: Iterable[Sandbox], images: Iterable[Image]) -> StorageUse:
    """Blocks: it looks at every file that a sandbox has written. For a thread."""
    volume = os.statvfs(disk.volume.root)
    return StorageUse(
        volume=disk.volume.kind,
        size_bytes=volume.f_blocks * volume.f_frsize,
        available_bytes=volume.f_bavail * volume.f_frsize,
        sandboxes=tuple(_sandbox(disk, sandbox) for sandbox in sandboxes),
        snapshots=tuple(_snapshot(layers, snapshot) for snapshot in layers.snapshots()),
        images=tuple(
            Use(id=each.digest, name=", ".join(each.names) or None, size_bytes=each.size) for each in images
        ),
        layers=len(layers.layers()),
        layers_bytes=sum(layer.size or 0 for layer in layers.layers()),
        unused_layers=len(layers.unused()),
    )


def _sandbox(disk: Disk, sandbox: Sandbox) -> Use:
    try:
        size = measure_tree(disk.paths(sandbox.id).writable / UPPER)[0]
    except FileNotFoundError:  # on its way out, or something in it went while we looked
        size = None
    return Use(id=sandbox.id, name=sandbox.spec.name, size_bytes=size)


def _snapshot(layers: Layers, snapshot: Snapshot) -> Use:
    return Use(id=snapshot.id, name=snapshot.name, size_bytes=layers.layer(snapshot.layer).size)
