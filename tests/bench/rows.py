"""What is measured: one function per row of the report, each returning the figures of all systems that offer it."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.bench import copies, density, machine, neighbours, ports, terminals, trees, volumes, watches
from tests.bench.measure import Figure, Trial, TrialFailed, concurrently, interleave
from tests.bench.sandboxd import CODE_IMAGE, Sandboxd, daemon_processes
from tests.bench.systems import Instance, System

MIB = 1024 * 1024
OUTPUT_SIZE = 64 * MIB
LOG_SIZE = 12 * MIB
ECHOES = 500
IN_A_ROW = 10
WORKERS = (1, 4, 16)
# With fewer, what the rest of the machine does meanwhile is more than what they take.
ENOUGH_TO_WEIGH_HOST = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much of everything."""

    seconds: float
    """for each interleaved row"""
    lives: int
    """sandboxes for each step of the concurrency rows"""
    idle: tuple[int, ...]
    """how many idle sandboxes of ours to weigh at once"""
    idle_peers: int
    file_size: int
    restart: int
    """sandboxes alive across a restart"""


QUICK = Effort(seconds=5, lives=40, idle=(10,), idle_peers=5, file_size=64 * MIB, restart=50)
DEFAULT = Effort(seconds=15, lives=160, idle=(10, 100, 500), idle_peers=20, file_size=256 * MIB, restart=200)
FULL = Effort(seconds=60, lives=400, idle=(10, 100, 500, 1000), idle_peers=50, file_size=1024 * MIB, restart=200)

Row = Callable[[Sequence[System], Effort], list[Figure]]


def life(systems: Sequence[System], effort: Effort) -> list[Figure]:
    """Create a sandbox, run /bin/true in it, destroy it; nothing prepared for it in advance."""
    able = _offering("life", systems)
    figures = [Figure(row="life", system=system.name, unit="ms") for system in able]
    trials = [Trial(system=system.name, run=system.live) for system in able]
    interleave(figures, trials, seconds=effort.seconds)
    return figures


def exec_true(systems: Sequence[System], effort: Effort) -> list[Figure]:
    """Run /bin/true in a sandbox that is there: once between the others' turns, and ten times in a row."""
    figures, trials, instances = _on_instances("exec", systems, lambda instance: instance.true, unit="ms")
    interleave(figures, trials, seconds=effort.seconds)
    following = [Figure(row="exec in a row", system=figure.system, unit="ms") for figure in figures]
    interleave(following, trials, seconds=effort.seconds, in_a_row=IN_A_ROW)
    _stop_all(instances, figures)
    return figures + following


def run_code(systems: Sequence[System], effort: Effort) -> list[Figure]:
    """The value of 1+1 from a kernel that is there; and a sandbox's first value, its kernel's start included."""
    figures = []
    for system in _of_ours(systems):
        warm = Figure(row="run", system=system.name, unit="ms")
        first = Figure(row="first run", system=system.name, unit="ms", note="with the sandbox's own life around it")
        kept = Trial(system=system.name, run=partial(system.one_plus_one, system.create(image=CODE_IMAGE)))
        fresh = Trial(system=system.name, run=system.first_value)
        for figure, trial in ((warm, kept), (first, fresh)):  # not in turns: a kernel that starts takes a processor
            interleave([figure], [trial], seconds=effort.seconds / 2)
        system.delete_all()
        figures += [warm, first]
    return figures


def parallel(systems: Sequence[System], effort: Effort) -> list[Figure]:
    """Whole lives per second, with 1, 4 and 16 clients at once."""
    figures = []
    for workers in WORKERS:
        able = _offering("life", systems)
        for system in able:
            figure = Figure(row=f"lives ×{workers}", system=system.name, unit="/s", higher_is_better=True)
            _fill_rate(figure, system.live, workers=workers, times=max(workers, _times(system, effort)))
            figures.append(figure)
    return figures


def _times(system: System, effort: Effort) -> int:
    """As many as the effort says; of a slow system as many as take a tenth of the row's time."""
    begun = time.perf_counter()
    try:
        system.live()
    except (TrialFailed, OSError):
        return 1
    return min(effort.lives, int(effort.seconds / 10 / (time.perf_counter() - begun)))


def creates(systems: Sequence[System], effort: Effort) -> list[Figure]:
    """Creations per second; what was created stays until the step is over."""
    figures = []
    for system in _of_ours(systems):
        for workers in WORKERS:
            figure = Figure(row=f"creates ×{workers}", system=system.name, unit="/s", higher_is_better=True)
            for _ in range(3):
                _fill_rate(figure, system.create, workers=workers, times=effort.lives)
                system.delete_all()
            figures.append(figure)
    return figures


def _fill_rate(figure: Figure, work: Callable[[], object], *, workers: int, times: int) -> None:
    rate, failures = concurrently(work, workers=workers, times=times)
    figure.failures += failures
    if rate:
        figure.values.append(rate)


def output(systems: Sequence[System], effort: Effort) -> list[Figure]:
    """64 MiB of text from a command to the client."""

    def receive(method: Callable[[int], int]) -> Callable[[], float]:
        return _rate_of(OUTPUT_SIZE, lambda: _expect(OUTPUT_SIZE, method(OUTPUT_SIZE)))

    figures, trials, instances = _on_instances(
        "output", systems, lambda instance: receive(instance.output), unit="MB/s"
    )
    streamed, stream_trials, more = _on_instances(
        "stream", systems, lambda instance: receive(instance.stream), unit="MB/s"
    )
    interleave(figures + streamed, trials + stream_trials, seconds=effort.seconds)
    _stop_all(instances, figures)
    _stop_all(more, streamed)
    return figures + streamed


def files(systems: Sequence[System], effort: Effort) -> list[Figure]:
    """A large file into a sandbox and back, and what the daemon's memory does meanwhile."""
    data = bytes(range(256)) * (effort.file_size // 256)
    figures = []
    for system in _offering("files", systems):
        instance = system.start()
        up = Figure(row="upload", system=system.name, unit="MB/s", higher_is_better=True)
        down = Figure(row="download", system=system.name, unit="MB/s", higher_is_better=True)
        before = density.reset_peak(system.pid) if isinstance(system, Sandboxd) else 0
        put = Trial(system=system.name, run=_rate_of(len(data), partial(instance.upload, data)))
        get = Trial(system=system.name, run=_rate_of(len(data), partial(_download, instance, len(data))))
        for _ in range(3):
            up.attempt(put)
            down.attempt(get)
        if isinstance(system, Sandboxd):
            up.note = f"daemon's memory grew by {(density.peak_memory(system.pid) - before) / MIB:.0f} MiB at most"
        _stop_all([instance], [down])
        figures += [up, down]
    return figures


def many_files(systems: Sequence[System], effort: Effort) -> list[Figure]:
    """Five thousand small files into a sandbox and back, as one archive."""
    figures = []
    for system in systems:
        if isinstance(system, Sandboxd):
            instance, archive = system.start(), trees.archive_of_many()
            up = Figure(row="5000 files up", system=system.name, unit="ms")
            down = Figure(row="5000 files down", system=system.name, unit="ms")
            for _ in range(5):
                up.attempt(Trial(system=system.name, run=partial(trees.send, instance, archive)))
                down.attempt(Trial(system=system.name, run=partial(trees.fetch, instance)))
            _stop_all([instance], [down])
            figures += [up, down]
    return figures


def memory(systems: Sequence[System], effort: Effort) -> list[Figure]:
    """PSS of an idle sandbox's processes, when many are alive."""
    figures = []
    for system in _offering("memory", systems):
        counts = effort.idle if isinstance(system, Sandboxd) else (effort.idle_peers,)
        figures += [_weigh(system, count) for count in counts]
    return figures


def _weigh(system: System, count: int) -> Figure:
    figure = Figure(row=f"idle ×{count}", system=system.name, unit="MB")
    own = daemon_processes(system.pid) if isinstance(system, Sandboxd) else set()
    available, daemon = machine.memory_available(), density.pss(own)
    instances: list[Instance] = []
    try:
        instances.extend(system.start() for _ in range(count))
        processes = set().union(*(i.processes() for i in (instances[:1] if own else instances)))
        figure.values.append(density.pss(processes) / count / 1e6)
        figure.note = f"{len(processes) / count:.1f} processes each"
        if count >= ENOUGH_TO_WEIGH_HOST:
            all_told = (available - machine.memory_available()) / count / 1e6
            figure.note += f", {all_told:.2f} MB of the host's memory all told"
        if own:
            figure.note += f"; daemon +{(density.pss(own) - daemon) / count / 1e3:.0f} kB each"
    except (TrialFailed, OSError) as failure:
        figure.failures.append(f"after {len(instances)}: {failure}")
    _stop_all(instances, [figure] * len(instances))
    return figure


def restart(systems: Sequence[System], effort: Effort) -> list[Figure]:
    """SIGKILL the daemon with live sandboxes; from the start of the next one until all of them are attached."""
    figures = []
    for system in _of_ours(systems):
        figure = Figure(row=f"restart ×{effort.restart}", system=system.name, unit="ms")
        for _ in range(effort.restart):
            system.create()
        for _ in range(3):
            system.client.close()
            system.daemon.kill()
            figure.attempt(Trial(system=system.name, run=partial(_start_again, system, effort.restart)))
        system.delete_all()
        figures.append(figure)
    return figures


def _start_again(system: Sandboxd, expected: int) -> None:
    system.daemon.start()
    listed = system.client.request("GET", "/v1/sandboxes?limit=1000&status=running")["sandboxes"]
    if len(listed) != expected:
        raise TrialFailed(f"{expected - len(listed)} of {expected} sandboxes were lost")


def watch(systems: Sequence[System], effort: Effort) -> list[Figure]:
    """From a new file in a watched directory to the event at the client; of watchfiles alone, on the host."""
    figures = []
    count = max(50, int(effort.seconds * 10))
    for system in _of_ours(systems):
        for source in ("raw", "changes"):
            figure = Figure(row=f"watch {source}", system=system.name, unit="ms")
            figure.values = watches.of_sandboxd(system, source=source, count=count)
            figures.append(figure)
        figures.append(Figure(row="watch", system="watchfiles", unit="ms", values=watches.of_watchfiles(count=count)))
    return figures


def pty(systems: Sequence[System], effort: Effort) -> list[Figure]:
    """A key, from the client to a program in a terminal and back, over the websocket."""
    figures = []
    for system in _of_ours(systems):
        figure = Figure(row="pty echo", system=system.name, unit="ms")
        figure.values = list(terminals.echoes(system, count=ECHOES))
        figures.append(figure)
    return figures


def logs(systems: Sequence[System], effort: Effort) -> list[Figure]:
    """The log of a background command, followed as it is written: no more than is kept, so that none is lost."""
    figures = []
    for system in _of_ours(systems):
        figure = Figure(row="logs", system=system.name, unit="MB/s", higher_is_better=True)
        sandbox = system.create()
        work = partial(terminals.follow, system, sandbox, LOG_SIZE)
        trial = Trial(system=system.name, run=_rate_of(LOG_SIZE, lambda work=work: _expect(LOG_SIZE, work())))
        for _ in range(5):
            figure.attempt(trial)
        system.client.request("DELETE", f"/v1/sandboxes/{sandbox}")
        figures.append(figure)
    return figures


def proxied(systems: Sequence[System], effort: Effort) -> list[Figure]:
    """A small and a large answer of a program on a port: through the daemon, and of the same program on this host."""
    small, large = [], []
    small_trials, large_trials = [], []
    with contextlib.ExitStack() as stack:
        for system in _of_ours(systems):
            for name, get in (
                (system.name, stack.enter_context(ports.through(system))),
                ("directly", stack.enter_context(ports.direct())),
            ):
                small.append(Figure(row="port request", system=name, unit="ms"))
                small_trials.append(Trial(system=name, run=partial(get, 100)))
                large.append(Figure(row="port download", system=name, unit="MB/s", higher_is_better=True))
                large_trials.append(Trial(system=name, run=_rate_of(OUTPUT_SIZE, partial(get, OUTPUT_SIZE))))
        interleave(small, small_trials, seconds=effort.seconds)
        interleave(large, large_trials, seconds=effort.seconds)
    return small + large


# -- helpers ------------------------------------------------------------------------------------------------------


def _offering(what: str, systems: Sequence[System]) -> list[System]:
    return [system for system in systems if what in system.offers]


def _of_ours(systems: Sequence[System]) -> list[Sandboxd]:
    return [system for system in systems if isinstance(system, Sandboxd)]


def _on_instances(
    row: str, systems: Sequence[System], trial: Callable[[Any], Callable[[], Any]], *, unit: str
) -> tuple[list[Figure], list[Trial], list[Instance | None]]:
    """A figure, a trial and a running instance for each system; one that does not start is a failure, and None."""
    figures, trials = [], []
    instances: list[Instance | None] = []
    for system in _offering(row, systems):
        figure = Figure(row=row, system=system.name, unit=unit, higher_is_better=unit != "ms")
        figures.append(figure)
        try:
            instance = system.start()
        except (TrialFailed, OSError) as failure:
            instances.append(None)
            trials.append(Trial(system=system.name, run=_failing(str(failure))))
        else:
            instances.append(instance)
            trials.append(Trial(system=system.name, run=trial(instance)))
    return figures, trials, instances


def _failing(why: str) -> Callable[[], float | None]:
    def run() -> float | None:
        raise TrialFailed(why)

    return run


def _rate_of(size: int, work: Callable[[], object]) -> Callable[[], float]:
    """Do the work; megabytes per second."""

    def run() -> float:
        begun = time.perf_counter()
        work()
        return size / 1e6 / (time.perf_counter() - begun)

    return run


def _download(instance: Instance, size: int) -> None:
    _expect(size, instance.download())


def _expect(size: int, received: int) -> None:
    if received != size:
        raise TrialFailed(f"{received} of {size} bytes came")


def snapshots(systems: Sequence[System], effort: Effort) -> list[Figure]:
    """Snapshots, clones and restores of 10 MB to 1 GiB and of 50,000 files: on ext4, XFS, in pools; the peers'."""
    able = _offering("copies", systems)
    if not able:
        return []
    ours = volumes.OURS if _of_ours(able) else ()
    peers = [type(system) for system in able if not isinstance(system, Sandboxd)]
    return copies.figures([*ours, *peers], able[0].workplace, largest=effort.file_size >= 256 * MIB)


def beside_neighbours(systems: Sequence[System], effort: Effort) -> list[Figure]:
    """exec of a quiet tenant while another floods, forks, writes, uploads, connects, or sends the worst JSON."""
    figures = []
    for system in _of_ours(systems):
        size = 4 * effort.file_size
        figures += neighbours.of_sandboxd(system.workplace, seconds=effort.seconds, upload_size=size)
    return figures


def _stop_all(instances: Sequence[Instance | None], figures: Sequence[Figure]) -> None:
    """What cannot be stopped is a failure of its system; close() ends it, or says so."""
    for instance, figure in zip(instances, figures, strict=True):
        try:
            if instance is not None:
                instance.stop()
        except (TrialFailed, OSError) as failure:
            figure.failures.append(f"not stopped: {failure}")


ROWS: dict[str, Row] = {
    "life": life,
    "exec": exec_true,
    "run": run_code,
    "parallel": parallel,
    "creates": creates,
    "output": output,
    "files": files,
    "many": many_files,
    "memory": memory,
    "restart": restart,
    "watch": watch,
    "pty": pty,
    "logs": logs,
    "ports": proxied,
    "snapshots": snapshots,
    "neighbours": beside_neighbours,
}
