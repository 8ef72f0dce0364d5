"""JSON written piece by piece says what JSON written at once says."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sandboxd.http.kit.large_json import encode

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_any_value(value: Any) -> None:
    assert json.loads(b"".join(encode(value))) == value


def test_long_texts_come_in_pieces_that_are_never_large() -> None:
    text = '\x01é\U0001f600"\\\n' * 100_000
    pieces = list(encode({"one": text, "two": iter([text, "", text]), "three": [text]}))
    assert json.loads(b"".join(pieces)) == {"one": text, "two": text * 2, "three": [text]}
    assert max(map(len, pieces)) < 1 << 20
