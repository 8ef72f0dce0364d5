"""The detach keys, found in what is typed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.cli.detach import DEFAULT_KEYS, DetachKeys, parse_keys

KEYS = b"\x10\x11"


@pytest.mark.parametrize(
    ("text", "keys"),
    [(DEFAULT_KEYS, KEYS), ("ctrl-]", b"\x1d"), ("CTRL-A,d", b"\x01d"), ("", b""), ("ctrl-@", b"\0"), ("~,.", b"~.")],
)
def test_keys_as_docker_writes_them(text: str, keys: bytes) -> None:
    assert parse_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "alt-x", "ab", ",", "ctrl-p,", "é", "\n"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a key"):
        parse_keys(text)


@given(st.lists(st.sampled_from([b"\x10", b"\x11", b"a", b"\x10a", b"xyz"])))
def test_however_it_is_cut_the_keys_are_found_and_nothing_else_is_lost(pieces: list[bytes]) -> None:
    typed = b"".join(pieces)
    watcher, passed, left = DetachKeys(KEYS), b"", False
    for piece in pieces:
        more, left = watcher.feed(piece)
        passed += more
        if left:
            break
    before, found, _ = typed.partition(KEYS)
    assert left is bool(found)
    held = b"\x10" if not found and typed.endswith(b"\x10") else b""
    assert passed + held == before


def test_without_keys_everything_passes() -> None:
    assert DetachKeys(b"").feed(KEYS * 2) == (KEYS * 2, False)
