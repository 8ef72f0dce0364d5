"""What is reported outside is what happened inside, for every outcome a test can have."""

import subprocess
import sys
from xml.etree import ElementTree

import pytest

from tests.uml.machine import CHECKOUT

pytestmark = pytest.mark.needs_uml


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ElementTree.Element]:
    """The outcomes of samples/outcomes.py as a JUnit report says them, by test name."""
    report = tmp_path_factory.mktemp("replay") / "report.xml"
    options = ("-p", "no:cacheprovider", f"--junit-xml={report}", "-k", "not left_out")
    command = (sys.executable, "-m", "pytest", *options, "tests/uml/samples/outcomes.py")
    subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, check=False)
    return {case.attrib["name"]: case for case in ElementTree.parse(report).getroot().iter("testcase")}


def outcome(case: ElementTree.Element) -> tuple[str, str]:
    """passed, failure, error or skipped, and the text that goes with it."""
    for kind in ("failure", "error", "skipped"):
        if (found := case.find(kind)) is not None:
            return kind, found.attrib.get("message", "") + (found.text or "")
    return "passed", ""


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("test_passes", "passed", ""),
        ("test_fails", "failure", "assert answer == 42"),
        ("test_passes_with_one_parameter[one]", "passed", ""),
        ("test_passes_with_one_parameter[two words]", "failure", "'two words' == 'one'"),
        ("test_skips", "skipped", "for a reason"),
        ("test_fails_as_expected", "skipped", "a known fault"),
        ("test_passes_unexpectedly", "failure", "XPASS(strict)"),
        ("test_errs_before", "failure", "LookupError: broken before"),
        ("test_errs_after", "failure", "LookupError: broken after"),
        ("test_runs_under_trio", "passed", ""),
        ("test_takes_the_machine_down", "failure", "Kernel panic"),
        ("test_is_never_reached", "failure", "cannot find a result"),
    ],
)
def test_an_outcome_inside_is_the_outcome_outside(
    reported: dict[str, ElementTree.Element], name: str, kind: str, text: str
) -> None:
    found, message = outcome(reported[name])
    assert found == kind
    assert text in message


def test_what_was_not_chosen_did_not_run(reported: dict[str, ElementTree.Element]) -> None:
    assert "test_left_out" not in reported


def test_what_a_failed_test_printed_is_shown(reported: dict[str, ElementTree.Element]) -> None:
    assert "said before failing" in "".join(reported["test_fails"].itertext())
