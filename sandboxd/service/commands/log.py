"""The output of a command in files: a writer that prunes, and reads from any offset. Synchronous, and pure of policy.

A log is a directory of segments, named by the position of their first byte, in hexadecimal:

    <position>.data    output as it came, both streams mixed
    <position>.index   a line for each change of stream, or jump in it: from which position, which stream, what offset

A *position* counts the bytes of the log; an *offset* counts the bytes of one stream, those too that never reached
the log. So a jump of offsets is a gap, and nothing else needs to be written of it. When the log has grown beyond its
limit its oldest segment goes.

A line of the index is written before its data, and a reader looks at the data's size before it reads the index:
however the two meet, and wherever the writer is killed, no byte is taken for the other stream's.
"""

import bisect
import contextlib
import errno
import os
import struct
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from sandboxd.model import OutputChunk, StreamName

# Of a log's limit: pruning takes whole segments, so at least seven eighths of the limit are always kept.
SEGMENTS: Final = 8
SMALLEST_SEGMENT: Final = 4096
# Readers load the index of a segment as a whole; output that changes stream with every byte fills one in 100 KiB.
LINES_PER_SEGMENT: Final = 4096

_STREAMS: Final = (StreamName.STDOUT, StreamName.STDERR)
# The first line of an index: position, and the offset of each stream where the segment begins. The others: position,
# number of the stream, offset.
_LINE: Final = struct.Struct("<QQQ")
_DATA, _INDEX = ".data", ".index"


@dataclass(frozen=True, slots=True)
class LogGap:
    """Bytes that are not in the log (any more). The stream is None where pruning took both."""

    stream: StreamName | None
    lost: int


@dataclass(frozen=True, slots=True)
class LogPage:
    """What a read found, in order."""

    items: tuple[OutputChunk | LogGap, ...]
    next: int
    """where to go on: a position, or an offset if one stream was read"""

    @property
    def size(self) -> int:
        """Bytes of output."""
        return sum(len(item.data) for item in self.items if isinstance(item, OutputChunk))

    @property
    def lost(self) -> int:
        return sum(item.lost for item in self.items if isinstance(item, LogGap))


@dataclass(frozen=True, slots=True)
class _Run:
    """Bytes of one stream, next to each other in the log."""

    segment: int
    stream: StreamName
    position: int
    offset: int
    size: int

    def after(self, skipped: int) -> "_Run":
        return _Run(self.segment, self.stream, self.position + skipped, self.offset + skipped, self.size - skipped)


@dataclass(frozen=True, slots=True)
class _Segment:
    position: int
    size: int
    offsets: Mapping[StreamName, int]
    runs: tuple[_Run, ...]


def _name(position: int, suffix: str) -> str:
    return f"{position:016x}{suffix}"


def _positions(directory: Path) -> list[int]:
    """Of the segments there are, in order."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(int(name.removesuffix(_INDEX), 16) for name in names if name.endswith(_INDEX))


def _load(directory: Path, position: int) -> _Segment:
    try:
        size = os.stat(directory / _name(position, _DATA)).st_size  # first: see above
    except FileNotFoundError:
        size = 0
    raw = (directory / _name(position, _INDEX)).read_bytes()
    whole = len(raw) - len(raw) % _LINE.size  # the rest was cut off when the disk was full
    (_, *offsets), *lines = _LINE.iter_unpack(raw[:whole]) if whole else ((position, 0, 0),)
    ends = [*(line[0] for line in lines), position + size][1:]
    runs = tuple(
        _Run(position, _STREAMS[stream], start, offset, min(end, position + size) - start)
        for (start, stream, offset), end in zip(lines, ends, strict=True)
        if position <= start < min(end, position + size) and stream < len(_STREAMS)
    )
    return _Segment(position, size, dict(zip(_STREAMS, offsets, strict=True)), runs)


class LogWriter:
    """Appends to a log. Owns: a descriptor, from the first output until close()."""

    def __init__(self, directory: Path, *, limit: int) -> None:
        """Go on with what is there."""
        self._directory = directory
        self._limit = limit
        self._segment_limit = max(SMALLEST_SEGMENT, limit // SEGMENTS)
        self._sizes = {position: _size(directory, position) for position in _positions(directory)}
        self._lines = LINES_PER_SEGMENT  # so that the first output begins a segment
        self._data = -1
        self._run: StreamName | None = None
        self.offsets = dict.fromkeys(_STREAMS, 0)
        """of each stream: where the log ends"""
        self.position = 0
        if self._sizes:
            self._recover(_load(directory, max(self._sizes)))

    def _recover(self, last: _Segment) -> None:
        self.position = last.position + last.size
        self.offsets.update(last.offsets)
        for run in last.runs:
            self.offsets[run.stream] = run.offset + run.size

    def append(self, chunks: Iterable[OutputChunk]) -> None:
        """Add output; what the log has already is left out. Raises: OSError; then the rest is missing, a gap."""
        for chunk in chunks:
            known = max(0, self.offsets[chunk.stream] - chunk.offset)
            if known < len(chunk.data):
                self._add(chunk.stream, chunk.offset + known, chunk.data[known:])

    def _add(self, stream: StreamName, offset: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._begin_run(stream, offset)
            written = os.write(self._data, rest[: self._room()])
            rest = rest[written:]
            offset += written
            self.position += written
            self.offsets[stream] = offset
            self._count(written)

    def _begin_run(self, stream: StreamName, offset: int) -> None:
        """Let the next byte be this one of this stream, with room for more."""
        if self._lines >= LINES_PER_SEGMENT or self._room() <= _LINE.size:
            self._begin_segment()
        if self._run is not stream or self.offsets[stream] != offset:
            self._add_line(self.position, _STREAMS.index(stream), offset)
            self._run = stream

    def _room(self) -> int:
        """Bytes that the segment may still grow by."""
        return self._segment_limit - self._sizes[max(self._sizes)]

    def _begin_segment(self) -> None:
        self.close()
        self._lines = LINES_PER_SEGMENT  # until all of it has succeeded
        while self._sizes and sum(self._sizes.values()) + self._segment_limit > self._limit:
            self._remove(min(self._sizes))
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._remove(self.position)  # what a writer left that got no further than this
        self._sizes[self.position] = 0
        self._add_line(self.position, *self.offsets.values())
        self._data = _open_to_append(self._directory / _name(self.position, _DATA))
        self._lines = 1

    def _add_line(self, *numbers: int) -> None:
        self._run = None
        descriptor = _open_to_append(self._directory / _name(max(self._sizes), _INDEX))
        try:
            written = os.write(descriptor, _LINE.pack(*numbers))
            if written < _LINE.size:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
                raise OSError(errno.ENOSPC, "cannot write the index of a command's output")
        finally:
            os.close(descriptor)
        self._lines += 1
        self._count(_LINE.size)

    def _count(self, written: int) -> None:
        self._sizes[max(self._sizes)] += written

    def _remove(self, position: int) -> None:
        self._sizes.pop(position, None)
        for suffix in (_INDEX, _DATA):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._directory / _name(position, suffix))

    def close(self) -> None:
        if self._data >= 0:
            os.close(self._data)
        self._data = -1
        self._run = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_to_append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _size(directory: Path, position: int) -> int:
    """Of a segment, on disk."""
    total = 0
    for suffix in (_INDEX, _DATA):
        with contextlib.suppress(FileNotFoundError):
            total += os.stat(directory / _name(position, suffix)).st_size
    return total


def end_of_log(directory: Path) -> tuple[int, Mapping[StreamName, int]]:
    """The position at which the log ends, and each stream's offset there."""
    writer = LogWriter(directory, limit=SMALLEST_SEGMENT)  # opens nothing before its first output
    return writer.position, writer.offsets


def read_log(directory: Path, start: int, *, limit: int, stream: StreamName | None = None) -> LogPage:
    """At most `limit` bytes from a position on, or of one stream from an offset of it on."""
    while True:
        try:
            return _page(directory, start, limit, stream)
        except FileNotFoundError:
            pass  # a segment was pruned under us; the next look shows one less


def _page(directory: Path, start: int, limit: int, stream: StreamName | None) -> LogPage:
    found = _in_all(directory, start) if stream is None else _in_stream(directory, start, stream)
    items: list[OutputChunk | LogGap] = []
    with contextlib.closing(found), _DataFile(directory) as file:
        for item in found if limit > 0 else ():
            if isinstance(item, _Run):
                data = file.read(item, limit)
                items.append(OutputChunk(item.stream, item.offset, data))
                start = (item.position if stream is None else item.offset) + len(data)
                limit -= len(data)
            else:
                items.append(item)
                start += item.lost if item.stream is stream else 0
            if limit <= 0:
                break
    return LogPage(tuple(items), start)


class _DataFile:
    """Reads runs, one segment's file open at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._segment = -1
        self._descriptor = -1

    def read(self, run: _Run, limit: int) -> bytes:
        if run.segment != self._segment:
            self._close()
            self._descriptor = os.open(self._directory / _name(run.segment, _DATA), os.O_RDONLY | os.O_CLOEXEC)
            self._segment = run.segment
        return os.pread(self._descriptor, min(limit, run.size), run.position - run.segment)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


_Found = Generator[_Run | LogGap, None, None]


def _in_all(directory: Path, start: int) -> _Found:
    """What follows a position. A gap between two positions is in one stream; one before the first is in any."""
    positions = _positions(directory)
    expected: dict[StreamName, int] = {}
    for position in positions[max(0, bisect.bisect_right(positions, start) - 1) :]:
        segment = _load(directory, position)
        if not expected:
            expected = dict(segment.offsets)
            if position > start:
                yield LogGap(None, position - start)
                start = position
        for run in segment.runs:
            if run.position >= start and run.offset > expected[run.stream]:
                yield LogGap(run.stream, run.offset - expected[run.stream])
            expected[run.stream] = run.offset + run.size
            if run.position + run.size > start:
                yield run.after(max(0, start - run.position))


def _in_stream(directory: Path, start: int, stream: StreamName) -> _Found:
    """What follows an offset of one stream."""
    for segment in _from_offset(directory, start, stream):
        for run in segment.runs:
            if run.stream is stream and run.offset + run.size > start:
                if run.offset > start:
                    yield LogGap(stream, run.offset - start)
                yield run.after(max(0, start - run.offset))
                start = run.offset + run.size


def _from_offset(directory: Path, start: int, stream: StreamName) -> Iterator[_Segment]:
    """The segments from the one on that holds an offset of a stream, or else from the first."""
    positions = _positions(directory)
    later: list[_Segment] = []
    for position in reversed(positions):
        later.append(_load(directory, position))
        if later[-1].offsets[stream] <= start:
            break
    yield from reversed(later)
