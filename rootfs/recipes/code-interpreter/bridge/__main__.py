"""The bridge between sandboxd and the kernels: inside the sandbox, as root, for as long as the sandbox lives.

    python3 -I code-bridge --user NAME --cwd DIRECTORY --ready COUNT

It prints "ready" when it listens. One connection is one request: a line of JSON with an `op`; the answer is lines of
JSON with a `type`, and the end of the connection. Whoever closes a connection early no longer wants what it asked
for: a run is interrupted.

    op            more                                         answer
    run           code context env cwd timeout output results  begun, then count stdout stderr result error, then end
    list                                                       contexts
    create        cwd env                                      context
    get restart interrupt delete   context                     context
    (any)                                                      refused: kind, message
"""

import argparse
import asyncio
import contextlib
import json
import os
import pwd
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contexts import DEFAULT, Contexts, Refused, RunRequest
from forking import Account, KernelFailed
from outbox import Outbox, encode
from pool import KernelPool

DIRECTORY = Path("/run/sandboxd-code")
SOCKET = "bridge"
MAX_REQUEST = 128 * 1024 * 1024


def account_of(user: str) -> Account:
    """Whoever sandbox-init would start a command as: a name or a number of the sandbox, root by default."""
    name, _, group = (user or "root").partition(":")
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError:
        if not name.isdecimal():
            raise SystemExit(f"cannot run code as {name}: the sandbox has no such user") from None
        entry = pwd.struct_passwd((name, "", int(name), int(name), "", "/", "/bin/sh"))
    gid = int(group) if group.isdecimal() else entry.pw_gid
    own = {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name, "SHELL": entry.pw_shell}
    groups = tuple(os.getgrouplist(entry.pw_name, gid))
    return Account(entry.pw_uid, gid, groups, {**os.environ, **own})


class Bridge:
    def __init__(self, contexts: Contexts) -> None:
        self._contexts = contexts

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError):
            request = json.loads(await reader.readline())
            work = asyncio.create_task(self._answer(request, writer))
            left = asyncio.create_task(reader.read(1))
            await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
            for task in (work, left):
                task.cancel()
            await asyncio.wait({work, left})
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()

    async def _answer(self, request: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
        try:
            if request["op"] == "run":
                await self._run(request, writer)
            else:
                writer.write(encode(await self._manage(request)))
        except Refused as error:
            writer.write(encode({"type": "refused", "kind": error.kind, "message": str(error)}))
        except KernelFailed as error:
            writer.write(encode({"type": "refused", "kind": "kernel_failed", "message": str(error)}))

    async def _run(self, request: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
        outbox = Outbox(writer.write, output=request["output"], results=request["results"])
        context = self._contexts.get(request.get("context") or DEFAULT)
        wish = RunRequest(request["code"], request.get("env") or {}, request.get("cwd"), request.get("timeout"))
        await context.run(wish, outbox)

    async def _manage(self, request: Mapping[str, Any]) -> dict[str, Any]:
        contexts, operation = self._contexts, request["op"]
        if operation == "list":
            return {"type": "contexts", "contexts": [context.view() for context in contexts.list()]}
        if operation == "create":
            return {"type": "context", **contexts.create(request.get("cwd"), request.get("env") or {}).view()}
        identity = request["context"]
        if operation in {"get", "interrupt"}:
            context = contexts.get(identity)
            interrupted = operation == "interrupt" and await context.interrupt()
            return {"type": "context", "interrupted": interrupted, **context.view()}
        change = {"restart": contexts.restart, "delete": contexts.delete}[operation]
        return {"type": "context", **(await change(identity)).view()}


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--user", default="")
    parser.add_argument("--cwd", default="")
    parser.add_argument("--ready", type=int, default=0)
    options = parser.parse_args()
    account = account_of(options.user)
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    os.mkdir(DIRECTORY, mode=0o755)
    pool = KernelPool(DIRECTORY, account, options.ready)
    pool.refill()
    bridge = Bridge(Contexts(pool, options.cwd or account.env["HOME"]))
    os.umask(0o077)
    server = await asyncio.start_unix_server(bridge.serve, DIRECTORY / SOCKET, limit=MAX_REQUEST)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
