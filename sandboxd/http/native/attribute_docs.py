"""What stands below the fields of the wire models, for the API's description.

pydantic can read it too (use_attribute_docstrings), but does when a class is made: for all of them a seventh of what
a daemon's start takes, and hardly any daemon is ever asked for its description.
"""

import ast
import functools
import inspect
import itertools
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel


def add_to(schema: Mapping[str, Any], model: type[BaseModel]) -> None:
    """Give the properties of a model's JSON schema the descriptions that they have in its source."""
    documented = dict(itertools.chain.from_iterable(_own(each) for each in reversed(model.__mro__)))
    for name, field in model.model_fields.items():
        described = schema["properties"][field.alias or name]
        if name in documented:
            described.setdefault("description", documented[name])


def _own(kind: type) -> Iterator[tuple[str, str]]:
    """The fields that a class itself has, and what stands below them."""
    if kind is BaseModel or not issubclass(kind, BaseModel):
        return
    for field, below in itertools.pairwise(_classes(kind.__module__)[kind.__name__].body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str() as text)):
                yield name, inspect.cleandoc(text)


@functools.cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
