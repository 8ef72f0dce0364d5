"""What a terminal is asked is not asked again; all else is shown as it was."""

import pytest

from sandboxd.cli.replay import without_queries


@pytest.mark.parametrize(
    "query",
    [
        b"\x1b[c",
        b"\x1b[0c",
        b"\x1b[>c",
        b"\x1b[=c",
        b"\x1b[5n",
        b"\x1b[6n",
        b"\x1b[?6n",
        b"\x1b[>q",
        b"\x1b[>0q",
        b"\x1b[?2026$p",
        b"\x1b[?u",
        b"\x1b[18t",
        b"\x1b[14;2t",
        b"\x1b]11;?\x07",
        b"\x1b]4;1;?\x1b\\",
        b"\x1bP$qm\x1b\\",
        b"\x1bP+q544e\x1b\\",
        b"\x1bZ",
    ],
)
def test_queries_are_left_out(query: bytes) -> None:
    assert without_queries(b"before" + query + query + b"after") == b"beforeafter"


@pytest.mark.parametrize(
    "kept",
    [
        b"plain \xff\r\n",
        b"\x1b[31mred\x1b[0m",
        b"\x1b[2J\x1b[H",
        b"\x1b[?1049h\x1b[?25l",
        b"\x1b]0;title\x07",
        b"\x1b[8;24;80t",
    ],
)
def test_the_rest_is_as_it_was(kept: bytes) -> None:
    assert without_queries(kept) == kept
