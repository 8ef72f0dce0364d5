"""Running code in a kernel that remembers: to its end, as a stream, and the contexts it runs in."""

from collections.abc import AsyncGenerator

import trio
from quart.wrappers import Response

from sandboxd.errors import SandboxdError
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.large_json import small_or_large
from sandboxd.http.kit.streams import SSE_KEEP_ALIVE_EVENT, ServerSentEvent, sse_response
from sandboxd.http.native.code.schemas import (
    ContextInterrupted,
    ContextList,
    ContextView,
    CreateContext,
    ExecutionView,
    RunCode,
    event_facts,
)
from sandboxd.http.server.stack import TrioResponse
from sandboxd.service.code.values import (
    RunError,
)


async def run(call: Call) -> Response | TrioResponse:
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
