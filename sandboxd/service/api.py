"""The domain as one thing: what the HTTP layer is given, and the nursery in which its durable work lives."""

import contextlib
import platform
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import trio

from sandboxd.config import Config
from sandboxd.errors import InvalidRequest, NotFound
from sandboxd.model import CommandSpec, Sandbox, SandboxSpec, Snapshot
from sandboxd.service.access.admission import Admission, Capabilities
from sandboxd.service.access.keys import Keys
from sandboxd.service.code.interpreter import Code
from sandboxd.service.commands import attached
from sandboxd.service.commands.background import BackgroundCommands
from sandboxd.service.commands.terminals import Terminals
from sandboxd.service.events import EventLog
from sandboxd.service.images.store import ImageStore
from sandboxd.service.output_memory import OutputMemory
from sandboxd.service.ports import PortNames, Ports
from sandboxd.service.sandboxes.entry import Entry
from sandboxd.service.sandboxes.host import Host
from sandboxd.service.sandboxes.journal import Journal
from sandboxd.service.sandboxes.lifecycle import Lifecycle
from sandboxd.service.sandboxes.machines import Machines
from sandboxd.service.sandboxes.metrics import MetricsReader
from sandboxd.service.sandboxes.oom import OomWatch
from sandboxd.service.sandboxes.registry import Registry
from sandboxd.service.sandboxes.supervisor import Supervisor
from sandboxd.service.sandboxes.transitions import Transitions
from sandboxd.service.snapshots.operations import Clones, Snapshots
from sandboxd.service.snapshots.transfer import SnapshotTransfer
from sandboxd.service.snapshots.use import StorageUse, measure
from sandboxd.service.storage.disk import Disk
from sandboxd.service.storage.layers import Layers
from sandboxd.service.watches.registry import Watches
from sandboxd.store import Store
from sandboxd.threads import run_in_thread


class Service:
    """Made by open_service() only. Everything a dialect may ask of the daemon starts here."""

    def __init__(
        self,
        *,
        config: Config,
        admission: Admission,
        sandboxes: Registry,
        supervisor: Supervisor,
        lifecycle: Lifecycle,
        disk: Disk,
        background: BackgroundCommands,
        snapshots: Snapshots,
        transfer: SnapshotTransfer,
        events: EventLog,
        keys: Keys,
        images: ImageStore,
        watches: Watches,
        code: Code,
        ports: Ports,
        output_memory: OutputMemory,
        capabilities: Capabilities,
    ) -> None:
        self.config = config
        self.admission = admission
        self.sandboxes = sandboxes
        self.lifecycle = lifecycle
        self._supervisor = supervisor
        self._disk = disk
        self.background = background
        self.terminals = Terminals(background)
        self.snapshots = snapshots
        self.transfer = transfer
        self.events = events
        self.keys = keys
        self.images = images
        self.watches = watches
        self.ports = ports
        self.metrics = MetricsReader()
        self.code = code
        self.capabilities = capabilities
        self.output_memory = output_memory
        self.node = platform.node()
        self.started = time.monotonic()
        self._pinned: set[str] = set()
        self._measuring = trio.CapacityLimiter(1)

    def reconfigure(self, config: Config) -> None:
        """Take over what the configuration says now, for what is asked from here on."""
        self.config = config
        self.admission.config = config.sandbox

    async def create(self, spec: SandboxSpec, *, owner: str | None) -> Sandbox:
        """Make a sandbox of the image `spec.image_name` names; what is left open is filled from the image.

        `owner`: id of the key it is counted for; None for administrators. Raises: NotFound (no such image),
        InvalidRequest, Unprocessable (a limit this host cannot enforce), Conflict, TooManyRequests (the key's quota),
        Unavailable, LaunchFailed.
        """
        name = spec.image_name or self.config.sandbox.default_image
        image = self.images.get(name)
        if image.digest not in self._pinned:
            await run_in_thread(self.images.pin, image.digest, self.config.state_dir)
            self._pinned.add(image.digest)
        defaults = SandboxSpec(
            image=image.digest, image_name=name, env=image.env, user=image.user, workdir=image.workdir
        )
        completed = self.admission.complete(spec, defaults, owner=owner)
        sandbox = await self._supervisor.create(completed, image)
        with contextlib.suppress(NotFound):  # deleted already, by somebody who knows its name
            self.code.prestart(self.sandboxes.entry(sandbox.id), image)
        return sandbox

    async def create_from(self, snapshot: Snapshot, spec: SandboxSpec, *, owner: str | None) -> Sandbox:
        """A sandbox that begins with a snapshot's files; what is left open is as in the sandbox it was taken of.

        Raises: NotFound, and as create.
        """
        if spec.image_name:
            raise InvalidRequest("cannot create a sandbox of both an image and a snapshot: leave one of them out")
        completed = self.admission.complete(spec, snapshot.spec, owner=owner)
        return await self.snapshots.create(snapshot, completed)

    async def clone(
        self, entry: Entry, *, count: int, name: str | None, lifetime: float | None, owner: str | None
    ) -> Clones:
        """See Snapshots.clone. Several clones of one name have a number behind it."""
        self.admission.check_lifetime(lifetime)

        def specs(source: SandboxSpec) -> tuple[SandboxSpec, ...]:
            names = [name] if count == 1 else [name and f"{name}-{number}" for number in range(1, count + 1)]
            copy = self.admission.copy(source, lifetime=lifetime, owner=owner)
            return tuple(replace(copy, name=each) for each in names)

        return await self.snapshots.clone(entry, specs=specs)

    async def storage_use(self) -> StorageUse:
        """Takes as long as looking at every file does."""
        return await run_in_thread(self._measure, limiter=self._measuring)

    def _measure(self) -> StorageUse:
        return measure(self._disk, self.snapshots.layers, self.sandboxes.all(), self.images.list())

    async def remove_image(self, name: str) -> None:
        """Raises: NotFound, Conflict while a sandbox or a snapshot stands on it."""
        digest = self.images.get(name).digest
        used = {entry.sandbox.spec.image for entry in self.sandboxes.entries()} | self.snapshots.layers.images()
        if digest not in used:
            await run_in_thread(self.images.unpin, digest, self.config.state_dir)
            self._pinned.discard(digest)
        await run_in_thread(lambda: self.images.remove(name, in_use=used.__contains__))

    async def run(
        self, entry: Entry, spec: CommandSpec, *, stdin: bytes, max_output: int | None
    ) -> attached.CommandResult:
        """See attached.run_to_end."""
        config = self.config.sandbox
        wanted = config.default_output_bytes if max_output is None else max_output
        kept = min(wanted, config.max_output_bytes)
        return await attached.run_to_end(entry, spec, stdin=stdin, max_output=kept, memory=self.output_memory)


@contextlib.asynccontextmanager
async def open_service(
    *, config: Config, store: Store, host: Host, capabilities: Capabilities, port_names: PortNames
) -> AsyncIterator[Service]:
    """Recover what an earlier daemon left, then serve until the block ends. The sandboxes live on after it.

    Owns: the nursery of all durable work.
    """
    events = EventLog(store)
    keys = Keys(store)
    await keys.load()
    images = await run_in_thread(lambda: ImageStore(config.image_dir, id_base=host.root_id))
    output_memory = OutputMemory(config.sandbox.output_memory)
    async with trio.open_nursery() as nursery:
        registry, journal, oom = Registry(), Journal(store, events), OomWatch(events)
        layers = Layers(store, events, host.disk, sandboxes=registry.all)
        admission = Admission(
            config.sandbox,
            capabilities=capabilities,
            backends=host.backends,
            keys=keys,
            registry=registry,
            layers=layers,
        )
        machines = Machines(host, layers)
        transitions = Transitions(journal=journal, machines=machines, find_image=images.get)
        lifecycle = Lifecycle(nursery=nursery, registry=registry, journal=journal, transitions=transitions)
        background = BackgroundCommands(store, host.disk, config.sandbox)
        await background.load()
        watches = Watches(store, idle_limit=config.sandbox.watch_idle_limit)
        await watches.load()
        supervisor = Supervisor(
            nursery=nursery,
            registry=registry,
            host=host,
            journal=journal,
            machines=machines,
            transitions=transitions,
            lifecycle=lifecycle,
            layers=layers,
            oom=oom,
            admit=admission.admit,
            beside_machines=(watches.attend,),
            beside_found=(background.resume,),
        )
        await supervisor.recover()
        ports = Ports(store, port_names)
        await ports.load(registry.entries())
        for task in (oom.run, keys.note_uses, host.disk.keep_purged, supervisor.slots.run, layers.keep_house):
            nursery.start_soon(task)
        try:
            yield Service(
                config=config,
                admission=admission,
                sandboxes=registry,
                supervisor=supervisor,
                lifecycle=lifecycle,
                disk=host.disk,
                background=background,
                snapshots=Snapshots(
                    layers=layers,
                    disk=host.disk,
                    supervisor=supervisor,
                    transitions=transitions,
                    lifecycle=lifecycle,
                    find_image=images.get,
                    room=admission.room_for_snapshot,
                ),
                transfer=SnapshotTransfer(
                    layers=layers, find_image=images.get, id_base=host.root_id, room=admission.room_for_snapshot
                ),
                events=events,
                keys=keys,
                images=images,
                watches=watches,
                code=Code(config.code, output_memory),
                output_memory=output_memory,
                ports=ports,
                capabilities=capabilities,
            )
        finally:
            nursery.cancel_scope.cancel("the service ends")
    supervisor.release()
