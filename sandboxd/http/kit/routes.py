"""Route tables: a path, who may use it, what it takes and gives, and the handler that does it, as one value.

Checking access, reading the query and the body, and rendering the answer happen here, once; a handler gets checked
values and returns a model (or a response of its own for streams).
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import trio
from pydantic import BaseModel
from quart import request, websocket
from quart.wrappers import Response
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.exceptions import HTTPException

from sandboxd.errors import NotFound
from sandboxd.http.kit.auth import Asked, Authorize
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.conversation import Conversation, conversation_of
from sandboxd.http.kit.errors import ErrorFormat, answer_to
from sandboxd.http.kit.large_json import is_large, large_response
from sandboxd.http.kit.validation import validate_arguments, validate_body
from sandboxd.http.kit.websockets import websocket_session
from sandboxd.http.server.connection import HandlerWebsocket, PacedRequest, SandboxdApp
from sandboxd.model import Scope
from sandboxd.service.api import Service

Handler = Callable[..., Awaitable[Any]]
Streams = Literal["sse", "download", "upload", "websocket"]

# Seconds that a client has to begin, before it is told that there is nothing to begin with.
FIRST_WORD = 1.0

# Parameters of a path that are looked up when a call is authorised, and reach the handler as what they name.
_FOUND = frozenset({"sandbox", "snapshot"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One path and method of a dialect."""

    method: str
    path: str
    """in Quart's notation, e.g. /v1/sandboxes/<sandbox>"""
    handler: Handler
    scope: Scope | None
    """what a key must have; None: open to everyone"""
    summary: str
    body: type[BaseModel] | None = None
    optional_body: bool = False
    max_body_bytes: int = 0
    """where a body may be longer than the configuration lets others be"""
    query: type[BaseModel] | None = None
    free_arguments: str | None = None
    """arguments of the query that begin so are left to the handler"""
    response: type[BaseModel] | None = None
    status: int = 200
    streams: Streams | None = None
    """what is more than one JSON value, for the API's description"""


def add_routes(
    app: SandboxdApp, service: Service, routes: tuple[Route, ...], *, authorize: Authorize, errors: ErrorFormat
) -> None:
    """Have the application answer these routes of a dialect, which authorises and says errors in its own way."""
    for route in routes:
        name = f"{route.method} {route.path}".replace(".", "_")
        view = _View(route, service, authorize, errors)
        if route.streams == "websocket":
            app.add_websocket(route.path, name, view.converse)
        else:
            app.add_url_rule(route.path, name, view.answer, methods=[route.method], strict_slashes=True)


def add_error_handlers(app: SandboxdApp, errors: ErrorFormat) -> None:
    """Have the application say what is at none of its routes."""

    async def explain(error: Exception) -> Response:
        return error_response(error, errors)

    app.register_error_handler(HTTPException, explain)
    app.register_error_handler(Exception, explain)


@dataclass(frozen=True, slots=True)
class _View:
    """What answers the requests for one route."""

    route: Route
    service: Service
    authorize: Authorize
    errors: ErrorFormat

    async def answer(self, **parameters: str) -> Response:
        current = cast("PacedRequest", request)
        conversation = conversation_of(current.scope)
        conversation.errors = self.errors
        try:
            return await self._answer(current, conversation, {**conversation.parameters, **parameters})
        except Exception as error:
            return error_response(error, self.errors)

    async def _answer(
        self, current: PacedRequest, conversation: Conversation, parameters: Mapping[str, str]
    ) -> Response:
        route, asked = self.route, self._asked(current, conversation, parameters)
        grant = self.authorize(self.service, asked, route.scope)
        with conversation.unanswered():
            call = Call(
                service=self.service,
                conversation=conversation,
                grant=grant,
                headers=asked.headers,
                arguments=asked.arguments,
                content=current.body,
                query=self._query(asked.arguments),
                body=await self._body(current),
            )
            call.check_again()
            answer: BaseModel | Response = await route.handler(call, **_rest(parameters))
        if isinstance(answer, BaseModel):
            return render(answer, route.status)
        if conversation.revoked:
            conversation.cut()
        return answer

    async def converse(self, **parameters: str) -> Response | None:
        current = cast("HandlerWebsocket", websocket)
        conversation = conversation_of(current.scope)
        conversation.errors = self.errors
        try:
            asked = self._asked(current, conversation, {**conversation.parameters, **parameters})
            call = Call(
                service=self.service,
                conversation=conversation,
                grant=self.authorize(self.service, asked, self.route.scope),
                headers=asked.headers,
                arguments=asked.arguments,
            )
            await self.route.handler(call, **_rest(asked.parameters))
        except NotFound as error:
            # Who may ask is told like anybody else whose websocket ends: browsers show no answer to a handshake. Most
            # clients speak first, and one that finds the connection closed meanwhile may not read why.
            async with websocket_session(conversation) as session:
                with trio.move_on_after(FIRST_WORD):
                    await anext(session, None)
                raise error from None
        except Exception as error:
            if current.accepted:
                raise
            return error_response(error, self.errors)
        return None

    def _asked(
        self, current: BaseRequestWebsocket, conversation: Conversation, parameters: Mapping[str, str]
    ) -> Asked:
        return Asked(
            conversation=conversation,
            headers=current.headers,
            arguments=current.args.to_dict(),
            parameters=parameters,
        )

    def _query(self, arguments: Mapping[str, str]) -> BaseModel | None:
        if self.route.query is None:
            return None
        free = self.route.free_arguments
        checked = {name: value for name, value in arguments.items() if free is None or not name.startswith(free)}
        return validate_arguments(self.route.query, checked)

    async def _body(self, current: PacedRequest) -> BaseModel | None:
        if self.route.body is None:
            return None
        data = await current.body.read(limit=max(self.service.config.http.max_body_bytes, self.route.max_body_bytes))
        if not data and self.route.optional_body:
            data = b"{}"
        return validate_body(self.route.body, data)


def _rest(parameters: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in parameters.items() if name not in _FOUND}


def render(model: BaseModel, status: int = 200) -> Response:
    """A model as a JSON response."""
    if is_large(model):
        return large_response(model.model_dump(mode="json"), status)
    return Response(model.model_dump_json().encode(), status, content_type="application/json")


def error_response(error: Exception, errors: ErrorFormat) -> Response:
    """Whatever was raised as a response, said as the dialect does."""
    answer = answer_to(error, errors)
    return Response(answer.body, answer.status, dict(answer.headers), content_type=answer.content_type)
