"""What is asked of a kernel, and what a run says: the values of code execution."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sandboxd.model import EMPTY, StreamName
from sandboxd.service.output_memory import Share

# JSON may need six bytes for a character; around a result there is little else.
_BYTES_PER_CHARACTER: Final = 6
_LINE_OVERHEAD: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeSpec:
    """A piece of code to run."""

    code: str
    context: str | None = None
    """None: the default context, made when it is first used"""
    env: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    """for this run alone"""
    cwd: str | None = None
    """for this run alone"""
    timeout: float | None = None
    """seconds from when its turn has come"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeLimits:
    """How many characters of a run are passed on; the rest is dropped and reported as truncated."""

    output: int
    results: int

    @property
    def line(self) -> int:
        """Bytes of the longest line that a bridge within these limits sends."""
        return _BYTES_PER_CHARACTER * max(self.output, self.results) + _LINE_OVERHEAD


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeContext:
    id: str
    language: str
    cwd: str
    busy: bool
    queued: int
    """runs that wait for their turn"""
    interrupted: bool = False
    """whether a request to interrupt found something to interrupt"""


@dataclass(frozen=True, slots=True)
class RunBegun:
    """Its turn in the context has come, and the kernel has the code."""

    context: str


@dataclass(frozen=True, slots=True)
class RunCounted:
    execution_count: int


@dataclass(frozen=True, slots=True)
class RunText:
    stream: StreamName
    text: str


@dataclass(frozen=True, slots=True)
class RunResult:
    data: Mapping[str, Any]
    """representations by MIME type: text, or for JSON types any JSON value; binary ones in base64"""
    main: bool
    """the value of the last expression, not something displayed on the way"""


@dataclass(frozen=True, slots=True)
class RunError:
    """What the code raised; or `KernelDied`, `ExecutionTimeout` when it never came to an end."""

    name: str
    value: str
    traceback: str


@dataclass(frozen=True, slots=True)
class RunEnded:
    execution_ms: int
    truncated: bool


RunEvent = RunBegun | RunCounted | RunText | RunResult | RunError | RunEnded


@dataclass(slots=True)
class Execution:
    """A whole run, put together event by event."""

    share: Share
    """of the memory for output, in which it is"""
    results: list[RunResult] = field(default_factory=list)
    stdout: list[str] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)
    error: RunError | None = None
    execution_count: int | None = None
    context: str = ""
    execution_ms: int = 0
    truncated: bool = False

    def add(self, event: RunEvent) -> None:
        match event:
            case RunBegun():
                self.context = event.context
            case RunCounted():
                self.execution_count = event.execution_count
            case RunText():
                (self.stdout if event.stream is StreamName.STDOUT else self.stderr).append(event.text)
            case RunResult():
                self.results.append(event)
            case RunError():
                self.error = event
            case RunEnded():
                self.execution_ms, self.truncated = event.execution_ms, event.truncated
