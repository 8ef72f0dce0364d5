"""What failed is run once more at the end, alone, and what then passes is called flaky.

    pytest -p tests.support.flaky --rerun-alone        as `make test` does

A test that fails only beside hundreds of others on a busy machine tells of itself, and is to be mended next; but it
should not cost the whole run. So each test that failed is run again when all others are done, one after the other in
one process of their own. What passes now counts as passed, is printed as `flaky: NAME` above the closing line and is
counted there too. Up to MOST_FLAKY such tests do not fail the run: more of them say that something is wrong, and stay
failures. Nothing is run again where so many failed (MOST_RERUN) that it is not chance.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

MOST_FLAKY = 3
MOST_RERUN = 20


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("flaky")
    group.addoption("--rerun-alone", action="store_true", help="run what failed once more at the end, alone")
    group.addoption("--outcomes", type=Path, help="write the names of what passed and what failed to this file")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # one of pytest-xdist's: the process that started it does all this
        return
    if config.getoption("outcomes") is not None:
        config.pluginmanager.register(Outcomes(config.getoption("outcomes")))
    if config.getoption("rerun_alone"):
        config.pluginmanager.register(Rerun(config))


class Outcomes:
    """Tells the run that started this one how its tests ended."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._passed: set[str] = set()
        self._failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.add(report.nodeid)
        elif report.passed and report.when == "call":
            self._passed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self._file.write_text(json.dumps(sorted(self._passed - self._failed)))


class Rerun:
    """The second run of what failed in this one. It changes what pytest's terminal reporter will sum up."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._flaky: dict[str, pytest.TestReport] = {}

    @property
    def _stats(self) -> dict[str, list[Any]]:
        """Reports by what became of them, as the closing lines count them."""
        return self._reporter.stats

    @property
    def _reporter(self) -> Any:
        return self._config.pluginmanager.get_plugin("terminalreporter")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Before the terminal reporter's summary, which wraps this, and when pytest-xdist's processes have ended."""
        if session.exitstatus != pytest.ExitCode.TESTS_FAILED:
            return  # all well, interrupted, or nothing was run
        failed = self._failed()
        if not 0 < len(failed) <= MOST_RERUN:
            return
        passed_alone = self._run_alone(failed)
        self._flaky = {name: report for name, report in failed.items() if name in passed_alone}
        if self._flaky and len(self._flaky) <= MOST_FLAKY:
            self._forgive()
            if not self._stats.get("failed") and not self._stats.get("error"):
                session.exitstatus = pytest.ExitCode.OK

    def _failed(self) -> dict[str, pytest.TestReport]:
        """The first failure of each test that failed; what could not even be collected is no test."""
        reports = (*self._stats.get("failed", ()), *self._stats.get("error", ()))
        return {each.nodeid: each for each in reversed(reports) if isinstance(each, pytest.TestReport)}

    def _run_alone(self, names: Iterable[str]) -> frozenset[str]:
        """Run these tests one after the other in a process of their own, and show it; those that passed."""
        self._reporter.write_sep("=", "what failed, once more and alone")
        directory = self._config.rootpath
        outcomes = Path(self._config._tmp_path_factory.mktemp("rerun")) / "passed.json"
        plugins = ("-p", "no:cacheprovider", "-p", __name__, "-p", "no:xdist")
        options = (f"--rootdir={directory}", f"--outcomes={outcomes}", "-q", "--no-summary")
        command = (sys.executable, "-m", "pytest", *plugins, *options, *names)
        with subprocess.Popen(
            command, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            assert process.stdout is not None
            # pytest itself has descriptor 1 redirected while it captures.
            for line in process.stdout:
                self._reporter.write_line(line.decode(errors="replace").rstrip("\n"))
        # Without the file it did not come to its end; then nothing has passed.
        return frozenset(json.loads(outcomes.read_text()) if outcomes.exists() else ())

    def _forgive(self) -> None:
        """Count them as passed, and as flaky."""
        for kind in ("failed", "error"):
            kept = [each for each in self._stats.get(kind, ()) if each.nodeid not in self._flaky]
            self._stats.pop(kind, None)
            if kept:
                self._stats[kind] = kept
        passed = self._stats.setdefault("passed", [])
        # One that failed only when it was cleaned up after has passed already.
        already = {each.nodeid for each in passed}
        passed += [report for name, report in self._flaky.items() if name not in already]
        self._stats["flaky"] = list(self._flaky.values())
        self._reporter._set_main_color()  # which is also where it learns that there is one more kind

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self) -> Iterator[None]:
        """Their failures, since one has to know them; and, when everything else is told, their names."""
        forgiven = bool(self._stats.get("flaky"))
        if forgiven:
            self._reporter.write_sep("=", "FLAKY")
            for name, report in self._flaky.items():
                self._reporter.write_sep("_", name)
                self._reporter.write_line(report.longreprtext)
        yield
        for name in self._flaky:
            self._reporter.write_line(f"flaky: {name}")
        if self._flaky and not forgiven:
            self._reporter.write_line(f"more than {MOST_FLAKY} tests are flaky: they count as failed")
