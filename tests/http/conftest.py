from typing import Any

import pytest
import quart
import trio

from sandboxd.http.server.connection import SandboxdApp
from sandboxd.http.server.peer import dialect_of, peer_of


@pytest.fixture
def app() -> Any:
    app: Any = SandboxdApp("serving")
    app.entered = trio.Event()
    app.left = trio.Event()
    app.release = trio.Event()

    @app.get("/ok")
    async def ok() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/who")
    async def who() -> dict[str, Any]:
        peer = peer_of(quart.request.scope)
        credentials = peer.credentials
        return {
            "listener": peer.listener,
            "dialect": dialect_of(quart.request.scope),
            "address": peer.address,
            "ids": credentials and [credentials.pid, credentials.uid, credentials.gid],
        }

    @app.post("/echo")
    async def echo() -> bytes:
        return b"".join([chunk async for chunk in quart.request.body])

    @app.post("/relay")
    async def relay() -> Any:
        async def body() -> Any:
            async for chunk in source:
                yield chunk

        source = quart.request.body
        return await quart.make_response(body())

    @app.get("/held")
    async def held() -> str:
        app.entered.set()
        try:
            await app.release.wait()
        finally:
            app.left.set()
        return "released"

    @app.post("/held-upload")
    async def held_upload() -> str:
        return await held()

    @app.get("/failing")
    async def failing() -> str:
        raise RuntimeError("boom")

    @app.get("/half-failing")
    async def half_failing() -> Any:
        async def body() -> Any:
            yield b"first half"
            raise RuntimeError("boom")

        return await quart.make_response(body())

    @app.websocket("/ws")
    async def ws() -> None:
        await quart.websocket.accept()
        while True:
            await quart.websocket.send(await quart.websocket.receive())

    return app
