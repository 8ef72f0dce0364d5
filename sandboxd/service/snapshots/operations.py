"""Snapshots, clones and restores: what a sandbox wrote becomes a layer, and others stand on it.

A running sandbox stands still while its tree is copied, and no longer; what that costs depends on the volume and is
told (model.CopyCost). What a stopped one wrote is not copied but becomes the layer itself, where the volume can.
"""

import contextlib
import errno
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import trio

from sandboxd import clock
from sandboxd.crashpoints import crash_point
from sandboxd.errors import Conflict, SandboxdError, Unavailable, Unprocessable
from sandboxd.model import CopyCost, EventKind, Image, Layer, Sandbox, SandboxSpec, SandboxState, Snapshot
from sandboxd.service.events import new_event
from sandboxd.service.sandboxes.entry import Entry
from sandboxd.service.sandboxes.lifecycle import Lifecycle
from sandboxd.service.sandboxes.supervisor import Supervisor
from sandboxd.service.sandboxes.transitions import Transitions, files_missing
from sandboxd.service.storage.disk import Disk
from sandboxd.service.storage.layers import MAX_DEPTH, Layers, new_layer
from sandboxd.store import NewEvent
from sandboxd.threads import run_in_thread
from sandboxd.trees.treeclone import CloneSummary, TreeRefused

# To give everything back its freedom, whatever else has happened.
THAW_LIMIT = 10.0
AT_REST = frozenset({SandboxState.STOPPED, SandboxState.EXITED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Clones:
    outcomes: tuple[Sandbox | SandboxdError, ...]
    """one for each that was wanted: what cannot be created is an error in its place, the others stand"""
    cost: CopyCost
    """of the one copy that all of them stand on"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A layer that a sandbox's writable tree was made into, held until the block that asked for it ends."""

    layer: Layer
    cost: CopyCost


class Snapshots:
    """Raises (every method): NotFound, Conflict (state, name, another operation), Unavailable (no space),
    Unprocessable (a tree that cannot be kept).

    Cancelled: whatever was begun is undone, and the sandbox runs on; a restore goes on without its caller.
    """

    def __init__(
        self,
        *,
        layers: Layers,
        disk: Disk,
        supervisor: Supervisor,
        transitions: Transitions,
        lifecycle: Lifecycle,
        find_image: Callable[[str], Image],
        room: Callable[[str | None], int | None],
    ) -> None:
        """`room`: bytes that a new snapshot of a key's may have; it refuses by raising."""
        self._room = room
        self.layers = layers
        self._disk = disk
        self._supervisor = supervisor
        self._transitions = transitions
        self._lifecycle = lifecycle
        self._find_image = find_image

    # -- taking ---------------------------------------------------------------------------------------------------

    async def take(
        self,
        entry: Entry,
        *,
        name: str | None = None,
        description: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """A snapshot of what the sandbox has on its disk now. Raises also: TooManyRequests (the key's quota)."""
        self._room(entry.sandbox.spec.owner)
        self.layers.check_name(name)
        taken: list[Snapshot] = []

        def describe(sealed: Sealed) -> Snapshot:
            source = entry.sandbox
            self.layers.check_name(name)  # again: taking it may have taken a while
            snapshot = Snapshot(
                id="n" + secrets.token_hex(10),
                layer=sealed.layer.id,
                spec=source.spec,
                created_at=clock.wall(),
                sandbox=source.id,
                parent=source.snapshot,
                name=name,
                description=description,
                metadata=metadata or {},
                cost=sealed.cost,
            )
            taken.append(snapshot)
            return snapshot

        async with entry.operation("snapshot", beside_use=True), self._sealed(entry, describe):
            crash_point("snapshot:confirmed")
        return taken[0]

    @contextlib.asynccontextmanager
    async def _sealed(
        self, entry: Entry, describe: Callable[[Sealed], Snapshot] | None = None
    ) -> AsyncIterator[Sealed]:
        """The sandbox's writable tree as a recorded layer, together with the snapshot `describe` makes of it."""
        if entry.sandbox.discarding or not self._disk.has_files(entry.sandbox.id):
            raise files_missing("copy", entry.sandbox)
        with _explained(entry):
            if entry.sandbox.state in AT_REST and self._can_move(entry.sandbox):
                sealed = await self._move(entry, describe)
            else:
                sealed = await self._copy(entry, describe)
        with self.layers.held(sealed.layer.id):
            yield sealed

    def _can_move(self, sandbox: Sandbox) -> bool:
        depth = 0 if sandbox.layer is None else self.layers.layer(sandbox.layer).depth
        return self._disk.volume.moves and depth < MAX_DEPTH

    async def _move(self, entry: Entry, describe: Callable[[Sealed], Snapshot] | None) -> Sealed:
        """Recorded first: the tree has no other name by which a start-up could find it."""
        async with entry.recording:
            source = entry.sandbox
            parent = None if source.layer is None else self.layers.layer(source.layer)
            layer = new_layer(parent, moving=source.id)
            sealed = Sealed(layer=layer, cost=CopyCost())
            standing = replace(source, layer=layer.id)
            snapshots = [describe(sealed)] if describe else []
            events = [_event(source, snapshot) for snapshot in snapshots]
            await self.layers.record(layers=[layer], snapshots=snapshots, sandboxes=[standing], events=events)
            entry.sandbox = standing
        crash_point("snapshot:recorded")
        await self.layers.sync()
        with trio.CancelScope(shield=True):  # one rename and a sync; half of it would be nobody's
            moved = await self.layers.finish_move(layer, standing)
        return replace(sealed, layer=moved)

    async def _copy(self, entry: Entry, describe: Callable[[Sealed], Snapshot] | None) -> Sealed:
        files = self.layers.files
        if entry.sandbox.state is SandboxState.RUNNING and not self._disk.volume.moves:
            await run_in_thread(files.settle)  # in a pool the copy waits for dirty pages: rather now
        began = time.monotonic()
        async with _at_rest(entry):
            source = self._disk.paths(entry.sandbox.id).writable
            check = trio.from_thread.check_cancelled
            new, summary = await run_in_thread(lambda: files.copy(source, check=check))
            frozen = time.monotonic() - began
        try:
            _require_whole(entry, summary)
            layer = await self.layers.seal(new, entry.sandbox.layer, check=check)
        except BaseException:
            files.abandon(new)
            raise
        moving = entry.sandbox.state is SandboxState.RUNNING
        cost = CopyCost(frozen=frozen if moving else 0.0, copied=summary.copied, shared=summary.shared)
        sealed = Sealed(layer=layer, cost=cost)
        try:
            snapshots = [describe(sealed)] if describe else []
            events = [_event(entry.sandbox, snapshot) for snapshot in snapshots]
            await self.layers.record(layers=[layer], snapshots=snapshots, events=events)
        except BaseException:
            files.discard(layer.id)
            raise
        return sealed

    # -- using ----------------------------------------------------------------------------------------------------

    async def create(self, snapshot: Snapshot, spec: SandboxSpec) -> Sandbox:
        """A sandbox that begins with the snapshot's files; `spec` is complete. Raises as Supervisor.create."""
        self.layers.check_present(snapshot)
        with self.layers.held(snapshot.layer):
            image = self._find_image(snapshot.spec.image)
            self.layers.trees(snapshot.layer)
            return await self._supervisor.create(spec, image, layer=snapshot.layer, snapshot=snapshot.id)

    async def clone(self, entry: Entry, *, specs: Callable[[SandboxSpec], tuple[SandboxSpec, ...]]) -> Clones:
        """Sandboxes that begin with the files this one has now, one for each spec made of its own."""
        async with contextlib.AsyncExitStack() as stack:
            async with entry.operation("clone", beside_use=True):
                sealed = await stack.enter_async_context(self._sealed(entry))
                source = entry.sandbox
            crash_point("clone:sealed")
            image = self._find_image(source.spec.image)
            wanted = specs(source.spec)
            outcomes: list[Sandbox | SandboxdError | None] = [None] * len(wanted)

            async def make(number: int, spec: SandboxSpec) -> None:
                try:
                    outcomes[number] = await self._supervisor.create(
                        spec, image, layer=sealed.layer.id, snapshot=source.snapshot
                    )
                except SandboxdError as failure:
                    outcomes[number] = failure

            async with trio.open_nursery() as nursery:
                for number, spec in enumerate(wanted):
                    nursery.start_soon(make, number, spec)
        return Clones(outcomes=tuple(outcome for outcome in outcomes if outcome is not None), cost=sealed.cost)

    async def restore(self, entry: Entry, snapshot: Snapshot) -> Sandbox:
        """Put the sandbox's files back to what the snapshot has; it runs afterwards if it ran, or was paused."""
        self.layers.check_present(snapshot)
        with self.layers.held(snapshot.layer):
            image = self._find_image(snapshot.spec.image)
            self.layers.trees(snapshot.layer)
            work = partial(self._restore, snapshot=snapshot, image=image)
            return await self._lifecycle.carry_out(entry, "restore", work)

    async def _restore(self, entry: Entry, *, snapshot: Snapshot, image: Image) -> None:
        was_live = entry.sandbox.state not in AT_REST
        if was_live:
            await self._transitions.stop(entry, grace=0)
        with self.layers.held(snapshot.layer):  # the caller may have left
            async with entry.recording:
                spec = replace(entry.sandbox.spec, image=image.digest, image_name=snapshot.spec.image_name)
                goal = replace(entry.sandbox, spec=spec, layer=snapshot.layer, snapshot=snapshot.id, discarding=True)
                await self.layers.record(sandboxes=[goal])
                entry.sandbox = goal
            crash_point("restore:recorded")
            await self.layers.sync()
            await self.layers.begin_anew(goal)
            crash_point("restore:replaced")
            async with entry.recording:
                done = replace(entry.sandbox, discarding=False)
                event = new_event(EventKind.RESTORED, done.id, snapshot=snapshot.id)
                await self.layers.record(sandboxes=[done], events=[event])
                entry.sandbox = done
            crash_point("restore:confirmed")
        if was_live:
            await self._transitions.start(entry)

    async def delete(self, snapshot: Snapshot) -> None:
        """The snapshot is gone at once; its files stay for as long as a sandbox or a later snapshot needs them."""
        self.layers.check_present(snapshot)
        await self.layers.forget(snapshot)
        crash_point("snapshot:forgotten")


@contextlib.asynccontextmanager
async def _at_rest(entry: Entry) -> AsyncIterator[None]:
    """Nothing in the sandbox runs during the block. Raises: Conflict in a state in which that cannot be had."""
    if entry.sandbox.state in AT_REST or entry.sandbox.state is SandboxState.PAUSED:
        yield
        return
    running = entry.require_running()
    jobs = running.stopped_jobs()
    try:
        await running.freeze()
        crash_point("snapshot:frozen")
        yield
    finally:
        with trio.move_on_after(THAW_LIMIT, shield=True), contextlib.suppress(FileNotFoundError, ProcessLookupError):
            await running.thaw(but=jobs)


def _require_whole(entry: Entry, summary: CloneSummary) -> None:
    """Nothing may have changed while it was copied: it stood still."""
    if summary.skipped:
        raise Conflict(
            f"cannot take a snapshot of sandbox {entry.sandbox.id}: {summary.skipped} files changed while they were "
            "copied; try again",
            kind="not_at_rest",
        )


def _event(sandbox: Sandbox, snapshot: Snapshot) -> NewEvent:
    return new_event(EventKind.SNAPSHOT, sandbox.id, snapshot=snapshot.id, name=snapshot.name)


@contextlib.contextmanager
def _explained(entry: Entry) -> Iterator[None]:
    """What the kernel refuses, in the domain's words."""
    try:
        yield
    except TreeRefused as error:
        raise Unprocessable(
            f"cannot keep the files of sandbox {entry.sandbox.id}: {error}", kind="tree_refused"
        ) from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            message = f"cannot keep the files of sandbox {entry.sandbox.id}: no space is left for a copy of them"
            raise Unavailable(message, kind="no_space") from error
        raise
