"""Decoding of server-sent events: what the daemon encodes comes out again, however the network cuts it."""

from hypothesis import given
from hypothesis import strategies as st

from sandboxd.client.sse import EventDecoder, ServerSentEvent
from sandboxd.http.kit import streams

LINE = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"))
EVENTS = st.lists(st.tuples(LINE.filter(bool), LINE, st.text("ab\n")))


def decode(*pieces: bytes) -> list[ServerSentEvent]:
    decoder = EventDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


@given(EVENTS, st.data())
def test_what_the_daemon_encodes_is_decoded_however_it_is_cut(
    events: list[tuple[str, str, str]], data: st.DataObject
) -> None:
    wire = b"".join(streams.ServerSentEvent(text, event=name, id=number).encode() for name, number, text in events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    pieces = [wire[start:end] for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    assert decode(*pieces) == [ServerSentEvent(name, text, number) for name, number, text in events]


def test_keep_alives_and_unknown_fields_are_no_events() -> None:
    assert decode(b":\n\n", b": hello\n\nretry: 5\n\n") == []


def test_an_event_without_a_name_is_a_message() -> None:
    assert decode(b"data: x\n\n") == [ServerSentEvent("message", "x", "")]


def test_an_event_whose_end_has_not_come_is_not_given() -> None:
    assert decode(b"data: x\n") == []


def test_carriage_returns_before_line_ends_are_dropped() -> None:
    assert decode(b"event: a\r\ndata: x\r\n\r\n") == [ServerSentEvent("a", "x", "")]


def test_only_the_first_space_is_dropped_and_lines_are_joined() -> None:
    assert decode(b"data:  x\ndata:y\ndata\n\n") == [ServerSentEvent("message", " x\ny\n", "")]


@given(st.binary(max_size=200))
def test_no_bytes_raise(data: bytes) -> None:
    decode(data)
