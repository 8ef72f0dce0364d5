"""The texts are what kernels 6.1 and 6.18 print."""

from pathlib import Path

import pytest

from sandboxd.kernel.cgroup_statistics import (
    IoCounters,
    MemoryEvents,
    Pressure,
    parse_io,
    parse_pressure,
    read_statistics,
)

CPU_STAT = "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n"


def test_io_is_summed_over_devices_and_idle_devices_are_skipped() -> None:
    text = (
        "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n"
        "8:0 rbytes=90430464 wbytes=299008000 rios=8950 wios=1252 dbytes=50331648 dios=3021\n"
        "254:0 7:0 \n"
    )
    assert parse_io(text) == IoCounters(91889664, 613781504, 9142, 1605)
    assert parse_io("") == IoCounters(0, 0, 0, 0)


def test_pressure_with_and_without_its_full_line() -> None:
    some = "some avg10=1.25 avg60=0.00 avg300=0.00 total=4711\n"
    assert parse_pressure(some) == Pressure(1.25, 4711, 0.0, 0)
    full = "full avg10=0.75 avg60=0.00 avg300=0.00 total=815\n"
    assert parse_pressure(some + full) == Pressure(1.25, 4711, 0.75, 815)


def test_a_bare_cgroup_has_cpu_time_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text(CPU_STAT)
    counted = read_statistics(tmp_path)
    assert (counted.cpu_usec, counted.cpu_user_usec, counted.cpu_system_usec) == (1500, 1000, 500)
    others = {name: getattr(counted, name) for name in counted.__slots__ if not name.startswith("cpu_")}
    assert set(others.values()) == {None}
    assert counted.memory_working_set is None


def test_every_file_finds_its_field(tmp_path: Path) -> None:
    files = {
        "cpu.stat": CPU_STAT + "nr_periods 9\nnr_throttled 3\nthrottled_usec 77\n",
        "memory.current": "5000\n",
        "memory.peak": "6000\n",
        "memory.stat": "anon 3000\nfile 2000\ninactive_file 1500\n",
        "memory.events": "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 0\n",
        "memory.swap.current": "42\n",
        "pids.current": "7\n",
        "pids.events": "max 5\n",
        "io.stat": "98:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n",
        "memory.pressure": "some avg10=0.50 avg60=0.00 avg300=0.00 total=1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    counted = read_statistics(tmp_path)
    assert (counted.cpu_throttled_periods, counted.cpu_throttled_usec) == (3, 77)
    assert (counted.memory_current, counted.memory_peak, counted.swap_current) == (5000, 6000, 42)
    assert (counted.memory_anon, counted.memory_file, counted.memory_inactive_file) == (3000, 2000, 1500)
    assert counted.memory_working_set == 3500
    assert counted.memory_events == MemoryEvents(high=1, max=2, oom=3, oom_kill=4)
    assert (counted.pids_current, counted.pids_refused) == (7, 5)
    assert counted.io == IoCounters(1, 2, 3, 4)
    assert counted.memory_pressure == Pressure(0.5, 1, 0.0, 0)
    assert counted.cpu_pressure is None


def test_a_cgroup_that_is_gone_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_statistics(tmp_path / "gone")
