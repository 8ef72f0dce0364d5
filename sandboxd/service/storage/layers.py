"""Which layers and snapshots there are, and what stands on what.

What refers to a layer is never counted and stored: it follows from the records of the layers above it, of snapshots,
of sandboxes, and from what is being made of it at this moment (`held`). A layer to which nothing refers goes.
"""

import contextlib
import logging
import math
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import trio

from sandboxd import clock
from sandboxd.crashpoints import crash_point
from sandboxd.errors import Conflict, NotFound, SandboxdError, Unprocessable
from sandboxd.model import Layer, Sandbox, Snapshot
from sandboxd.service.events import EventLog
from sandboxd.service.names import check_name
from sandboxd.service.storage.disk import Disk, sweep_away
from sandboxd.service.storage.layer_files import LayerFiles
from sandboxd.store import NewEvent, Store
from sandboxd.threads import run_in_thread

log = logging.getLogger(__name__)

# Every layer costs a mount at launch and a look-up for each name. Beyond this many, a new one takes in those below.
MAX_DEPTH = 8
# Layers that nothing needs any more go together.
COLLECT_DELAY = 0.2
COLLECT_RETRY = 5.0


class Layers:
    """Owns: the records of layers and snapshots, and the files of layers."""

    def __init__(
        self, store: Store, events: EventLog, disk: Disk, *, sandboxes: Callable[[], Iterable[Sandbox]]
    ) -> None:
        """`sandboxes`: whoever may stand on a layer."""
        self._store = store
        self._events = events
        self._disk = disk
        self.files = LayerFiles(disk)
        self._layers: dict[str, Layer] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._held: Counter[str] = Counter()
        self._forgotten: list[str] = []
        """layers that have no record any more, but files"""
        self._changed = trio.Event()
        self._sandboxes = sandboxes

    # -- asking ---------------------------------------------------------------------------------------------------

    def snapshots(self) -> list[Snapshot]:
        """All of them, oldest first."""
        return list(self._snapshots.values())

    def snapshot(self, snapshot: str) -> Snapshot:
        """By id or by name. Raises: NotFound."""
        found = self._snapshots.get(snapshot) or self._named(snapshot)
        if found is None:
            raise NotFound(f"cannot find snapshot {snapshot!r}: it does not exist, or was deleted", snapshot=snapshot)
        return found

    def check_present(self, snapshot: Snapshot) -> None:
        """That the snapshot is here still: not what has its name by now. Raises: NotFound."""
        if snapshot.id not in self._snapshots:
            raise NotFound(f"cannot find snapshot {snapshot.id!r} any more: it was deleted", snapshot=snapshot.id)

    def _named(self, name: str) -> Snapshot | None:
        return next((each for each in self._snapshots.values() if each.name == name), None)

    def check_name(self, name: str | None) -> None:
        """Raises: Conflict when a snapshot has it, Unprocessable when none may."""
        check_name(name)
        if name is not None and (name in self._snapshots or self._named(name) is not None):
            raise Conflict(f"cannot name the snapshot {name!r}: another one has that name", name=name)

    def layers(self) -> list[Layer]:
        return list(self._layers.values())

    def layer(self, layer: str) -> Layer:
        return self._layers[layer]

    def chain(self, layer: str | None) -> Iterator[Layer]:
        """The layer and those below it, uppermost first."""
        while layer is not None:
            found = self._layers.get(layer)
            if found is None:
                raise Unprocessable(f"cannot use layer {layer}: its record is lost", kind="layer_missing")
            yield found
            layer = found.parent

    def trees(self, layer: str | None) -> tuple[Path, ...]:
        """The trees of a chain, uppermost first. Raises: Unprocessable when one is lost."""
        trees = tuple(self.files.tree(each.id) for each in self.chain(layer))
        for tree in trees:
            if not tree.is_dir():
                raise Unprocessable(
                    f"cannot use layer {tree.name}: its files are lost; delete what stands on it",
                    kind="layer_missing",
                    layer=tree.name,
                )
        return trees

    def images(self) -> frozenset[str]:
        """Digests of the images that snapshots stand on."""
        return frozenset(snapshot.spec.image for snapshot in self._snapshots.values())

    def users(self, layer: str) -> tuple[str, ...]:
        """Ids of the sandboxes whose chain contains the layer."""
        return tuple(
            sandbox.id for sandbox in self._sandboxes() if any(each.id == layer for each in self.chain(sandbox.layer))
        )

    # -- changing -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self, layer: str) -> Iterator[None]:
        """Keep the layer while the block makes something that will stand on it."""
        self._held[layer] += 1
        try:
            yield
        finally:
            self._held[layer] -= 1
            if not self._held[layer]:
                del self._held[layer]
            self.note_change()

    async def seal(self, new: Path, parent: str | None, *, check: Callable[[], None]) -> Layer:
        """Make a tree that was just copied a layer over `parent`; it has no record yet. On failure nothing is left.

        A chain that would become too long becomes one layer instead.
        """
        below = tuple(self.chain(parent))
        if len(below) >= MAX_DEPTH:
            with _holding(self, below):
                new = await self._squashed(new, below, check)
            below = ()
        layer = new_layer(below[0] if below else None)
        try:
            await run_in_thread(self.files.seal, new, layer.id)
        except BaseException:
            self.files.abandon(new)
            raise
        crash_point("layer:sealed")
        return layer

    async def _squashed(self, new: Path, below: tuple[Layer, ...], check: Callable[[], None]) -> Path:
        trees = (new, *(self.files.tree(each.id) for each in below))
        try:
            squashed, _ = await run_in_thread(lambda: self.files.squash(trees, check=check))
        finally:
            self.files.abandon(new)
        return squashed

    async def record(
        self,
        *,
        layers: Iterable[Layer] = (),
        snapshots: Iterable[Snapshot] = (),
        sandboxes: Iterable[Sandbox] = (),
        events: Iterable[NewEvent] = (),
    ) -> None:
        """All of these at once. Raises: Unavailable; then nothing has changed."""
        layers, snapshots = tuple(layers), tuple(snapshots)
        recorded = await self._store.keep(
            layers=layers, snapshots=snapshots, sandboxes=tuple(sandboxes), events=tuple(events)
        )
        self._layers |= {each.id: each for each in layers}
        self._snapshots |= {each.id: each for each in snapshots}
        self._events.announce(recorded)
        self.note_change()

    async def sync(self) -> None:
        """Have the records outlive a power cut, before files go that older ones tell of. Raises: Unavailable."""
        await self._store.sync()

    async def forget(self, snapshot: Snapshot) -> None:
        """The snapshot is gone with this; its layer when nothing stands on it any more."""
        await self._store.forget_snapshot(snapshot.id)
        self._snapshots.pop(snapshot.id, None)
        self.note_change()

    def note_change(self) -> None:
        """Something may have lost its last user, or wait to be measured."""
        self._changed.set()

    # -- housekeeping ---------------------------------------------------------------------------------------------

    async def load(self, records: Iterable[Sandbox]) -> list[Sandbox]:
        """At start-up: read the records, finish what was begun, sweep what nobody knows.

        Returns the sandboxes' records as they are now.
        """
        self._layers = {each.id: each for each in await self._store.layers()}
        self._snapshots = {each.id: each for each in await self._store.snapshots()}
        records = list(records)
        for layer in self.layers():
            for sandbox in records:
                if layer.moving == sandbox.id:
                    with _told(f"snapshot of sandbox {sandbox.id}"):
                        await self.finish_move(layer, sandbox)
        finished = [await self._finish_restore(each) for each in records]
        for stray in self.files.names() - set(self._layers):
            log.warning("sweeping layer %s, which has no record", stray)
            sweep_away(self.files.discard, stray)
        return finished

    async def finish_move(self, layer: Layer, sandbox: Sandbox) -> Layer:
        """Make what the sandbox has written the layer's tree, and let it begin anew over that."""
        await run_in_thread(self.files.move, sandbox.id, layer.id)
        crash_point("layer:moved")
        await self.begin_anew(sandbox)
        moved = replace(layer, moving=None)
        await self.record(layers=[moved])
        return moved

    async def begin_anew(self, sandbox: Sandbox) -> None:
        """What it wrote is thrown away, and it writes over its layer from now on."""
        tree = None if sandbox.layer is None else self.files.tree(sandbox.layer)
        limit = sandbox.spec.limits.disk
        await run_in_thread(lambda: self._disk.replace_tree(sandbox.id, limit=limit, layer=tree))

    async def _finish_restore(self, sandbox: Sandbox) -> Sandbox:
        if not sandbox.discarding:
            return sandbox
        found = sandbox
        with _told(f"restore of sandbox {sandbox.id}"):
            await self.begin_anew(sandbox)
            finished = replace(sandbox, discarding=False)
            await self.record(sandboxes=[finished])
            found = finished
        return found

    async def keep_house(self) -> None:
        """A task of the service: let go of layers that nothing stands on, and count the bytes of new ones."""
        while True:
            self._changed = trio.Event()
            try:
                await self.collect()
                await self._measure_one()
                patience = math.inf
            except (SandboxdError, OSError) as failure:
                log.error("cannot tidy up the layers yet: %s", failure)
                patience = COLLECT_RETRY
            with trio.move_on_after(patience):
                await self._changed.wait()
            await trio.sleep(COLLECT_DELAY)

    async def collect(self) -> list[Layer]:
        """Remove the layers that nothing refers to; returns them."""
        unused = self.unused()
        if unused:
            await self._store.forget_layers([layer.id for layer in unused])
            self._forgotten += [layer.id for layer in unused if self._layers.pop(layer.id, None)]
        if self._forgotten:
            crash_point("layer:forgotten")
            await self.sync()
            while self._forgotten:
                self.files.discard(self._forgotten[-1])
                self._forgotten.pop()
        return unused

    def unused(self) -> list[Layer]:
        """Those to which nothing refers."""
        roots = [snapshot.layer for snapshot in self._snapshots.values()]
        roots += [sandbox.layer for sandbox in self._sandboxes() if sandbox.layer is not None]
        roots += self._held
        used: set[str] = set()
        for root in roots:
            while root in self._layers and root not in used:
                used.add(root)
                root = self._layers[root].parent or ""
        return [layer for layer in self._layers.values() if layer.id not in used]

    async def _measure_one(self) -> None:
        layer = next((each for each in self._layers.values() if each.size is None and each.moving is None), None)
        if layer is None:
            return
        with self.held(layer.id):
            size, entries = await run_in_thread(self.files.measure, layer.id)
            await self.record(layers=[replace(layer, size=size, entries=entries)])


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """A start-up goes on without it: one sandbox whose files are lost is not to keep the others from working."""
    try:
        yield
    except (SandboxdError, OSError) as failure:
        log.error("the %s cannot be finished, the next start tries again: %s", what, failure)


def new_layer(parent: Layer | None, *, moving: str | None = None) -> Layer:
    return Layer(
        id="l" + secrets.token_hex(10),
        parent=None if parent is None else parent.id,
        depth=1 if parent is None else parent.depth + 1,
        created_at=clock.wall(),
        moving=moving,
    )


@contextlib.contextmanager
def _holding(layers: Layers, several: Iterable[Layer]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for layer in several:
            stack.enter_context(layers.held(layer.id))
        yield
