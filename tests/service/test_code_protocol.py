"""What the code bridge says, as values: within bounds and fit to be written again, whatever it sends."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import NotFound, SandboxdError, TooManyRequests, Unprocessable
from sandboxd.http.kit.streams import ServerSentEvent
from sandboxd.http.native.code import ExecutionView, event_facts
from sandboxd.model import StreamName
from sandboxd.service.code.bounded_json import read_json
from sandboxd.service.code.protocol import (
    BridgeError,
    LineSplitter,
    RunDecoder,
    decode_context,
    decode_contexts,
    encode_run,
)
from sandboxd.service.code.values import (
    CodeLimits,
    CodeSpec,
    Execution,
    RunBegun,
    RunCounted,
    RunEnded,
    RunError,
    RunEvent,
    RunResult,
    RunText,
)
from sandboxd.service.output_memory import OutputMemory

LIMITS = CodeLimits(output=1000, results=1000)
END = {"type": "end", "execution_ms": 7, "truncated": False}


def decode(*messages: Any, limits: CodeLimits = LIMITS) -> list[RunEvent]:
    return RunDecoder(limits).feed(b"".join(json.dumps(message).encode() + b"\n" for message in messages))


def text(content: str) -> dict[str, str]:
    return {"type": "stdout", "text": content}


def test_a_runs_whole_story() -> None:
    events = decode(
        {"type": "begun", "context": "default"},
        {"type": "count", "execution_count": 3},
        text("out"),
        {"type": "stderr", "text": "err"},
        {"type": "result", "data": {"text/plain": "1"}, "main": True},
        {"type": "error", "name": "E", "value": "v", "traceback": "t"},
        END,
    )
    assert events == [
        RunBegun("default"),
        RunCounted(3),
        RunText(StreamName.STDOUT, "out"),
        RunText(StreamName.STDERR, "err"),
        RunResult({"text/plain": "1"}, main=True),
        RunError("E", "v", "t"),
        RunEnded(7, truncated=False),
    ]
    execution = Execution(OutputMemory(1 << 20).share(None))
    for event in events:
        execution.add(event)
    assert (execution.stdout, execution.stderr, execution.execution_count) == (["out"], ["err"], 3)
    assert (execution.error, execution.execution_ms, execution.context) == (RunError("E", "v", "t"), 7, "default")


def test_a_request_is_one_line() -> None:
    line = encode_run(CodeSpec(code="a\nb", env={"A": "\n"}, timeout=1.5), LIMITS)
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "op": "run", "code": "a\nb", "context": None, "env": {"A": "\n"}, "cwd": None, "timeout": 1.5,
        "output": 1000, "results": 1000,
    }  # fmt: skip


# -- bounds -------------------------------------------------------------------------------------------------------


def test_output_over_the_limit_is_dropped_and_said() -> None:
    events = decode(text("x" * 900), text("y" * 200), text("z"), END)
    assert [event.text[0] for event in events if isinstance(event, RunText)] == ["x"]
    assert events[-1] == RunEnded(7, truncated=True)


def test_results_over_the_limit_are_dropped_and_said() -> None:
    result = {"type": "result", "data": {"text/plain": "x" * LIMITS.line}, "main": True}
    small = {"type": "result", "data": {"text/plain": "x"}, "main": True}
    assert decode(small, END)[0] == RunResult({"text/plain": "x"}, main=True)
    with pytest.raises(BridgeError, match="line of more than"):
        RunDecoder(LIMITS).feed(json.dumps(result).encode())
    half = {"type": "result", "data": {"text/plain": "x" * (LIMITS.line // 2)}, "main": True}
    assert decode(half, half, END)[1:] == [RunEnded(7, truncated=True)]


def test_no_end_of_empty_pieces_is_taken() -> None:
    decoder = RunDecoder(LIMITS)
    line = json.dumps(text("")).encode() + b"\n"
    assert sum(len(decoder.feed(line * 1000)) for _ in range(200)) == 100_000
    with pytest.raises(BridgeError, match="without end"):
        decoder.feed(line * 900_000)


WIDE = CodeLimits(output=1 << 20, results=1 << 20)


def json_result(text: str) -> bytes:
    """The line of a result whose JSON is `text`."""
    return b'{"type":"result","main":true,"data":{"application/json":' + text.encode() + b"}}\n"


@pytest.mark.parametrize("text", ["[" + "{}," * 300_000 + "{}]", "[" * 70_000 + "]" * 70_000], ids=["wide", "deep"])
def test_a_result_of_too_many_values_is_dropped_and_said(text: str) -> None:
    decoder = RunDecoder(WIDE)
    assert decoder.feed(json_result(text)) == []
    assert decoder.feed(json_result("[1]")) == [RunResult({"application/json": [1]}, main=True)]
    assert decoder.feed(json.dumps(END).encode() + b"\n") == [RunEnded(7, truncated=True)]


def test_many_values_in_many_results_are_dropped_and_said() -> None:
    decoder = RunDecoder(WIDE)
    small = json_result("[" + "0," * 20_000 + "0]")
    assert sum(len(decoder.feed(small)) for _ in range(20)) == 12
    assert decoder.feed(json.dumps(text("still heard")).encode() + b"\n") == []
    assert decoder.feed(json.dumps(END).encode() + b"\n") == [RunEnded(7, truncated=True)]


def test_a_bridge_that_goes_on_sending_too_much_is_given_up() -> None:
    decoder = RunDecoder(WIDE)
    for _ in range(10):
        assert decoder.feed(json_result("[" * 70_000)) == []
    with pytest.raises(BridgeError, match="again and again"):
        decoder.feed(json_result("[" * 70_000))


def test_an_error_is_told_however_much_was_said_and_no_larger_than_is_good() -> None:
    error = {"type": "error", "name": "E", "value": "v", "traceback": "t" * 1_000_000}
    events = decode(text("x" * 2000), error, END, limits=CodeLimits(output=1000, results=1000 * 1000))
    assert [type(event) for event in events] == [RunError, RunEnded]
    assert isinstance(events[0], RunError)
    assert len(events[0].traceback) == 256 * 1024


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.booleans(),
    st.sampled_from([None, 1, "\t"]),
)
def test_what_is_read_piece_by_piece_is_what_json_reads(value: Any, ascii_only: bool, indent: Any) -> None:
    written = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert read_json(written.encode(), values=10_000, depth=100) == json.loads(written)


@given(st.text(alphabet='[]{},:"\\u0d8e-+.1aTnul \n\x7f\u00e9', max_size=30))
def test_what_is_no_json_is_none_piece_by_piece_either(written: str) -> None:
    def read(reader: Callable[[str], Any]) -> Any:
        try:
            return reader(written)
        except ValueError:
            return ValueError

    whole = read(lambda text: json.loads(text, strict=False))
    if whole is not ValueError:
        assert read(lambda text: read_json(text.encode(), values=100, depth=100)) is not ValueError


@pytest.mark.parametrize("width", range(10))
def test_escapes_that_a_piece_ends_in_are_whole(width: int) -> None:
    written = '"' + "x" * (64 * 1024 - width) + "\\ud83d\\ude00\u00e9\\n" + "\U0001f600\\\\" * 40_000 + '"'
    assert read_json(written.encode(), values=1, depth=1) == json.loads(written)


def test_an_endless_line_is_refused_before_it_is_kept() -> None:
    splitter = LineSplitter(100)
    assert splitter.feed(b"x" * 100) == []
    with pytest.raises(BridgeError, match="100 bytes"):
        splitter.feed(b"x")


def test_nothing_comes_after_the_end() -> None:
    with pytest.raises(BridgeError, match="after the end"):
        decode(END, text("more"))


# -- hostile lines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"", b"[]", b"1", b"null", b"{", b"\xff\xfe", b"[" * 60_000, b'{"type": "unknown"}', b'{"type": []}',
        b'{"type": "stdout"}', b'{"type": "stdout", "text": 1}', b'{"type": "result", "data": 1}',
        b'{"type": "result", "data": []}',
        b'{"type": "count", "execution_count": -1}', b'{"type": "count", "execution_count": "1"}',
        b'{"type": "count", "execution_count": 1e400}', b'{"type": "end", "execution_ms": ' + b"9" * 5000 + b"}",
        b'{"type": "error", "name": null, "value": "", "traceback": ""}', b'{"type": "refused", "kind": "else"}',
        b'{"type": "refused", "kind": "bad_cwd", "message": 1}', b'{"type": "refused", "kind": [], "message": ""}',
    ],
    ids=lambda line: line[:40],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(line: bytes) -> None:
    with pytest.raises(BridgeError):
        RunDecoder(LIMITS).feed(line + b"\n")


@pytest.mark.parametrize(
    ("kind", "error"),
    [("unknown_context", NotFound), ("queue_full", TooManyRequests), ("bad_cwd", Unprocessable)],
)
def test_a_refusal_is_an_error_of_ours(kind: str, error: type[SandboxdError]) -> None:
    with pytest.raises(error, match="cannot"):
        decode({"type": "refused", "kind": kind, "message": "cannot do it"})


def sent_on(events: list[RunEvent]) -> str:
    """As both of the API's answers have it. Fails for what cannot be written."""
    execution = Execution(OutputMemory(1 << 20).share(None))
    streamed = ""
    for event in events:
        execution.add(event)
        streamed += ServerSentEvent.of(event_facts(event)).encode().decode()
    return streamed + ExecutionView.of(execution).model_dump_json()


@pytest.mark.parametrize(
    "value", ['NaN', '-Infinity', '1e999', '9' * 5000, '"\\ud800"', '{"\\udfff": ["\\ud800x"]}', '"\\u0000"']
)  # fmt: skip
def test_json_that_python_reads_but_nobody_can_write(value: str) -> None:
    line = f'{{"type": "result", "data": {{"application/json": {value}, "text/plain": "t"}}, "main": true}}\n'
    assert '"text":"t"' in sent_on(RunDecoder(LIMITS).feed(line.encode()))


def test_json_too_deep_to_be_written_is_left_out() -> None:
    deep = '{"type": "result", "data": {"application/json": ' + "[" * 300 + "]" * 300 + '}, "main": true}\n'
    assert RunDecoder(LIMITS).feed(deep.encode()) == [RunResult({}, main=True)]


def test_only_json_types_may_be_anything_but_text() -> None:
    data = {
        "text/html": {"a": 1},
        "image/png": None,
        "application/json": [1],
        "application/x+json": 2,
        "text/plain": "",
    }
    (event,) = decode({"type": "result", "data": data, "main": False})
    assert event == RunResult({"application/json": [1], "application/x+json": 2, "text/plain": ""}, main=False)


def test_contexts() -> None:
    raw = {"id": "a" * 500, "language": "python", "cwd": "/", "busy": True, "queued": 0}
    assert len(decode_context(json.dumps({"type": "context", **raw}).encode()).id) == 100
    assert len(decode_contexts(json.dumps({"type": "contexts", "contexts": [raw] * 5000}).encode())) == 1000
    with pytest.raises(BridgeError):
        decode_contexts(b'{"type": "contexts", "contexts": [1]}')


ANY_JSON = st.recursive(
    st.none() | st.integers() | st.floats() | st.sampled_from(["", "x", "\n", "\0", "\ud800", "ü\u2028"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text/plain", "a+json", "id"]), inner, max_size=3)
    ),
    max_leaves=6,
)
KINDS = st.sampled_from(["begun", "count", "stdout", "stderr", "result", "error", "end", "refused", "context"])
FIELDS = st.sampled_from(
    ["text", "data", "main", "name", "value", "traceback", "execution_ms", "truncated", "execution_count", "context"]
)


@given(st.lists(st.tuples(KINDS, st.dictionaries(FIELDS, ANY_JSON)), max_size=5), st.integers(1, 50))
def test_whatever_it_sends_is_refused_or_can_be_sent_on(messages: list[tuple[str, dict[str, Any]]], cut: int) -> None:
    data = b"".join(json.dumps({**fields, "type": kind}).encode() + b"\n" for kind, fields in messages)
    decoder = RunDecoder(LIMITS)
    try:
        events = [event for at in range(0, len(data), cut) for event in decoder.feed(data[at : at + cut])]
    except (BridgeError, SandboxdError):
        return
    sent_on(events)


@given(st.binary(max_size=300), st.integers(1, 20))
def test_lines_come_out_whole_however_they_are_cut(data: bytes, cut: int) -> None:
    splitter = LineSplitter(1000)
    lines = [line for at in range(0, len(data), cut) for line in splitter.feed(data[at : at + cut])]
    assert lines == data.split(b"\n")[:-1]
