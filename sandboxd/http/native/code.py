"""Code in kernels that remember: run to its end or as a stream, and the contexts that it runs in.

Names and shapes are those of ai2in's client, whose parser of the stream takes nothing but `data:` frames.
"""

from collections.abc import AsyncGenerator, Mapping
from typing import Annotated, Any, Final, Self

import trio
from pydantic import ConfigDict, Field, JsonValue, StringConstraints, field_validator

from sandboxd.errors import SandboxdError
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.large_json import JsonResponse, small_or_large
from sandboxd.http.kit.routes import Route
from sandboxd.http.kit.streams import SSE_KEEP_ALIVE_EVENT, ServerSentEvent, sse_response
from sandboxd.http.native.fields import DAY_MS, Env, OptionalPath, Request, Response, seconds
from sandboxd.http.server.stack import TrioResponse
from sandboxd.model import Scope, StreamName
from sandboxd.service.code.values import (
    CodeContext,
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

MAX_CODE = 16 * 1024 * 1024
LANGUAGES: Final = ("python",)
# Field of a result -> MIME type in Jupyter's terms.
REPRESENTATIONS: Final[Mapping[str, str]] = {
    "text": "text/plain",
    "html": "text/html",
    "markdown": "text/markdown",
    "svg": "image/svg+xml",
    "png": "image/png",
    "jpeg": "image/jpeg",
    "pdf": "application/pdf",
    "latex": "text/latex",
    "json": "application/json",
    "javascript": "application/javascript",
}
_BASE64: Final = {"png", "jpeg", "pdf"}

ContextId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


def _known_language(language: str | None) -> str | None:
    if language is not None and language.lower() not in LANGUAGES:
        raise ValueError(f"cannot run {language!r}: the kernels there are speak {', '.join(LANGUAGES)}")
    return language


class RunCode(Request):
    code: Annotated[str, StringConstraints(max_length=MAX_CODE)]
    language: str | None = None
    """python"""
    context_id: ContextId | None = None
    """the default context if not given, which is made when it is first used"""
    env: Env | None = None
    """for this run alone"""
    cwd: OptionalPath | None = None
    """for this run alone"""
    timeout_ms: Annotated[int, Field(ge=1, le=30 * DAY_MS)] | None = None
    """from when its turn has come; then the code is interrupted, and if that does not help, its kernel killed"""

    _language = field_validator("language")(_known_language)

    def to_domain(self) -> CodeSpec:
        return CodeSpec(
            code=self.code,
            context=self.context_id,
            env=self.env or {},
            cwd=self.cwd or None,
            timeout=seconds(self.timeout_ms),
        )


class CreateContext(Request):
    language: str | None = None
    """python"""
    cwd: OptionalPath | None = None
    env: Env | None = None

    _language = field_validator("language")(_known_language)


class ContextView(Response):
    id: str
    language: str
    cwd: str
    busy: bool
    queued: int
    """runs that wait for their turn"""

    @classmethod
    def of(cls, context: CodeContext) -> Self:
        return cls(
            id=context.id, language=context.language, cwd=context.cwd, busy=context.busy, queued=context.queued
        )


class ContextInterrupted(ContextView):
    interrupted: bool
    """whether there was a run to interrupt"""

    @classmethod
    def of(cls, context: CodeContext) -> Self:
        view = ContextView.of(context)
        return cls(interrupted=context.interrupted, **view.model_dump())


class ContextList(Response):
    contexts: list[ContextView]


class ResultView(Response):
    """One value in all its representations; png, jpeg and pdf are base64."""

    # A field cannot be called json: pydantic's models have a method of that name.
    model_config = ConfigDict(frozen=True, serialize_by_alias=True)

    text: str | None = None
    html: str | None = None
    markdown: str | None = None
    svg: str | None = None
    png: str | None = None
    jpeg: str | None = None
    pdf: str | None = None
    latex: str | None = None
    json_: Annotated[JsonValue, Field(alias="json")] = None
    javascript: str | None = None
    extra: dict[str, JsonValue] | None = None
    """representations of other MIME types"""
    is_main_result: bool
    """the value of the last expression, not something displayed on the way"""


class RunErrorView(Response):
    name: str
    value: str
    traceback: str


class RunLogs(Response):
    stdout: list[str]
    stderr: list[str]


class ExecutionView(Response):
    results: list[ResultView]
    logs: RunLogs
    error: RunErrorView | None
    execution_ms: int
    execution_count: int | None
    context_id: str
    truncated: bool
    """output or results were more than the daemon's configuration allows, and cut"""

    @classmethod
    def of(cls, execution: Execution) -> Self:
        error = execution.error
        return cls.model_construct(
            results=[ResultView.model_construct(**result_facts(result)) for result in execution.results],
            logs=RunLogs.model_construct(stdout=execution.stdout, stderr=execution.stderr),
            error=None if error is None else RunErrorView(**error_facts(error)),
            execution_ms=execution.execution_ms,
            execution_count=execution.execution_count,
            context_id=execution.context,
            truncated=execution.truncated,
        )


def result_facts(result: RunResult) -> dict[str, Any]:
    facts: dict[str, Any] = {"is_main_result": result.main}
    rest = dict(result.data)
    for name, mime in REPRESENTATIONS.items():
        value = rest.pop(mime, None)
        if value is not None:
            # Jupyter breaks base64 into lines.
            facts[name] = value.replace("\n", "") if name in _BASE64 else value
    if rest:
        facts["extra"] = rest
    return facts


def error_facts(error: RunError) -> dict[str, str]:
    return {"name": error.name, "value": error.value, "traceback": error.traceback}


def event_facts(event: RunEvent) -> dict[str, Any]:
    """An event of the stream, as its `data`."""
    match event:
        case RunBegun():
            return {"type": "begun", "context_id": event.context}
        case RunCounted():
            return {"type": "execution_count", "execution_count": event.execution_count}
        case RunText():
            return {"type": "stdout" if event.stream is StreamName.STDOUT else "stderr", "text": event.text}
        case RunResult():
            return {"type": "result", "result": result_facts(event)}
        case RunError():
            return {"type": "error", "error": error_facts(event)}
        case RunEnded():
            return {"type": "end", "execution_ms": event.execution_ms, "truncated": event.truncated}


async def run(call: Call) -> JsonResponse:
    body: RunCode = call.body
    execution = await call.service.code.run_to_end(call.entry, body.to_domain())
    value = ExecutionView.of(execution).model_dump(mode="json")
    return small_or_large(value, execution.share.held, share=execution.share)


async def run_stream(call: Call) -> TrioResponse:
    """What can be refused is refused before the stream begins, with a status."""
    body: RunCode = call.body
    await call.service.code.check(call.entry, body.to_domain())
    return sse_response(call.conversation, _stream(call), keep_alive=SSE_KEEP_ALIVE_EVENT)


@trio.as_safe_channel
async def _stream(call: Call) -> AsyncGenerator[ServerSentEvent, None]:
    try:
        async with call.service.code.run(call.entry, call.body.to_domain()) as run:
            while not run.ended:
                yield ServerSentEvent.of(event_facts(await run.receive()))
    except SandboxdError as error:
        failure = RunError(type(error).__name__, error.message, "")
        yield ServerSentEvent.of({**event_facts(failure), "kind": error.kind, "status": error.status})


# -- contexts -----------------------------------------------------------------------------------------------------


async def create_context(call: Call) -> ContextView:
    body: CreateContext = call.body
    made = await call.service.code.create_context(call.entry, cwd=body.cwd or None, env=body.env or {})
    return ContextView.of(made)


async def list_contexts(call: Call) -> ContextList:
    contexts = await call.service.code.contexts(call.entry)
    return ContextList(contexts=[ContextView.of(context) for context in contexts])


async def restart_context(call: Call, context: str) -> ContextView:
    return ContextView.of(await call.service.code.restart_context(call.entry, context))


async def interrupt_context(call: Call, context: str) -> ContextInterrupted:
    return ContextInterrupted.of(await call.service.code.interrupt_context(call.entry, context))


async def delete_context(call: Call, context: str) -> ContextView:
    return ContextView.of(await call.service.code.delete_context(call.entry, context))


READ, WRITE = Scope.READ, Scope.WRITE
SANDBOX = "/v1/sandboxes/<sandbox>"
CONTEXT = f"{SANDBOX}/contexts/<context>"

# fmt: off
CODE_ROUTES = (
    Route(method="POST", path=f"{SANDBOX}/run", handler=run, scope=WRITE,
          body=RunCode, response=ExecutionView, summary="Run code in a kernel that remembers, to its end"),
    Route(method="POST", path=f"{SANDBOX}/run/stream", handler=run_stream, scope=WRITE,
          body=RunCode, streams="sse", summary="Run code and stream its output and results"),
    Route(method="POST", path=f"{SANDBOX}/contexts", handler=create_context, scope=WRITE, optional_body=True,
          body=CreateContext, response=ContextView, status=201, summary="Create a context: a kernel of its own"),
    Route(method="GET", path=f"{SANDBOX}/contexts", handler=list_contexts, scope=READ,
          response=ContextList, summary="List contexts, oldest first"),
    Route(method="POST", path=f"{CONTEXT}/restart", handler=restart_context, scope=WRITE,
          response=ContextView, summary="Give a context a fresh kernel"),
    Route(method="POST", path=f"{CONTEXT}/interrupt", handler=interrupt_context, scope=WRITE,
          response=ContextInterrupted, summary="Interrupt what a context runs now"),
    Route(method="DELETE", path=CONTEXT, handler=delete_context, scope=WRITE,
          response=ContextView, summary="Delete a context and its kernel"),
)
# fmt: on
