"""The numbered places are all there are, and each is somewhere."""

import ast
from collections.abc import Iterator
from pathlib import Path

from sandboxd.crashpoints import POINTS
from sandboxd.service.resources import WALKS
from tests.support.crashing import KINDS, RESOURCE_POINTS

PACKAGE = Path(__file__).resolve().parents[1] / "sandboxd"
# Their names are made of what has ended.
COMPOSED = {"stopped:confirmed", "exited:confirmed"}


def _calls(function: str) -> Iterator[ast.Call]:
    """Of that function or method, anywhere in the package."""
    for module in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call) and function in {getattr(node.func, name, "") for name in ("id", "attr")}:
                yield node


def test_every_crash_point_is_numbered_and_is_passed_somewhere() -> None:
    arguments = [call.args[0] for call in _calls("crash_point")]
    passed = [argument.value for argument in arguments if isinstance(argument, ast.Constant)]
    assert {*passed, *COMPOSED} == set(POINTS)


def test_every_walk_over_the_resources_is_named_and_walked_somewhere() -> None:
    calls = [call for function in ("take", "release") for call in _calls(function)]
    walks = {arg.value for call in calls for arg in call.args[1:2] if isinstance(arg, ast.Constant)}
    assert walks | {"sweep"} == set(WALKS)


def test_the_kinds_of_resources_are_known_by_different_names() -> None:
    """Behind the same walk's name two of them would be one crash point."""
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 4
    assert not set(RESOURCE_POINTS) & set(POINTS)
