"""metrics and top: what sandboxes use."""

import sys
from dataclasses import dataclass
from typing import Any

import click
import trio

from sandboxd.cli.output import json_option, make_table, print_facts, print_json, print_table
from sandboxd.cli.runner import SANDBOX, with_client
from sandboxd.cli.values import DURATION, show_age, show_size
from sandboxd.client import ApiError, AsyncClient, Metrics, Sandbox

MEGABYTE = 1_000_000
ASKED_AT_ONCE = 8
COLUMNS = ("ID", "NAME", "IMAGE", "CPU %>", "MEMORY>", "MEM %>", "PIDS>", "NET IN>", "NET OUT>", "AGE>")


@click.command()
@click.argument("sandbox", type=SANDBOX)
@json_option
def metrics(sandbox: str, as_json: bool) -> None:
    """Show what a sandbox uses now; "-" is what this host does not count."""
    measured = with_client(lambda client: client.metrics(sandbox))
    if as_json:
        print_json(measured.raw)
        return
    print_facts(
        [
            ("cpu", f"{_percent(measured.cpu_pct)} %"),
            ("memory", f"{_memory(measured)} ({_percent(measured.mem_pct)} %)"),
            ("processes", measured.pids),
            ("network in", show_size(measured.net_rx_bytes)),
            ("network out", show_size(measured.net_tx_bytes)),
            ("uptime", f"{measured.uptime_s or 0:.1f} s"),
            *((f"limit {name}", value) for name, value in measured.limits.items()),
            *_counters("cgroup", measured.cgroup or {}),
        ]
    )


def _counters(prefix: str, values: Any) -> list[tuple[str, object]]:
    """Nested counters as dotted names."""
    if not isinstance(values, dict):
        return [(prefix, values)]
    return [fact for name, value in values.items() for fact in _counters(f"{prefix}.{name}", value)]


@dataclass(frozen=True, slots=True)
class Usage:
    sandbox: Sandbox
    metrics: Metrics


@click.command()
@click.option("-d", "--delay", type=DURATION, default="2s", show_default=True, help="Time between two looks.")
@click.option("--once", is_flag=True, help="Look once; so it does when stdout is not a terminal.")
@json_option
def top(delay: int, once: bool, as_json: bool) -> None:
    """Watch what all sandboxes use, the busiest first. Ctrl-C ends it."""
    if as_json:
        found = with_client(measure_all)
        print_json([{"sandbox": usage.sandbox.raw, "metrics": usage.metrics.raw} for usage in found])
    elif once or not sys.stdout.isatty():
        print_table(COLUMNS, [_row(usage) for usage in with_client(measure_all)])
    else:
        with_client(lambda client: _watch(client, delay / 1000))


async def _watch(client: AsyncClient, delay: float) -> None:
    from rich.live import Live

    with Live(auto_refresh=False, screen=True) as live:
        while True:
            rows = [_row(usage) for usage in await measure_all(client)]
            live.update(make_table(COLUMNS, rows), refresh=True)
            await trio.sleep(delay)


async def measure_all(client: AsyncClient) -> list[Usage]:
    """All running sandboxes, the busiest first."""
    found: list[Usage] = []
    limit = trio.CapacityLimiter(ASKED_AT_ONCE)

    async def measure(sandbox: Sandbox) -> None:
        async with limit:
            try:
                found.append(Usage(sandbox, await client.metrics(sandbox.id)))
            except ApiError as error:
                if error.status < 500:  # it ended meanwhile
                    return
                raise

    async with trio.open_nursery() as nursery:
        async for sandbox in client.sandboxes(status="running"):
            nursery.start_soon(measure, sandbox)
    return sorted(found, key=lambda usage: (-(usage.metrics.cpu_pct or 0), -(usage.metrics.mem_used_mb or 0)))


def _row(usage: Usage) -> tuple[object, ...]:
    measured = usage.metrics
    return (
        usage.sandbox.id,
        usage.sandbox.name or "-",
        usage.sandbox.image,
        _percent(measured.cpu_pct),
        _memory(measured),
        _percent(measured.mem_pct),
        "-" if measured.pids is None else measured.pids,
        show_size(measured.net_rx_bytes),
        show_size(measured.net_tx_bytes),
        show_age(usage.sandbox.created_at),
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _memory(measured: Metrics) -> str:
    return show_size(None if measured.mem_used_mb is None else measured.mem_used_mb * MEGABYTE)
