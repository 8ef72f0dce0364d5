"""What `make test` makes of tests that fail: run once more, alone, and forgiven if they are few. On small trees."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import CHECKOUT

PASSES = "def test_passes(): pass\n"
FAILS = "def test_fails(): assert 'always' == 'never'\n"
# They leave a mark on their first run, and beside others they find none.
FLAKY = """
import pytest
from pathlib import Path
@pytest.mark.parametrize("number", range({count}))
def test_flaky(number):
    mark = Path(__file__).with_name(f"{{number}}.mark")
    seen = mark.exists()
    mark.touch()
    assert seen, "for the first time"
"""
FLAKY_AFTERWARDS = """
import pytest
from pathlib import Path
@pytest.fixture
def resource():
    yield
    mark = Path(__file__).with_name("mark")
    seen = mark.exists()
    mark.touch()
    assert seen
def test_flaky_afterwards(resource): pass
"""
KILLED_ONCE = """
import os
from pathlib import Path
def test_killed():
    mark = Path(__file__).with_name("mark")
    seen = mark.exists()
    mark.touch()
    if not seen:
        os._exit(3)
"""


@pytest.fixture
def run(tmp_path: Path):
    def run(*options: str, **files: str) -> tuple[int, list[str]]:
        """pytest's status and output, for test files with these contents."""
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        for name, content in files.items():
            (tmp_path / f"test_{name}.py").write_text(content)
        words = ("-p", "tests.support.flaky", "-p", "no:cacheprovider", "--rerun-alone", *options)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *words],
            cwd=tmp_path,
            # Without the plugins that are there and take seconds to import.
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout.splitlines()

    return run


def closing(lines: list[str]) -> str:
    """The last line, without its time."""
    return re.sub(r" in .*", "", lines[-1].strip("= "))


def flaky(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("flaky: ")]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_passes_alone_does_not_fail_the_run(run, workers: str) -> None:
    status, lines = run("-p", "xdist", f"-n{workers}", passes=PASSES, flaky=FLAKY.format(count=3))
    assert (status, closing(lines)) == (0, "4 passed, 3 flaky")
    assert sorted(flaky(lines)) == [f"flaky: test_flaky.py::test_flaky[{number}]" for number in range(3)]
    assert sum("AssertionError: for the first time" in line for line in lines) >= 3
    assert not any(line.startswith("FAILED") for line in lines)


def test_what_fails_again_fails_the_run(run) -> None:
    status, lines = run(passes=PASSES, fails=FAILS, flaky=FLAKY.format(count=1))
    assert (status, closing(lines)) == (1, "1 failed, 2 passed, 1 flaky")
    assert flaky(lines) == ["flaky: test_flaky.py::test_flaky[0]"]
    assert [line.split()[1] for line in lines if line.startswith("FAILED")] == ["test_fails.py::test_fails"]


def test_four_flaky_ones_are_too_many(run) -> None:
    status, lines = run(passes=PASSES, flaky=FLAKY.format(count=4))
    assert (status, closing(lines)) == (1, "4 failed, 1 passed")
    assert len(flaky(lines)) == 4
    assert "more than 3 tests are flaky: they count as failed" in lines


def test_one_that_failed_when_it_was_cleaned_up_after_is_counted_once(run) -> None:
    status, lines = run(passes=PASSES, flaky=FLAKY_AFTERWARDS)
    assert (status, closing(lines)) == (0, "2 passed, 1 flaky")


def test_one_that_took_its_process_along_is_run_again_too(run) -> None:
    status, lines = run("-p", "xdist", "-n2", passes=PASSES, killed=KILLED_ONCE)
    assert (status, closing(lines)) == (0, "2 passed, 1 flaky")
    assert flaky(lines) == ["flaky: test_killed.py::test_killed"]


def test_so_many_are_not_run_again(run) -> None:
    status, lines = run(flaky=FLAKY.format(count=21))
    assert (status, closing(lines)) == (1, "21 failed")
    assert not any("once more" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "files", "status", "last"),
    [
        ([], {"passes": PASSES}, 0, "1 passed"),
        ([], {"fails": FAILS}, 1, "1 failed"),
        ([], {"broken": "import no_such_module"}, 2, "1 error"),
        (["-k", "nothing"], {"passes": PASSES}, 5, "1 deselected"),
        (["-p", "xdist", "-n2", "-k", "nothing"], {"passes": PASSES}, 5, "no tests ran"),
    ],
    ids=["passes", "fails", "cannot be collected", "no test", "no test in many processes"],
)
def test_the_rest_is_as_without(run, options: list[str], files: dict[str, str], status: int, last: str) -> None:
    seen, lines = run(*options, **files)
    assert (seen, closing(lines)) == (status, last)
    assert flaky(lines) == []
