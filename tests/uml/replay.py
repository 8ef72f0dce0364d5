"""Tests that run inside the machine, reported outside as if they ran here.

Outside, pytest collects tests/uml/inside like any other tests, so that names, -k and -m work. Then each item is
exchanged for an InsideItem. The first that runs boots one machine, which runs pytest over all the chosen ones; its
reports come back one by one, in pytest's own serialized form, and each InsideItem waits for its own.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sandboxd.paths import default_image_dir
from tests.uml.machine import Machine, UmlError

# The tests to run inside, and samples of every outcome with which test_replay.py tests this file.
INSIDE = frozenset(Path(__file__).with_name(name) for name in ("inside", "samples"))
# The longest silence: a boot, or one test. Inside, pytest's own limit for a test is shorter.
SILENCE_LIMIT = 360.0
# What the tests inside inherit of our environment.
PASSED_ON = ("CI", "PYTHONPATH")


class InsideFailure(Exception):
    """A test failed inside. Carries what pytest inside had to say about it."""

    def __init__(self, representation: Any) -> None:
        super().__init__(str(representation))
        self.representation = representation


class InsideRun:
    """The one machine of a pytest session, and the reports that have come out of it.

    Owns: the machine, from the first report asked for until close().
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._machine: Machine | None = None
        self._reports: dict[str, list[pytest.TestReport]] = {}
        self._stuck = ""
        self.chosen: list[str] = []

    def reports_of(self, nodeid: str) -> list[pytest.TestReport]:
        """The reports of a test's setup, call and teardown once it is over. UmlError if they never come."""
        if self._machine is None:
            self._machine = self._boot()
        while not any(report.when == "teardown" for report in self._reports.get(nodeid, ())):
            line = self._next_line()
            if line is None:
                raise UmlError(f"cannot find a result of {nodeid}\n{self._machine.tail()}")
            self._store(json.loads(line))
        if nodeid == self.chosen[-1]:
            self._wait_for_halt()
        return self._reports[nodeid]

    def _next_line(self) -> str | None:
        """Raises UmlError when the machine is stuck, and then again at once for every test that is still to come."""
        if self._stuck:
            raise UmlError(self._stuck)
        assert self._machine is not None
        try:
            return self._machine.next_line(timeout=SILENCE_LIMIT)
        except UmlError as error:
            self._stuck = str(error)
            self._machine.close()
            raise

    def _wait_for_halt(self) -> None:
        """After the last test, so that the next one on this host does not meet a machine that is going."""
        while self._next_line() is not None:
            pass
        self.close()

    def close(self) -> None:
        if self._machine is not None:
            self._machine.close()

    def _boot(self) -> Machine:
        """A machine that runs pytest over the chosen tests, with a copy of this host's images if we may read them."""
        # Imports are slow inside: leave out the plugins that no test there needs.
        without = [f"-pno:{plugin}" for plugin in ("anyio", "cacheprovider", "schemathesis", "xdist")]
        options = (*without, "--color=no", f"--rootdir={self._config.rootpath}")
        # An existing cache may be read, never written: the host's files are read-only inside.
        env = {"PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis"}
        env |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        images = default_image_dir() if os.geteuid() == 0 and default_image_dir().exists() else None
        return Machine(
            [sys.executable, "-m", "pytest", *options, *self.chosen], env=env, copied=images, modules=["loop"]
        )

    def _store(self, data: dict[str, Any]) -> None:
        report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
        self._reports.setdefault(report.nodeid, []).append(report)


class InsideItem(pytest.Item):
    """Stands for a test inside: it passes, fails, is skipped and prints as the test did there."""

    def __init__(self, *, run: InsideRun, **rest: Any) -> None:
        super().__init__(**rest)
        self._run = run

    @classmethod
    def instead_of(cls, item: pytest.Item, run: InsideRun) -> "InsideItem":
        # Without the item's own marks: -m has chosen already, and plugins would act on them (trio, xfail…).
        assert item.parent is not None
        new: InsideItem = cls.from_parent(item.parent, name=item.name, run=run)
        # The limits are the machine's; and the first item's wait includes the boot.
        new.add_marker(pytest.mark.timeout(0))
        new.add_marker(pytest.mark.needs_uml)
        return new

    def runtest(self) -> None:
        for report in self._run.reports_of(self.nodeid):
            for title, text in report.sections:
                self.add_report_section("call", title.removeprefix("Captured ").rpartition(" ")[0], text)
            if report.failed:
                raise InsideFailure(report.longrepr)
            if report.skipped:
                _raise_skip(report)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, InsideFailure):
            return excinfo.value.representation
        if isinstance(excinfo.value, UmlError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, f"{self.name} (inside User-Mode Linux)"


def _raise_skip(report: pytest.TestReport) -> None:
    reason = getattr(report, "wasxfail", None)
    if reason is not None:
        pytest.xfail(reason)
    # A (path, line, reason) triple, which is a list after JSON.
    assert isinstance(report.longrepr, Sequence)
    pytest.skip(report.longrepr[2].removeprefix("Skipped: "))


def send_report(config: pytest.Config, report: pytest.TestReport) -> None:
    """Inside: pass a report on to the outside, as one line."""
    data = config.hook.pytest_report_to_serializable(config=config, report=report)
    line = json.dumps(data) + "\n"
    with open(os.environ["SANDBOXD_UML_CHANNEL"], "wb", buffering=0) as channel:
        channel.write(line.encode())
