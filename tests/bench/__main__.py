"""python -m tests.bench [options]: measure, print the table, and write JSON if asked to."""

import argparse
import contextlib
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from sandboxd.config import default_image_dir
from tests.bench import machine
from tests.bench.measure import Figure, TrialFailed
from tests.bench.peers import PEERS
from tests.bench.provision import NotAvailable
from tests.bench.report import Report
from tests.bench.rows import DEFAULT, FULL, QUICK, ROWS, Effort
from tests.bench.sandboxd import Sandboxctl, Sandboxd
from tests.bench.systems import System, Workplace

IMAGE = "base"


def main() -> int:
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: whatever runs is ended, and all is removed
    effort = QUICK if options.quick else FULL if options.full else DEFAULT
    progress = Console(stderr=True)
    facts = {**machine.facts(), "cgroups": machine.enter_private_view()}
    with _workplace() as workplace, contextlib.ExitStack() as opened:
        about = {}
        ready = []
        for system in _all_systems(workplace, with_peers=not options.no_peers, names=options.system):
            progress.print(f"[dim]readying {system.name}[/]", highlight=False)
            opened.callback(system.close)
            try:
                about[system.name] = f"{system.open()} [dim]({system.conditions})[/]"
                ready.append(system)
            except NotAvailable as reason:
                about[system.name] = f"not available: {reason}"
        figures = _measure(ready, effort, options.only or list(ROWS), progress)
    report = Report(machine=facts, systems=about, figures=figures)
    report.show(Console(width=None if sys.stdout.isatty() else 150))
    if options.json:
        report.write(options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", action="store_true", help="about a minute")
    effort.add_argument("--full", action="store_true", help="with 1000 sandboxes alive at once, and files of 1 GiB")
    parser.add_argument("--only", metavar="ROW", choices=ROWS, action="append", help=f"of: {', '.join(ROWS)}")
    parser.add_argument("--system", metavar="NAME", action="append", help="measure only these systems")
    parser.add_argument("--no-peers", action="store_true", help="sandboxd alone")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    return parser


def _all_systems(workplace: Workplace, *, with_peers: bool, names: Sequence[str] | None) -> Iterator[System]:
    """Each is opened before the next one is asked for, since sandboxctl speaks to our own daemon."""
    ours = Sandboxd(workplace)
    peers = [kind(workplace) for kind in PEERS] if with_peers else []
    for system in (ours, Sandboxctl(workplace, ours), *peers):
        if names is None or system.name in names:
            yield system


def _measure(systems: Sequence[System], effort: Effort, rows: Sequence[str], progress: Console) -> list[Figure]:
    figures: list[Figure] = []
    for row in rows:
        progress.print(f"[dim]measuring {row}[/]", highlight=False)
        try:
            figures += ROWS[row](systems, effort)
        except (TrialFailed, OSError) as failure:  # outside any trial: the row is lost, the others are not
            figures.append(Figure(row=row, system="", unit="", failures=[str(failure)]))
    order = list(dict.fromkeys(figure.row for figure in figures))
    return sorted(figures, key=lambda figure: order.index(figure.row))


@contextlib.contextmanager
def _workplace() -> Iterator[Workplace]:
    image_dir = default_image_dir()
    names = image_dir / "names.json"
    digest = json.loads(names.read_text()).get(IMAGE) if names.exists() else None
    if digest is None:
        sys.exit(f'bench: there is no image "{IMAGE}" in {image_dir}: run `make setup`')
    scratch = Path(tempfile.mkdtemp(prefix="sandboxd-bench-"))
    try:
        yield Workplace(scratch=scratch, rootfs=image_dir / digest / "rootfs", image_dir=image_dir)
    finally:
        machine.unmount_below(scratch)
        shutil.rmtree(scratch)


if __name__ == "__main__":
    sys.exit(main())
