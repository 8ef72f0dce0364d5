"""The vocabulary of errors."""

import re
from collections.abc import Iterator

import pytest
import trio

from sandboxd import errors
from sandboxd.errors import Conflict, LaunchFailed, NotFound, RequestError, SandboxdError, ungrouped


def classes() -> Iterator[type[SandboxdError]]:
    return (each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, SandboxdError))


def test_the_drawing_at_the_top_is_the_tree_as_it_is() -> None:
    drawn = dict(re.findall(r"[├└]─ (\w+) +(\d{3})", errors.__doc__ or ""))
    assert {each.__name__: str(each.status) for each in classes() if each.__name__ in drawn} == drawn
    undrawn = {each.__name__ for each in classes()} - set(drawn) - {"SandboxdError", "RequestError", "StartupError"}
    assert undrawn == set()


@pytest.mark.parametrize("kind", list(classes()), ids=lambda each: each.__name__)
def test_an_error_carries_kind_message_and_facts(kind: type[SandboxdError]) -> None:
    error = kind("cannot do it", number=5)
    assert (str(error), error.message, error.facts) == ("cannot do it", "cannot do it", {"number": 5})
    assert error.kind == kind.default_kind
    assert kind("cannot", kind="special").kind == "special"


def test_yours_is_4xx_and_ours_is_not() -> None:
    for each in classes():
        if issubclass(each, RequestError):
            assert 400 <= each.status < 500 or each.status == 503, each


async def test_a_lone_domain_error_leaves_its_group() -> None:
    with pytest.raises(NotFound), ungrouped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_fail, NotFound("cannot find it"))


async def test_of_several_domain_errors_one_leaves() -> None:
    with pytest.raises((Conflict, LaunchFailed)), ungrouped():
        raise ExceptionGroup("", [ExceptionGroup("", [Conflict("cannot")]), LaunchFailed("cannot")])


async def test_a_bug_among_them_stays_a_group() -> None:
    with pytest.RaisesGroup(NotFound, ZeroDivisionError), ungrouped():
        raise ExceptionGroup("", [NotFound("cannot"), ZeroDivisionError()])


async def test_a_cancellation_keeps_its_shape() -> None:
    with trio.CancelScope() as scope, ungrouped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            scope.cancel("enough")
    assert scope.cancelled_caught


async def _fail(error: Exception) -> None:
    raise error
