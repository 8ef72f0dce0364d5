"""The log of a command's output: what is written is read, from anywhere, whatever happens to the writer."""

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxd.model import OutputChunk, StreamName
from sandboxd.service.commands.log import LogGap, LogPage, LogWriter, end_of_log, read_log

OUT, ERR = StreamName.STDOUT, StreamName.STDERR
KIB = 1024
ALL = 2**40
LIMIT = 64 * KIB


def text(page: LogPage, stream: StreamName | None = None) -> bytes:
    chunks = [item for item in page.items if isinstance(item, OutputChunk)]
    return b"".join(chunk.data for chunk in chunks if stream in (None, chunk.stream))


def gaps(page: LogPage) -> list[tuple[StreamName | None, int]]:
    return [(item.stream, item.lost) for item in page.items if isinstance(item, LogGap)]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "not" / "yet" / "there"


def write(log: Path, *chunks: OutputChunk, limit: int = LIMIT) -> None:
    with LogWriter(log, limit=limit) as writer:
        writer.append(chunks)


def test_a_log_that_nobody_has_written_is_empty(log: Path) -> None:
    assert read_log(log, 0, limit=ALL) == LogPage((), 0)
    assert end_of_log(log) == (0, {OUT: 0, ERR: 0})
    LogWriter(log, limit=LIMIT).close()
    assert not log.exists()


def test_both_streams_in_their_order_and_each_alone(log: Path) -> None:
    write(log, OutputChunk(OUT, 0, b"one"), OutputChunk(ERR, 0, b"two"), OutputChunk(OUT, 3, b"three"))
    whole = read_log(log, 0, limit=ALL)
    assert whole.items == (OutputChunk(OUT, 0, b"one"), OutputChunk(ERR, 0, b"two"), OutputChunk(OUT, 3, b"three"))
    assert whole.next == 11
    assert read_log(log, 4, limit=5).items == (OutputChunk(ERR, 1, b"wo"), OutputChunk(OUT, 3, b"thr"))
    alone = read_log(log, 0, limit=ALL, stream=OUT)
    assert (text(alone), alone.next, alone.lost) == (b"onethree", 8, 0)
    assert read_log(log, 2, limit=2, stream=OUT).items == (OutputChunk(OUT, 2, b"e"), OutputChunk(OUT, 3, b"t"))


def test_a_jump_of_offsets_is_a_gap(log: Path) -> None:
    write(log, OutputChunk(OUT, 0, b"ab"), OutputChunk(ERR, 0, b"x"), OutputChunk(OUT, 10, b"cd"))
    whole = read_log(log, 0, limit=ALL)
    assert gaps(whole) == [(OUT, 8)]
    assert (text(whole), whole.next) == (b"abxcd", 5)
    assert gaps(read_log(log, 3, limit=ALL)) == [(OUT, 8)]  # the gap lies before the byte at 3
    assert gaps(read_log(log, 4, limit=ALL)) == []
    alone = read_log(log, 1, limit=ALL, stream=OUT)
    assert (text(alone), gaps(alone), alone.next) == (b"bcd", [(OUT, 8)], 12)


def test_a_gap_after_a_page_is_told_by_the_next_page_once(log: Path) -> None:
    write(log, OutputChunk(OUT, 0, b"ab"), OutputChunk(OUT, 5, b"cd"))
    first = read_log(log, 0, limit=2)
    assert gaps(first) == []
    second = read_log(log, first.next, limit=1)
    assert (gaps(second), text(second)) == ([(OUT, 3)], b"c")
    assert gaps(read_log(log, second.next, limit=ALL)) == []


def test_what_is_known_already_is_not_written_twice(log: Path) -> None:
    write(log, OutputChunk(OUT, 0, b"abcd"))
    write(log, OutputChunk(OUT, 0, b"ab"), OutputChunk(OUT, 2, b"cdef"), OutputChunk(ERR, 0, b"x"))
    assert text(read_log(log, 0, limit=ALL)) == b"abcdefx"


def test_old_segments_go_and_the_newest_output_stays(log: Path) -> None:
    limit = 64 * KIB
    with LogWriter(log, limit=limit) as writer:
        for number in range(1000):
            writer.append([OutputChunk(OUT, number * KIB, bytes([number % 251]) * KIB)])
    assert sum(entry.stat().st_size for entry in os.scandir(log)) <= limit
    page = read_log(log, 0, limit=ALL)
    assert len(text(page)) >= limit * 6 // 8
    assert text(page).endswith(bytes([999 % 251]) * KIB)
    assert page.lost + page.size == page.next == 1000 * KIB
    assert read_log(log, 0, limit=ALL, stream=OUT).lost == page.lost


def test_output_that_changes_stream_with_every_byte_is_bounded_too(log: Path) -> None:
    with LogWriter(log, limit=LIMIT) as writer:
        for number in range(20_000):
            writer.append([OutputChunk(OUT, number, b"o"), OutputChunk(ERR, number, b"e")])
    assert sum(entry.stat().st_size for entry in os.scandir(log)) <= LIMIT
    page = read_log(log, 39_990, limit=ALL)
    assert (text(page), gaps(page)) == (b"oe" * 5, [])


def test_a_full_disk_costs_the_output_and_not_the_log(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = [30]
    really_write = os.write

    def write_while_there_is_room(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        part = bytes(data)[: room[0]]
        room[0] -= len(part)
        return really_write(descriptor, part)

    with LogWriter(log, limit=LIMIT) as writer:
        monkeypatch.setattr(os, "write", write_while_there_is_room)
        for data in (b"begin", b"more"):  # the first line of the index takes 24, and 6 are not enough for another
            with pytest.raises(OSError, match=r"cannot write|No space"):
                writer.append([OutputChunk(OUT, 0, data)])
        room[0] = 24 + 3
        with pytest.raises(OSError, match="No space"):
            writer.append([OutputChunk(OUT, 9, b"middle")])
        room[0] = ALL
        writer.append([OutputChunk(OUT, 15, b"end")])
    page = read_log(log, 0, limit=ALL)
    assert (text(page), gaps(page)) == (b"midend", [(OUT, 9), (OUT, 3)])
    assert end_of_log(log) == (6, {OUT: 18, ERR: 0})


def test_a_writer_killed_between_any_two_steps_leaves_a_log(log: Path) -> None:
    """Its index made but not begun, or begun; no data, or data that no line announces."""
    write(log, OutputChunk(OUT, 0, b"abc"))
    index, data = log / f"{3:016x}.index", log / f"{3:016x}.data"
    for lines, bytes_ in ((b"", None), (struct.pack("<QQQ", 3, 3, 0), None), (struct.pack("<QQQ", 3, 3, 0), b"")):
        index.write_bytes(lines)
        if bytes_ is not None:
            data.write_bytes(bytes_)
        assert text(read_log(log, 0, limit=ALL)) == b"abc"
        assert text(read_log(log, 3, limit=ALL)) == b""
    write(log, OutputChunk(OUT, 3, b"def"))
    assert text(read_log(log, 0, limit=ALL)) == b"abcdef"


def test_garbage_in_an_index_is_passed_over(log: Path) -> None:
    """A power cut may leave zeros or less where a line was to be."""
    write(log, OutputChunk(OUT, 0, b"abc"))
    index = next(log.glob("*.index"))
    index.write_bytes(index.read_bytes() + b"\0" * 30 + b"\xff" * 48)
    assert text(read_log(log, 0, limit=ALL)).startswith(b"")
    write(log, OutputChunk(OUT, 3, b"def"))
    assert text(read_log(log, 3, limit=ALL)) == b"def"


Script = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([OUT, ERR]), st.integers(1, 300), st.sampled_from([0, 0, 0, 7])),
        st.just("restart"),
    ),
    max_size=60,
)


@given(Script, st.integers(1, 400), st.integers(0, 2000))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_reader_gets_what_any_writer_wrote(
    tmp_path_factory: pytest.TempPathFactory, script: Sequence[object], limit: int, start: int
) -> None:
    """Page by page from anywhere: the same bytes, and gaps where bytes were left out; nothing else."""
    log = tmp_path_factory.mktemp("log")
    written = bytearray()
    streams = {OUT: bytearray(), ERR: bytearray()}
    """what each stream would be; left out bytes as NUL"""
    writer = LogWriter(log, limit=2**30)
    for step in script:
        if step == "restart":
            writer.close()
            writer = LogWriter(log, limit=2**30)
            continue
        stream, size, skipped = step  # type: ignore[misc]
        streams[stream] += b"\0" * skipped
        data = bytes([1 + len(written) % 200]) * size
        writer.append([OutputChunk(stream, len(streams[stream]), data)])
        streams[stream] += data
        written += data
    writer.close()

    assert end_of_log(log)[0] == len(written)
    place, got = min(start, len(written)), b""
    while (page := read_log(log, place, limit=limit)).items:
        got += text(page)
        place = page.next
    assert got == written[min(start, len(written)) :]
    for stream, whole in streams.items():
        place, got = 0, b""
        while (page := read_log(log, place, limit=limit, stream=stream)).items:
            for item in page.items:
                got += b"\0" * item.lost if isinstance(item, LogGap) else item.data
            place = page.next
        assert got == whole[: len(got)]
        assert not whole[len(got) :].strip(b"\0")
