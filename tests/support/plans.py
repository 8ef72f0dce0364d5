"""Launch plans for tests of what is below the service: the record and the image that a daemon would have made."""

from pathlib import Path

from sandboxd.isolation.plan import LaunchPlan, Slot
from sandboxd.model import Image, Sandbox, SandboxSpec, SandboxState


def plan_of(slot: Slot, image: Image, *, writable: Path, layers: tuple[Path, ...] = ()) -> LaunchPlan:
    """Of a new sandbox that asks for nothing; `layers` lie over the image's own."""
    spec = SandboxSpec(image=image.digest, image_name="base", backend=slot.backend)
    sandbox = Sandbox(
        id=slot.sandbox,
        state=SandboxState.CREATING,
        spec=spec,
        created_at=0.0,
        range_start=slot.ids.start,
        machine_id="0" * 32,
    )
    return LaunchPlan(slot=slot, layers=(*layers, image.rootfs), writable=writable, sandbox=sandbox, image=image)


def bare_image(rootfs: Path) -> Image:
    """An image that is a directory, and nothing but that."""
    return Image(digest="0" * 64, names=(), created_at=0.0, size=0, rootfs=rootfs)
