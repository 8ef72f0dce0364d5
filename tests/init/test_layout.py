"""sandbox-init's files stand one above the other: no circle of includes, and the roles' table tells the truth."""

import re
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.init.harness import SOURCES

# Several files that share one header: commands.h is that of command_input.c too.
FAMILIES = {"command_input": "commands", "command_report": "commands", "command_signal": "commands"}
INCLUDE = re.compile(r'^#include "(\w+)\.h"', re.MULTILINE)


def unit_of(stem: str) -> str:
    """A header and what implements it are one thing."""
    if (SOURCES / f"{stem}.h").exists():
        return stem
    return FAMILIES.get(stem) or stem.split("_")[0]


def includes() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in [*SOURCES.glob("*.c"), *SOURCES.glob("*.h")]:
        unit = unit_of(path.stem)
        found.setdefault(unit, set()).update(set(INCLUDE.findall(path.read_text())) - {unit})
    return found


def order(units: Mapping[str, set[str]]) -> list[str]:
    return list(TopologicalSorter(units).static_order())


def test_no_file_includes_itself_by_way_of_others() -> None:
    ordered = order(includes())
    assert ordered.index("reaper") < ordered.index("connections") < ordered.index("commands")
    assert ordered.index("commands") < ordered.index("operations") < ordered.index("main")


def test_a_circle_would_be_found() -> None:
    with pytest.raises(CycleError):
        order({**includes(), "reaper": {"commands"}})


def test_every_role_stands_in_the_table() -> None:
    header = (SOURCES / "connections.h").read_text()
    table = dict(re.findall(r"^ \* {5}(\w+) .* (\w+\.c)$", header, re.MULTILINE))
    defined = {
        (name.removesuffix("_role"), path.name)
        for path in SOURCES.glob("*.c")
        for name in re.findall(r"^static const struct role (\w+) =", path.read_text(), re.MULTILINE)
    }
    assert set(table.items()) == defined
    assert len(defined) >= 5
