"""The client's methods for code in kernels that remember."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

from sandboxd.client.calls import Caller, SandboxRef, drop_none, sandbox_path
from sandboxd.client.errors import ApiError
from sandboxd.client.models import Json, Model
from sandboxd.client.streams import Messages


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeResult(Model):
    """A value in all its representations, or something displayed on the way; png, jpeg and pdf are base64."""

    is_main_result: bool = False
    """the value of the last expression"""
    text: str | None = None
    html: str | None = None
    markdown: str | None = None
    svg: str | None = None
    png: str | None = None
    jpeg: str | None = None
    pdf: str | None = None
    latex: str | None = None
    json: Any = None
    javascript: str | None = None
    extra: Json | None = None
    """other representations by MIME type"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeError(Model):
    """What the code raised; or KernelDied, ExecutionTimeout when it never came to an end."""

    name: str
    value: str = ""
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Logs(Model):
    stdout: tuple[str, ...] = field(default=(), metadata={"read": tuple})
    stderr: tuple[str, ...] = field(default=(), metadata={"read": tuple})


def _results(raw: list[Json]) -> tuple[CodeResult, ...]:
    return tuple(CodeResult.read(item) for item in raw)


def _error(raw: Json | None) -> CodeError | None:
    return None if raw is None else CodeError.read(raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution(Model):
    """A run to its end."""

    results: tuple[CodeResult, ...] = field(default=(), metadata={"read": _results})
    logs: Logs = field(default_factory=Logs, metadata={"read": Logs.read})
    error: CodeError | None = field(default=None, metadata={"read": _error})
    execution_ms: int = 0
    execution_count: int | None = None
    context_id: str = ""
    truncated: bool = False

    @property
    def text(self) -> str | None:
        """Of the last expression's value."""
        return next((result.text for result in self.results if result.is_main_result), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeContext(Model):
    id: str
    language: str = ""
    cwd: str = ""
    busy: bool = False
    queued: int = 0
    interrupted: bool = False
    """whether `interrupt_context` found a run to interrupt"""


@dataclass(frozen=True, slots=True)
class CodeBegun:
    """Its turn in the context has come."""

    context_id: str


@dataclass(frozen=True, slots=True)
class CodeOutput:
    stream: Literal["stdout", "stderr"]
    text: str


@dataclass(frozen=True, slots=True)
class CodeEnded:
    execution_ms: int
    truncated: bool


CodeEvent = CodeBegun | CodeOutput | CodeResult | CodeError | CodeEnded


class CodeMethods(Caller):
    """Code runs in a context: a kernel that keeps its variables from one run to the next."""

    async def run_code(
        self,
        sandbox: SandboxRef,
        code: str,
        *,
        context: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout_ms: int | None = None,
    ) -> Execution:
        """Run code to its end, in the default context unless another is named. Code that fails is a result."""
        body = drop_none(code=code, context_id=context, env=env, cwd=cwd, timeout_ms=timeout_ms)
        return Execution.read(await self._call("POST", sandbox_path(sandbox, "run"), body))

    @asynccontextmanager
    async def run_code_stream(
        self,
        sandbox: SandboxRef,
        code: str,
        *,
        context: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout_ms: int | None = None,
    ) -> AsyncIterator[AsyncIterator[CodeEvent]]:
        """Run code and get what it says as it comes; leaving the context early interrupts it."""
        fields = drop_none(code=code, context_id=context, env=env, cwd=cwd, timeout_ms=timeout_ms)
        body = json.dumps(fields).encode()
        async with self._follow("POST", sandbox_path(sandbox, "run/stream"), body) as answer:
            yield Messages[CodeEvent](answer, _event)

    async def contexts(self, sandbox: SandboxRef) -> list[CodeContext]:
        """Oldest first."""
        answer = await self._call("GET", sandbox_path(sandbox, "contexts"))
        return [CodeContext.read(raw) for raw in answer["contexts"]]

    async def create_context(
        self, sandbox: SandboxRef, *, cwd: str | None = None, env: Mapping[str, str] | None = None
    ) -> CodeContext:
        return CodeContext.read(
            await self._call("POST", sandbox_path(sandbox, "contexts"), drop_none(cwd=cwd, env=env))
        )

    async def restart_context(self, sandbox: SandboxRef, context: str) -> CodeContext:
        """Give it a fresh kernel: its variables are gone."""
        return await self._change("POST", sandbox, context, "/restart")

    async def interrupt_context(self, sandbox: SandboxRef, context: str) -> CodeContext:
        """A KeyboardInterrupt in what it runs now."""
        return await self._change("POST", sandbox, context, "/interrupt")

    async def delete_context(self, sandbox: SandboxRef, context: str) -> None:
        await self._change("DELETE", sandbox, context, "")

    async def _change(self, method: str, sandbox: SandboxRef, context: str, operation: str) -> CodeContext:
        path = sandbox_path(sandbox, f"contexts/{quote(context, safe='')}{operation}")
        return CodeContext.read(await self._call(method, path))


def _event(_: str, data: dict[str, Any]) -> CodeEvent | None:
    match data["type"]:
        case "begun":
            return CodeBegun(data["context_id"])
        case "stdout" | "stderr" as stream:
            return CodeOutput(stream, data["text"])
        case "result":
            return CodeResult.read(data["result"])
        case "error":
            return _failure(data)
        case "end":
            return CodeEnded(data["execution_ms"], data["truncated"])
    return None


def _failure(data: dict[str, Any]) -> CodeError:
    """Raises: ApiError when it was not the code that failed."""
    error = CodeError.read(data["error"])
    if "status" in data:
        raise ApiError(data["status"], str(data["kind"]), error.value)
    return error
