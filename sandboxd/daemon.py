"""Composition: everything the daemon is, opened in order and closed in reverse.

    lock the state directory · bind the listeners · open the store · ready the host · recover · serve

Sockets are bound before anything runs, so that a taken address is one sentence; connections that come in meanwhile
wait in the backlog until recovery is done.
"""

import contextlib
import dataclasses
import fcntl
import gc
import hashlib
import logging
import os
import resource
import shutil
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import trio

from sandboxd.config import Config, ListenConfig, find_asset, in_own_userns
from sandboxd.errors import StartupError
from sandboxd.http.app import DIALECTS, build_app
from sandboxd.http.server.listeners import Listener, activated, bind, parse_listen_address
from sandboxd.http.server.serving import Server, ServingLimits
from sandboxd.http.server.tls import ServerTls
from sandboxd.isolation.backend import Backends
from sandboxd.isolation.bwrap import seccomp
from sandboxd.isolation.bwrap.backend import BwrapBackend
from sandboxd.kernel import rootless
from sandboxd.kernel.cgroup_tree import (
    CgroupSupport,
    CgroupTree,
    NoCgroupTree,
    discover_cgroups,
    prepare_cgroups,
)
from sandboxd.kernel.cgroups import block_device_of
from sandboxd.service.access.admission import Capabilities
from sandboxd.service.api import Service, open_service
from sandboxd.service.ports import PortNames
from sandboxd.service.resources import Resources
from sandboxd.service.sandboxes.host import Host
from sandboxd.service.sandboxes.limits import Cgroups
from sandboxd.service.sandboxes.processes import Processes
from sandboxd.service.sandboxes.ranges import RANGES_PER_BLOCK, IdRanges, SharedRange, claim_block
from sandboxd.service.storage.disk import Disk
from sandboxd.service.storage.pool import open_volume
from sandboxd.store import open_store
from sandboxd.task_tree import render_task_tree

log = logging.getLogger(__name__)


async def run(config: Config, *, reload: Callable[[], Config]) -> None:
    """The daemon's whole life. Returns after SIGTERM or SIGINT. Raises: StartupError."""
    os.umask(0o022)
    raise_descriptor_limit()
    make_directories(config)
    with lock_state(config.state_dir), bind_listeners(config) as listeners:
        async with contextlib.AsyncExitStack() as stack:
            store = await stack.enter_async_context(open_store(config.state_dir / "state.db"))
            host, capabilities = stack.enter_context(ready_host(config, stack.enter_context(ready_ranges(config))))
            service = await stack.enter_async_context(
                open_service(
                    config=config,
                    store=store,
                    host=host,
                    capabilities=capabilities,
                    port_names=port_names(config, listeners),
                )
            )
            await serve(config, service, listeners, reload=reload)
            notify("STOPPING=1")


async def serve(
    config: Config, service: Service, listeners: tuple[Listener, ...], *, reload: Callable[[], Config]
) -> None:
    stop = trio.Event()
    server = Server(build_app(service), limits=serving_limits(config, len(listeners)))
    async with trio.open_nursery() as nursery:
        await nursery.start(handle_signals, stop, nursery.cancel_scope, service, listeners, reload)
        async with trio.open_nursery() as serving:
            await serving.start(_serve_until, server, listeners, stop, config.shutdown_grace)
            settle_memory()
            log.info("serving on %s", ", ".join(listener.label for listener in listeners))
            notify("READY=1")
        nursery.cancel_scope.cancel("serving ended")


async def _serve_until(
    server: Server,
    listeners: tuple[Listener, ...],
    stop: trio.Event,
    grace: float,
    task_status: trio.TaskStatus[None],
) -> None:
    await server.serve(listeners, stop=stop, grace=grace, task_status=task_status)


async def handle_signals(
    stop: trio.Event,
    everything: trio.CancelScope,
    service: Service,
    listeners: tuple[Listener, ...],
    reload: Callable[[], Config],
    task_status: trio.TaskStatus[None],
) -> None:
    """TERM or INT: end gracefully; a second one: at once. HUP: read the configuration and the certificates again.
    USR1: log all tasks."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP:
                reload_config(service, reload)
                reload_certificates(listeners)
            elif number == signal.SIGUSR1:
                root = trio.lowlevel.current_root_task()
                assert root is not None
                # Not as an argument: that would become one line (see logs.py).
                log.warning("all tasks:\n" + render_task_tree(root))
            elif stop.is_set():
                log.warning("second %s: ending at once", signal.Signals(number).name)
                everything.cancel("second signal")
            else:
                log.info("%s: ending", signal.Signals(number).name)
                stop.set()


# What applies to requests to come; everything else is fixed when the daemon starts.
RELOADABLE = frozenset({"sandbox", "log_level"})


def reload_config(service: Service, read: Callable[[], Config]) -> None:
    """Take over what may change while running; say what needs a restart. A file with errors changes nothing."""
    try:
        new = read()
    except StartupError as error:
        log.error("configuration not reloaded: %s", error)
        return
    changed = {name for name in Config.model_fields if getattr(new, name) != getattr(service.config, name)}
    for name in sorted(changed - RELOADABLE):
        log.warning("configuration: %s takes effect after a restart", name)
    service.reconfigure(service.config.model_copy(update={name: getattr(new, name) for name in RELOADABLE}))
    logging.getLogger().setLevel(service.config.log_level.upper())
    log.info("configuration reloaded: %s", ", ".join(sorted(changed & RELOADABLE)) or "nothing changed")


def reload_certificates(listeners: tuple[Listener, ...]) -> None:
    """For connections to come. A pair that cannot be used leaves the present one in place."""
    for listener in listeners:
        if listener.tls is not None:
            try:
                listener.tls.reload()
            except StartupError as error:
                log.error("certificate of %s not reloaded, the old one is kept: %s", listener.label, error)
            else:
                log.info("certificate of %s reloaded: %s", listener.label, listener.tls)


# -- the host -----------------------------------------------------------------------------------------------------


def raise_descriptor_limit() -> None:
    """As far as this process may. A sandbox takes two descriptors here and one in the fork server, and the usual soft
    limit of 1024 is there for select(), which nothing here calls."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


# So many more made than freed begin a search for garbage; Python's own 700 are what two or three requests make.
YOUNG_OBJECTS = 10_000
# So many searches among the young before one among those that survived, and so many of these before one among all:
# a thousand connections are a hundred thousand objects, and to go through them holds everybody up for 150 ms.
SEARCHES = (10, 100)


def settle_memory() -> None:
    """What is loaded by now stays: exempt it from the searches for garbage, each of which would go through all of it
    (30 ms and more, during which nobody is served). Little that comes later is in cycles, so those are rare, too."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *SEARCHES)
    gc.enable()


def make_directories(config: Config) -> None:
    """Make what is missing, and close to other users what is there and open. Raises: StartupError.

    The runtime directory is to be entered by those who may use the socket; nobody else puts anything into it.
    """
    try:
        for directory, mode in ((config.state_dir, 0o700), (config.runtime_dir, 0o755), (config.image_dir, 0o700)):
            directory.mkdir(mode=mode, parents=True, exist_ok=True)
            close_directory(directory, mode)
    except OSError as error:
        raise StartupError(f"cannot make {error.filename}: {error.strerror}") from error


# One of them is in each directory that a daemon has used.
OWN_FILES = ("lock", "state.db", "pool.img", "names.json", "sandboxes", "sandboxd.sock")


def close_directory(directory: Path, most: int) -> None:
    """Take every permission beyond `most`, from a directory that is the daemon's alone. Raises: StartupError."""
    found = directory.stat()
    if found.st_uid != os.geteuid():
        raise StartupError(f"{directory} is another user's: chown it to the daemon's user, or name another one")
    if not stat.S_IMODE(found.st_mode) & 0o777 & ~most:
        return
    names = set(os.listdir(directory)) - {"lost+found"}  # of a file system of its own
    if names and not any(name in OWN_FILES for name in names):  # /tmp or /var/lib: others would lose it
        raise StartupError(
            f"other users may use {directory}, and it has other files than the daemon's: "
            f"chmod {most:04o} {directory} if it is the daemon's, or name another one"
        )
    directory.chmod(stat.S_IMODE(found.st_mode) & most)
    log.warning("other users could use %s: its mode is now %04o", directory, stat.S_IMODE(found.st_mode) & most)


@contextlib.contextmanager
def lock_state(state_dir: Path) -> Iterator[None]:
    """Keep a second daemon off the same state, for as long as this one lives."""
    descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise StartupError(f"cannot use {state_dir}: the daemon with pid {owner} uses it already") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def bind_listeners(config: Config) -> Iterator[tuple[Listener, ...]]:
    """What the service manager passed, or else what the configuration lists.

    A socket that was passed gets the dialect and the certificate of the entry with its address.
    """
    entries = [(parse_listen_address(entry.address), listener_settings(entry)) for entry in config.listeners()]
    passed = activated(os.environ)
    by_label = {str(address): settings for address, settings in entries}
    with bind([] if passed else [address for address, _ in entries], group=config.socket_group) as bound:
        yield (
            *(dataclasses.replace(listener, **by_label.get(listener.label, {})) for listener in passed),
            *(dataclasses.replace(listener, **entry[1]) for listener, entry in zip(bound, entries, strict=False)),
        )


def listener_settings(entry: ListenConfig) -> dict[str, Any]:
    """What a listener has beside its socket. Raises: StartupError."""
    if entry.dialect not in {None, *DIALECTS}:
        raise StartupError(
            f"cannot give {entry.address} to the dialect {entry.dialect!r}: there is none of that name; "
            f"there are {', '.join(sorted(DIALECTS))}",
            kind="unknown_dialect",
        )
    return {
        "dialect": entry.dialect,
        "tls": None if entry.tls is None else ServerTls(entry.tls.certificate, entry.tls.key),
    }


@contextlib.contextmanager
def ready_host(config: Config, ranges: IdRanges) -> Iterator[tuple[Host, Capabilities]]:
    """The backend and what it stands on."""
    init = install_init(config)
    support, tree = ready_cgroups(config)
    own_userns = in_own_userns()
    root_id = rootless.FIRST_ID if own_userns else 0
    backends = ready_backends(config)
    volume = open_volume(config.state_dir, rootless=own_userns)
    block_device = block_device_of(config.state_dir)
    disk = Disk(volume=volume, runtime_dir=config.runtime_dir, root_id=root_id)
    cgroups = Cgroups(tree, block_device=block_device)
    processes = Processes(backends)
    host = Host(
        backends=backends,
        resources=Resources(ranges, disk, cgroups, processes),
        ranges=ranges,
        disk=disk,
        cgroups=cgroups,
        processes=processes,
        root_id=root_id,
        init=init,
    )
    enforceable = tree.limits | ({"disk"} if not volume.limits_disk else set())
    capabilities = Capabilities(
        backend=backends.default,
        backends=backends.names,
        rootless=own_userns,
        enforceable=enforceable if block_device else enforceable - {"io"},
        limits_reason="; ".join([support.reason, *tree.refused.values()]).strip("; "),
        disk_reason=volume.limits_disk,
        volume=volume.kind,
        max_sandboxes=config.sandbox.max_sandboxes,
        max_lifetime=config.sandbox.max_timeout,
        default_image=config.sandbox.default_image,
    )
    try:
        yield host, capabilities
    finally:
        backends.close()
        with contextlib.suppress(OSError):  # sandboxes live on in it; the next daemon finds it as it is
            tree.remove()


def ready_backends(config: Config) -> Backends:
    """The ways to isolate that this host has, by name."""
    profile = seccomp.compile_profile(config.seccomp_profile or find_asset("seccomp/default.json"))
    bwrap = BwrapBackend(bwrap=find_bwrap(config), profile=profile, max_processes=config.sandbox.max_processes)
    backends = Backends(bwrap, default=config.sandbox.default_backend)
    if backends.default not in backends.names:
        raise StartupError(
            f"cannot use the backend {backends.default!r} (sandbox.default_backend in the configuration): "
            f"there is {', '.join(backends.names)}"
        )
    return backends


def port_names(config: Config, listeners: tuple[Listener, ...]) -> PortNames:
    """What exposed ports are called: as configured, or under `localhost`, every name of which is this machine."""
    if config.ports.base_url is not None:
        return PortNames.of(config.ports.base_url)
    for listener in listeners:
        if listener.label.startswith("tcp:") and listener.dialect is None:
            scheme = "http" if listener.tls is None else "https"
            return PortNames.of(f"{scheme}://localhost:{listener.label.rpartition(':')[2]}")
    return PortNames()


def install_init(config: Config) -> Path:
    """sandbox-init, copied to the runtime directory.

    So that a sandbox's mount table does not tell where sandboxd is installed, and an upgrade does not touch the file
    that running sandboxes have open.
    """
    source = config.init or find_asset("rootfs/init/build/sandbox-init")
    try:
        program = source.read_bytes()
    except OSError as error:
        raise StartupError(f"cannot read sandbox-init: {error}") from error
    target = config.runtime_dir / f"sandbox-init-{hashlib.sha256(program).hexdigest()[:12]}"
    if not _holds(target, program):
        fresh = target.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(program)
        fresh.chmod(0o555)
        fresh.rename(target)
    return target


def _holds(target: Path, program: bytes) -> bool:
    """Whether it is there, whole, and may be run: every sandbox runs it as its first process.

    A power cut can leave a file of the right size and name with anything in it.
    """
    try:
        with target.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            return stat.S_ISREG(mode) and stat.S_IMODE(mode) == 0o555 and file.read(len(program) + 1) == program
    except OSError:
        return False


def find_bwrap(config: Config) -> Path:
    found = config.bwrap or shutil.which("bwrap")
    if found is None:
        raise StartupError("cannot find bwrap: install the package bubblewrap, or set `bwrap` in the configuration")
    return Path(found)


def ready_cgroups(config: Config) -> tuple[CgroupSupport, CgroupTree]:
    """The daemon's part of the cgroup tree, named after its state directory so that daemons do not meet there."""
    support = discover_cgroups(config.cgroup_root)
    if support.root is None or not support.can_kill:
        log.warning("no cgroups for sandboxes: %s", support.reason)
        return support, NoCgroupTree()
    instance = hashlib.sha256(os.fsencode(config.state_dir.resolve())).hexdigest()[:12]
    try:
        return support, prepare_cgroups(support, instance=instance)
    except OSError as error:
        log.warning("no cgroups for sandboxes: %s", error)
        return dataclasses.replace(support, root=None, reason=str(error)), NoCgroupTree()


@contextlib.contextmanager
def ready_ranges(config: Config) -> Iterator[IdRanges]:
    """The host ids that sandboxes are given."""
    if in_own_userns():
        yield SharedRange(rootless.FIRST_ID)
    else:
        with claim_block(config.state_dir, config.range_first, config.id_registry) as first:
            yield IdRanges(first, RANGES_PER_BLOCK)


def serving_limits(config: Config, listeners: int) -> ServingLimits:
    return ServingLimits(
        max_connections=connection_limit(config.http.max_connections, listeners),
        max_connections_per_peer=config.http.max_connections_per_peer,
        header_timeout=config.http.header_timeout,
        keep_alive_timeout=config.http.keep_alive,
        max_header_bytes=config.http.max_header_bytes,
        cleartext_http2=config.http.cleartext_http2,
    )


def connection_limit(wanted: int, listeners: int) -> int:
    """Connections of one listener. Half of the descriptors are kept for sandboxes, whoever connects."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = max(1, descriptors // 2 // listeners)
    if possible < wanted:
        log.warning(
            "http.max_connections is %d here, not %d: this process may open %d descriptors; raise LimitNOFILE=",
            possible,
            wanted,
            descriptors,
        )
    return min(wanted, possible)


def notify(message: str) -> None:
    """Tell the service manager (sd_notify(3)), if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.connect("\0" + address[1:] if address.startswith("@") else address)
                sock.send(message.encode())
        except OSError as error:  # it restarts, or is none: no reason not to serve
            log.warning("cannot tell the service manager %s at %s: %s", message, address, error)
