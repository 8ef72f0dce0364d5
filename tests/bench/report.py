"""The aims, and the report: a table for people, JSON for programs."""

import json
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.measure import Figure

LONGEST_FAILURE = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What a row of ours should reach: its median, or for rates the least, against a bound."""

    row: str
    bound: float
    unit: str
    system: str = "sandboxd"

    def met(self, figure: Figure) -> bool:
        compare = operator.ge if figure.higher_is_better else operator.le
        return compare(figure.percentile(50), self.bound) and not figure.failures


AIMS = (
    Aim(row="life", bound=10, unit="ms"),
    Aim(row="exec", bound=1.5, unit="ms"),
    Aim(row="run", bound=15, unit="ms"),
    Aim(row="creates ×16", bound=120, unit="/s"),
    Aim(row="idle ×10", bound=0.6, unit="MB"),
    Aim(row="idle ×100", bound=0.6, unit="MB"),
    Aim(row="idle ×500", bound=0.6, unit="MB"),
    Aim(row="idle ×1000", bound=0.6, unit="MB"),
    Aim(row="upload", bound=250, unit="MB/s"),
    Aim(row="download", bound=250, unit="MB/s"),
    Aim(row="restart ×200", bound=2000, unit="ms"),
    Aim(row="pty echo", bound=4, unit="ms"),
    Aim(row="watch raw", bound=20, unit="ms"),
    Aim(row="watch changes", bound=20, unit="ms"),
    Aim(row="clone 1 GiB", bound=50, unit="ms", system="sandboxd btrfs pool"),
    Aim(row="clone to command 1 GiB", bound=15, unit="ms", system="sandboxd btrfs pool"),
)


def aim_for(figure: Figure) -> Aim | None:
    """Aims are ours; peers have none."""
    return next((aim for aim in AIMS if (aim.row, aim.system) == (figure.row, figure.system)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    machine: Mapping[str, str]
    systems: Mapping[str, str]
    """name → version and conditions, or why it is not available"""
    figures: Sequence[Figure]

    def show(self, console: Console) -> None:
        for name, value in self.machine.items():
            console.print(f"[dim]{name:>14}[/]  {value}", highlight=False)
        console.print()
        for name, about in self.systems.items():
            console.print(f"[dim]{name:>14}[/]  {about}", highlight=False, markup=True)
        console.print(_table(self.figures))
        self._show_verdict(console)

    def _show_verdict(self, console: Console) -> None:
        judged = [(figure, aim) for figure in self.figures if (aim := aim_for(figure))]
        missed = [figure.row for figure, aim in judged if not aim.met(figure)]
        console.print(f"\naims met: {len(judged) - len(missed)} of {len(judged)}", highlight=False)
        if missed:
            console.print(f"missed: {', '.join(missed)}", highlight=False)

    def write(self, path: Path) -> None:
        content = {
            "machine": self.machine,
            "systems": self.systems,
            "figures": [_facts(figure) for figure in self.figures],
        }
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _table(figures: Sequence[Figure]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("row")
    table.add_column("system")
    for column in ("p50", "p95", "p99", "best", "n", "failed"):
        table.add_column(column, justify="right")
    table.add_column("")
    last = None
    for figure in figures:
        if last is not None and figure.row != last:
            table.add_section()
        numbers = [figure.percentile(50), figure.percentile(95), figure.percentile(99), figure.best]
        failed = f"[red]{len(figure.failures)}[/]" if figure.failures else "0"
        label = "" if figure.row == last else f"[bold]{figure.row}[/] {figure.unit}"
        table.add_row(label, figure.system, *map(_number, numbers), str(len(figure.values)), failed, _remarks(figure))
        last = figure.row
    return table


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _remarks(figure: Figure) -> str:
    remarks = []
    if aim := aim_for(figure):
        sign, verdict = ("≥" if figure.higher_is_better else "≤"), aim.met(figure)
        remarks.append(f"aim {sign} {aim.bound:g}: {'[green]met[/]' if verdict else '[red]missed[/]'}")
    if figure.note:
        remarks.append(figure.note)
    if figure.failures:
        remarks.append(f"[red]{figure.failures[-1][:LONGEST_FAILURE]}[/]")
    return "; ".join(remarks)


def _facts(figure: Figure) -> dict[str, object]:
    aim = aim_for(figure)
    numbers = {f"p{percent}": figure.percentile(percent) for percent in (50, 95, 99)} | {"best": figure.best}
    return {
        "row": figure.row,
        "system": figure.system,
        "unit": figure.unit,
        "n": len(figure.values),
        **{name: None if math.isnan(value) else round(value, 4) for name, value in numbers.items()},
        "failures": figure.failures,
        "note": figure.note,
        "aim": aim and {"bound": aim.bound, "met": aim.met(figure)},
    }
