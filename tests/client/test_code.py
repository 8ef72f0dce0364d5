"""The client's methods for code, once each, against the daemon."""

from collections.abc import Iterator

import pytest
import trio

from sandboxd.client import ApiError, AsyncClient, CodeEnded, CodeError, CodeOutput, CodeResult
from tests.support.coding import IMAGE
from tests.support.daemon import Daemon


@pytest.fixture
def sandbox(root_daemon: Daemon) -> Iterator[str]:
    yield root_daemon.create(image=IMAGE)
    root_daemon.delete_all()


# Output has `end=''` where its pieces are counted: print() writes the end of a line by itself, perhaps much later.


async def test_code_and_contexts(client: AsyncClient, sandbox: str) -> None:
    execution = await client.run_code(
        sandbox, "import os\nprint('out\\n', end='')\nx = os.environ['A']\nx", env={"A": "1"}, cwd="/"
    )
    assert (execution.text, execution.logs.stdout, execution.error) == ("'1'", ("out\n",), None)
    context = await client.create_context(sandbox, cwd="/tmp", env={"B": "2"})
    failed = await client.run_code(sandbox, "x", context=context.id)
    assert failed.error is not None
    assert (failed.error.name, failed.context_id, failed.text) == ("NameError", context.id, None)
    assert [each.id for each in await client.contexts(sandbox)] == ["default", context.id]
    assert not (await client.interrupt_context(sandbox, context.id)).interrupted
    assert (await client.restart_context(sandbox, "default")).id == "default"
    await client.delete_context(sandbox, context.id)
    assert [each.id for each in await client.contexts(sandbox)] == ["default"]


async def test_a_stream_and_its_end(client: AsyncClient, sandbox: str) -> None:
    async with client.run_code_stream(sandbox, "print('out\\n', end='')\nraise ValueError('no')\n") as events:
        seen = [event async for event in events]
    kinds = [type(event) for event in seen]
    assert kinds[1:] == [CodeOutput, CodeError, CodeEnded]
    async with client.run_code_stream(sandbox, "6 * 7", timeout_ms=20_000) as events:
        results = [event.text async for event in events if isinstance(event, CodeResult)]
    assert results == ["42"]
    with pytest.raises(ApiError) as caught:
        async with client.run_code_stream(sandbox, "1", context="nope") as events:
            await anext(events)
    assert (caught.value.status, caught.value.kind) == (404, "unknown_context")


async def test_a_stream_whose_sandbox_goes_is_an_api_error(client: AsyncClient, sandbox: str) -> None:
    async def listen() -> None:
        async with client.run_code_stream(sandbox, "print('up', end='', flush=True)\nwhile True: pass") as events:
            async for event in events:
                if isinstance(event, CodeOutput):
                    await client.delete(sandbox)

    with pytest.raises(ApiError) as caught, trio.fail_after(60):
        await listen()
    assert (caught.value.status, caught.value.kind) == (410, "sandbox_lost")
