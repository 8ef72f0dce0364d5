"""Snapshots, clones and restores by size: ours on several file systems, the peers', and `cp -a` beside them.

Every trial begins with a sandbox that has written all of the files itself: what is copied is what the row says.
"""

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rich.console import Console

from tests.bench.measure import Figure, TrialFailed
from tests.bench.provision import NotAvailable
from tests.bench.sandboxd import SandboxdInstance
from tests.bench.systems import Instance, System, Workplace
from tests.bench.volumes import opened

TIMES = 3
# Seconds after which a system begins no further trial of one size.
LONGEST = 20.0
DIRECTORY = "/home/user/files"
SIZES = {
    "10 MB": "head -c 10000000 /dev/urandom > data",
    "100 MB": "head -c 100000000 /dev/urandom > data",
    "50k files": "python3 -c 'import os\nfor d in range(500):\n os.mkdir(str(d))\n"
    ' for n in range(100): open(f"{d}/{n}","w").write("x"*100)\'',
    "1 GiB": "head -c 1073741824 /dev/urandom > data",
}
STEPS = ("snapshot", "clone", "clone to command", "restore")


def figures(kinds: Sequence[type[System]], workplace: Workplace, *, largest: bool) -> list[Figure]:
    """For each kind a system and a disk of its own. `largest`: with the last of SIZES, too."""
    sizes = list(SIZES) if largest else list(SIZES)[:-1]
    found = []
    for kind in kinds:
        try:
            with opened(kind, workplace) as system:
                found += _of_sizes(system, sizes)
        except NotAvailable as reason:
            row = f"snapshot {sizes[0]}"
            found.append(Figure(row=row, system=kind.name, unit="ms", note=f"not available: {reason}"))
    order = [f"{step} {size}" for size in sizes for step in STEPS]
    return sorted(found, key=lambda figure: order.index(figure.row))


def _of_sizes(system: System, sizes: Sequence[str]) -> list[Figure]:
    found = []
    for size in sizes:
        Console(stderr=True).print(f"[dim]  {system.name}, {size}[/]", highlight=False)
        found += _of_size(system, size)
    return found


def _of_size(system: System, size: str) -> list[Figure]:
    """One system's steps. What fails is told in the row of its snapshots; the other sizes are tried all the same."""
    steps = {step: Figure(row=f"{step} {size}", system=system.name, unit="ms") for step in STEPS}
    copied = Figure(row=f"snapshot {size}", system=f"cp -a, {system.name}", unit="ms")
    try:
        origin = system.origin()
        try:
            # Written out beforehand: what is measured is the copy, not the disk catching up.
            origin.shell(f"mkdir -p {DIRECTORY} && cd {DIRECTORY} && {SIZES[size]}; sync")
            _repeat(partial(_trial, system, origin, steps))
            if isinstance(origin, SandboxdInstance):
                _repeat(partial(_copy, origin, copied))
        finally:
            origin.stop()
    except (TrialFailed, OSError) as failure:
        steps["snapshot"].failures.append(str(failure)[:200] or type(failure).__name__)
    return [figure for figure in (*steps.values(), copied) if figure.values or figure.failures]


def _repeat(trial: Callable[[], None]) -> None:
    until = time.monotonic() + LONGEST
    for number in range(TIMES):
        if number == 0 or time.monotonic() < until:
            trial()


def _trial(system: System, origin: Instance, steps: dict[str, Figure]) -> None:
    snapshot = _timed(steps["snapshot"], origin.snapshot)
    clone = _timed(steps["clone"], origin.clone)
    _timed(steps["clone to command"], clone.true)
    _timed(steps["restore"], partial(clone.restore, snapshot))
    clone.stop()
    system.forget(snapshot)


def _copy(origin: SandboxdInstance, figure: Figure) -> None:
    target = origin.volume / "copied"
    try:
        _timed(figure, partial(subprocess.run, ["cp", "-a", origin.written / DIRECTORY[1:], target], check=True))
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _timed(figure: Figure, step: Callable[[], Any]) -> Any:
    begun = time.perf_counter()
    result = step()
    figure.values.append((time.perf_counter() - begun) * 1000)
    return result
