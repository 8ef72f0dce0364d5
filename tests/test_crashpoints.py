"""The numbered places are all there are, and each is somewhere."""

import ast
from collections.abc import Iterator
from pathlib import Path

from sandboxd.crashpoints import POINTS

PACKAGE = Path(__file__).resolve().parents[1] / "sandboxd"
# Their names are made of what has ended.
COMPOSED = {"stopped:confirmed", "exited:confirmed"}


def _passed(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "crash_point":
            (argument,) = node.args
            if isinstance(argument, ast.Constant):
                yield str(argument.value)


def test_every_crash_point_is_numbered_and_is_passed_somewhere() -> None:
    passed = [point for module in PACKAGE.rglob("*.py") for point in _passed(module)]
    assert {*passed, *COMPOSED} == set(POINTS)
