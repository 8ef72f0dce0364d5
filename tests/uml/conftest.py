"""Joins the two halves of replay.py to pytest: this file is read outside and inside the machine."""

import os
from collections.abc import Generator

import pytest

from tests.uml.machine import missing_packages, unfit_processor
from tests.uml.replay import INSIDE, InsideItem, InsideRun, send_report

RUN = pytest.StashKey[InsideRun]()

if "SANDBOXD_UML" in os.environ:

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        item: pytest.Item,
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        send_report(item.config, report)
        return report

else:
    # Last, so that what -k and -m leave out is not run inside either.
    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
        run = config.stash.setdefault(RUN, InsideRun(config))
        for index, item in enumerate(items):
            if not INSIDE.isdisjoint(item.path.parents):
                items[index] = InsideItem.instead_of(item, run)
                run.chosen.append(item.nodeid)
        config.add_cleanup(run.close)

    def pytest_runtest_setup(item: pytest.Item) -> None:
        if not item.get_closest_marker("needs_uml"):
            return
        # On a developer's machine a missing tool skips; in CI, where all must have run, Machine() fails. But there is
        # nothing to be done about the processor. All are skipped at the same line, so that the reason is told once.
        if missing := missing_packages():
            reason = None if "CI" in os.environ else f"needs {' '.join(missing)}"
        else:
            reason = unfit_processor()
        if reason is not None:
            pytest.skip(reason)
