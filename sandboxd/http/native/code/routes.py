"""The paths of /v1 that run code in kernels, a part of the table in routes.py."""

from sandboxd.http.kit.routes import Route
from sandboxd.http.native.code import handlers
from sandboxd.http.native.code.schemas import (
    ContextInterrupted,
    ContextList,
    ContextView,
    CreateContext,
    ExecutionView,
    RunCode,
)
from sandboxd.model import Scope

READ, WRITE = Scope.READ, Scope.WRITE
SANDBOX = "/v1/sandboxes/<sandbox>"
CONTEXT = f"{SANDBOX}/contexts/<context>"

# fmt: off
CODE_ROUTES = (
    Route(method="POST", path=f"{SANDBOX}/run", handler=handlers.run, scope=WRITE,
          body=RunCode, response=ExecutionView, summary="Run code in a kernel that remembers, to its end"),
    Route(method="POST", path=f"{SANDBOX}/run/stream", handler=handlers.run_stream, scope=WRITE,
          body=RunCode, streams="sse", summary="Run code and stream its output and results"),
    Route(method="POST", path=f"{SANDBOX}/contexts", handler=handlers.create_context, scope=WRITE, optional_body=True,
          body=CreateContext, response=ContextView, status=201, summary="Create a context: a kernel of its own"),
    Route(method="GET", path=f"{SANDBOX}/contexts", handler=handlers.list_contexts, scope=READ,
          response=ContextList, summary="List contexts, oldest first"),
    Route(method="POST", path=f"{CONTEXT}/restart", handler=handlers.restart_context, scope=WRITE,
          response=ContextView, summary="Give a context a fresh kernel"),
    Route(method="POST", path=f"{CONTEXT}/interrupt", handler=handlers.interrupt_context, scope=WRITE,
          response=ContextInterrupted, summary="Interrupt what a context runs now"),
    Route(method="DELETE", path=CONTEXT, handler=handlers.delete_context, scope=WRITE,
          response=ContextView, summary="Delete a context and its kernel"),
)
# fmt: on
