"""The domain as one thing: what the HTTP layer is given, and the nursery in which its durable work lives."""

import contextlib
import platform
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import trio

from sandboxd.config import Config
from sandboxd.constraints import MAX_MAPPING_BYTES, mapping_bytes
from sandboxd.errors import InvalidRequest, NotFound, Unprocessable
from sandboxd.isolation.backend import Backends
from sandboxd.model import CommandResult, CommandSpec, Limits, Sandbox, SandboxSpec, Snapshot
from sandboxd.service.access import quotas
from sandboxd.service.access.keys import Keys
from sandboxd.service.code.interpreter import Code
from sandboxd.service.commands import attached
from sandboxd.service.commands.background import BackgroundCommands
from sandboxd.service.commands.terminals import Terminals
from sandboxd.service.events import EventLog
from sandboxd.service.images.store import ImageStore
from sandboxd.service.ports import PortNames, Ports
from sandboxd.service.sandboxes.entry import Entry
from sandboxd.service.sandboxes.host import Host
from sandboxd.service.sandboxes.metrics import MetricsReader
from sandboxd.service.sandboxes.oom import OomWatch
from sandboxd.service.sandboxes.registry import Sandboxes
from sandboxd.service.snapshots.operations import Clones, Snapshots
from sandboxd.service.snapshots.transfer import SnapshotTransfer
from sandboxd.service.snapshots.use import StorageUse, measure
from sandboxd.service.storage.layers import Layers
from sandboxd.service.watches.registry import Watches
from sandboxd.store import Store
from sandboxd.threads import run_in_thread

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


class Service:
    """Made by open_service() only. Everything a dialect may ask of the daemon starts here."""

    def __init__(
        self,
        *,
        config: Config,
        backends: Backends,
        sandboxes: Sandboxes,
        background: BackgroundCommands,
        snapshots: Snapshots,
        transfer: SnapshotTransfer,
        events: EventLog,
        keys: Keys,
        images: ImageStore,
        watches: Watches,
        code: Code,
        ports: Ports,
        capabilities: Capabilities,
    ) -> None:
        self.config = config
        self._backends = backends
        self.sandboxes = sandboxes
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
        self.node = platform.node()
        self.started = time.monotonic()
        self._pinned: set[str] = set()
        sandboxes.admit = self._admit
        self._measuring = trio.CapacityLimiter(1)

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
        filled = replace(
            spec,
            image=image.digest,
            image_name=name,
            limits=self._enforceable(self._with_shares(spec.limits, owner)),
            owner=owner,
            user=spec.user or image.user,
            workdir=spec.workdir or image.workdir,
            env={**image.env, **spec.env},
            timeout=self._lifetime(spec.timeout),
            backend=self._backends.get(spec.backend or self._backends.default).name,
        )
        sandbox = await self.sandboxes.create(filled, image)
        with contextlib.suppress(NotFound):  # deleted already, by somebody who knows its name
            self.code.prestart(self.sandboxes.entry(sandbox.id), image)
        return sandbox

    async def create_from(self, snapshot: Snapshot, spec: SandboxSpec, *, owner: str | None) -> Sandbox:
        """A sandbox that begins with a snapshot's files; what is left open is as in the sandbox it was taken of.

        Raises: NotFound, and as create.
        """
        if spec.image_name:
            raise InvalidRequest("cannot create a sandbox of both an image and a snapshot: leave one of them out")
        source = snapshot.spec
        limits = self._enforceable(spec.limits)
        limits = self._with_shares(limits if limits.named() else source.limits, owner)
        filled = replace(
            spec,
            image=source.image,
            image_name=source.image_name,
            limits=self._enforceable(limits),
            owner=owner,
            user=spec.user or source.user,
            workdir=spec.workdir or source.workdir,
            env={**source.env, **spec.env},
            timeout=self._lifetime(spec.timeout),
            backend=self._backends.get(spec.backend or source.backend or self._backends.default).name,
        )
        return await self.snapshots.create(snapshot, filled)

    async def clone(
        self, entry: Entry, *, count: int, name: str | None, lifetime: float | None, owner: str | None
    ) -> Clones:
        """See Snapshots.clone. Several clones of one name have a number behind it."""
        self.check_lifetime(lifetime)

        def specs(source: SandboxSpec) -> tuple[SandboxSpec, ...]:
            seconds = self._lifetime(lifetime if lifetime is not None else source.timeout)
            names = [name] if count == 1 else [name and f"{name}-{number}" for number in range(1, count + 1)]
            limits = self._enforceable(self._with_shares(source.limits, owner))
            wish = replace(source, timeout=seconds, limits=limits, owner=owner)
            return tuple(replace(wish, name=each) for each in names)

        return await self.snapshots.clone(entry, specs=specs)

    async def storage_use(self) -> StorageUse:
        """Takes as long as looking at every file does."""
        return await run_in_thread(self._measure, limiter=self._measuring)

    def _measure(self) -> StorageUse:
        return measure(self.sandboxes.disk, self.snapshots.layers, self.sandboxes.all(), self.images.list())

    async def remove_image(self, name: str) -> None:
        """Raises: NotFound, Conflict while a sandbox or a snapshot stands on it."""
        digest = self.images.get(name).digest
        used = {entry.sandbox.spec.image for entry in self.sandboxes.entries()} | self.snapshots.layers.images()
        if digest not in used:
            await run_in_thread(self.images.unpin, digest, self.config.state_dir)
            self._pinned.discard(digest)
        await run_in_thread(lambda: self.images.remove(name, in_use=used.__contains__))

    async def run(self, entry: Entry, spec: CommandSpec, *, stdin: bytes, max_output: int | None) -> CommandResult:
        """See attached.run_to_end."""
        most = self.config.sandbox.max_output_bytes
        kept = most if max_output is None else min(max_output, most)
        return await attached.run_to_end(entry, spec, stdin=stdin, max_output=kept)

    def check_lifetime(self, seconds: float | None) -> float | None:
        """The lifetime if it is allowed. Raises: InvalidRequest."""
        most = self.config.sandbox.max_timeout
        if seconds is not None and seconds > most:
            raise InvalidRequest(
                f"cannot set a lifetime of {seconds:g} s: the most is {most:g} s", max_timeout_ms=int(most * 1000)
            )
        return seconds

    def _lifetime(self, seconds: float | None) -> float | None:
        return self.check_lifetime(seconds if seconds is not None else self.config.sandbox.default_timeout)

    def _with_shares(self, limits: Limits, owner: str | None) -> Limits:
        key = None if owner is None else self.keys.get(owner)
        return limits if key is None else quotas.with_shares(limits, key.quota)

    def _admit(self, spec: SandboxSpec) -> None:
        """For Sandboxes.create: whether there is room. Raises: TooManyRequests, Unavailable, Unprocessable."""
        _check_size(spec)
        sandboxes = self.sandboxes.all()
        quotas.check_all(self.config.sandbox, spec, sandboxes)
        key = None if spec.owner is None else self.keys.get(spec.owner)
        if key is not None:
            quotas.check_key(key, spec, sandboxes)

    def _enforceable(self, limits: Limits) -> Limits:
        """The limits this host can enforce: all of those asked for, or (if lenient) as many as possible."""
        beyond = [name for name in limits.named() if _CONTROLLER[name] not in self.capabilities.enforceable]
        if not beyond:
            return limits
        if self.config.sandbox.lenient_limits:
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
            return self.capabilities.disk_reason
        return self.capabilities.limits_reason or "no such device"


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
    async with trio.open_nursery() as nursery:
        oom = OomWatch(events)
        layers = Layers(store, events, host.disk)
        sandboxes = Sandboxes(
            nursery=nursery,
            store=store,
            events=events,
            host=host,
            oom=oom,
            layers=layers,
            find_image=images.get,
        )
        background = BackgroundCommands(store, host.disk, config.sandbox)
        await background.load()
        sandboxes.on_found.append(background.resume)
        watches = Watches(store, idle_limit=config.sandbox.watch_idle_limit)
        await watches.load()
        sandboxes.on_machine.append(watches.attend)
        await sandboxes.recover()
        ports = Ports(store, port_names)
        await ports.load(sandboxes.entries())
        keep_house = (host.disk.keep_purged, sandboxes.keep_slots, layers.keep_house)
        for task in (oom.run, keys.note_uses, *keep_house):
            nursery.start_soon(task)
        try:
            yield Service(
                config=config,
                backends=host.backends,
                sandboxes=sandboxes,
                background=background,
                snapshots=Snapshots(layers=layers, sandboxes=sandboxes, find_image=images.get),
                transfer=SnapshotTransfer(layers=layers, find_image=images.get, id_base=host.root_id),
                events=events,
                keys=keys,
                images=images,
                watches=watches,
                code=Code(config.code),
                ports=ports,
                capabilities=capabilities,
            )
        finally:
            nursery.cancel_scope.cancel("the service ends")
    sandboxes.release()
