"""The API's description of itself: that what the models' source says of their fields is in it."""

from typing import Any

import pytest

from sandboxd.http.native.openapi import describe
from sandboxd.http.native.routes import API


@pytest.fixture(scope="module")
def document() -> Any:
    return describe(API)


def fields_of(document: Any, model: str) -> Any:
    return document["components"]["schemas"][model]["properties"]


def test_what_stands_below_a_field_describes_it(document: Any) -> None:
    fields = fields_of(document, "CreateSandbox")
    assert fields["on_idle"]["description"] == "what happens then; by default the same as on_timeout"
    assert "description" not in fields["name"]


def test_a_field_that_is_inherited_has_its_description(document: Any) -> None:
    fields = fields_of(document, "StartCommand")
    assert fields["argv"]["description"] == "a program and its arguments, without a shell"


def test_so_has_a_parameter_of_the_query(document: Any) -> None:
    parameters = document["paths"]["/v1/sandboxes/{sandbox}/commands/{command}/logs"]["get"]["parameters"]
    (tail,) = [each["schema"] for each in parameters if each["name"] == "tail"]
    assert tail["description"] == "the last so many bytes"
