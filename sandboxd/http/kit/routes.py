"""Route tables: a path, who may use it, what it takes and gives, and the handler that does it, as one value.

A dialect is a tuple of these. Reading the query and the body, checking access, and rendering the answer happen here,
once; a handler gets checked values and returns a model (or a response of its own for streams).
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from quart import request, websocket
from quart.wrappers import Response

from sandboxd.errors import InvalidRequest, SandboxdError, Unprocessable
from sandboxd.http.kit import auth
from sandboxd.http.kit.conversation import Conversation, conversation_of
from sandboxd.http.kit.large_json import is_large, large_response
from sandboxd.http.server.connection import SandboxdApp, read_body
from sandboxd.model import ApiKey, Sandbox, Scope, Snapshot
from sandboxd.service.api import Service
from sandboxd.service.sandboxes.entry import Entry

M = TypeVar("M", bound=BaseModel)

Handler = Callable[..., Awaitable[Any]]
Explain = Callable[[Exception], Response]
Streams = Literal["sse", "download", "upload", "websocket"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A checked request, as a handler gets it. Path parameters come as keyword arguments beside it."""

    service: Service
    caller: ApiKey | None
    """the key that was used; None for an administrator on the Unix socket"""
    conversation: Conversation
    found: auth.Found
    """what the path names"""
    body: Any = None
    query: Any = None

    @property
    def entry(self) -> Entry:
        """The sandbox that the path names, found when the call was authorised; it may have been deleted since."""
        assert self.found.entry is not None, "the route's path names no sandbox"
        return self.found.entry

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot that the path names, found when the call was authorised; it may have been deleted since."""
        assert self.found.snapshot is not None, "the route's path names no snapshot"
        return self.found.snapshot

    @property
    def owner(self) -> str | None:
        """Whose what is created now is."""
        return None if self.caller is None else self.caller.id

    def find_sandbox(self, name: str) -> Entry:
        """The sandbox that a body or a query names, by id or name. Raises: NotFound, for another's too."""
        return auth.find_sandbox(self.service, self.caller, name)

    def find_snapshot(self, name: str) -> Snapshot:
        """As find_sandbox(), for snapshots."""
        return auth.find_snapshot(self.service, self.caller, name)

    def check_again(self) -> None:
        """Once a client has been waited for: that what the path names is here still. Raises: NotFound."""
        if self.found.entry is not None:
            self.service.sandboxes.check_present(self.found.entry)
        if self.found.snapshot is not None:
            self.service.snapshots.layers.check_present(self.found.snapshot)

    def sees(self, of: Sandbox | Snapshot) -> bool:
        """Whether this is there for the caller, or another's."""
        return auth.sees(self.caller, of.spec.owner)

    @property
    def sees_all(self) -> bool:
        """Whether the caller sees what others have created."""
        return auth.sees(self.caller, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
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
    response: type[BaseModel] | None = None
    status: int = 200
    streams: Streams | None = None
    """what is more than one JSON value, for the API's description"""


def add_routes(
    app: SandboxdApp, service: Service, routes: tuple[Route, ...], *, explain: Explain | None = None
) -> None:
    """`explain` makes a dialect's answer of an error; without it the application's own is given."""
    for route in routes:
        name = f"{route.method} {route.path}".replace(".", "_")
        if route.streams == "websocket":
            app.add_websocket(route.path, name, _websocket_view(route, service))
        else:
            view = _view(route, service) if explain is None else _explained(_view(route, service), explain)
            app.add_url_rule(route.path, name, view, methods=[route.method], strict_slashes=True)


def _explained(view: Handler, explain: Explain) -> Handler:
    async def explained(**parameters: str) -> Response:
        try:
            answer: Response = await view(**parameters)
        except Exception as error:
            return explain(error)
        return answer

    return explained


def _view(route: Route, service: Service) -> Handler:
    async def view(**parameters: str) -> Response:
        conversation = conversation_of(request.scope)
        caller = auth.authorize_request(conversation, service.keys, route.scope)
        found = auth.find(service, caller, parameters)
        with conversation.unanswered():
            call = Call(
                service=service,
                caller=caller,
                conversation=conversation,
                found=found,
                query=_query(route),
                body=await _body(route, service),
            )
            call.check_again()
            answer: BaseModel | Response = await route.handler(call, **parameters)
        if isinstance(answer, BaseModel):
            return render(answer, route.status)
        if conversation.revoked:
            conversation.cut()
        return answer

    return view


def _websocket_view(route: Route, service: Service) -> Handler:
    async def view(**parameters: str) -> None:
        conversation = conversation_of(websocket.scope)
        caller = auth.authorize_websocket(conversation, service.keys, route.scope)
        found = auth.find(service, caller, parameters)
        call = Call(service=service, caller=caller, conversation=conversation, found=found)
        await route.handler(call, **parameters)

    return view


def render(model: BaseModel, status: int = 200) -> Response:
    if is_large(model):
        return large_response(model.model_dump(mode="json"), status)
    return Response(model.model_dump_json().encode(), status, content_type="application/json")


def _query(route: Route) -> BaseModel | None:
    model = route.query
    if model is None:
        return None
    given = {name: value for name, value in request.args.items() if not name.startswith("metadata.")}
    return _validate(lambda: model.model_validate(given), "the query")


async def _body(route: Route, service: Service) -> BaseModel | None:
    if route.body is None:
        return None
    data = await read_body(limit=max(service.config.http.max_body_bytes, route.max_body_bytes))
    if not data and route.optional_body:
        data = b"{}"
    model = route.body
    return _validate(lambda: model.model_validate_json(data), "the request body")


def validate_message(model: type[M], data: str | bytes) -> M:
    """A websocket message as a model. Raises: InvalidRequest, Unprocessable."""
    return _validate(lambda: model.model_validate_json(data), "the message")


def _validate(validate: Callable[[], M], what: str) -> M:
    try:
        return validate()
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors(include_url=False, include_context=False)]
        malformed = any(item["type"] == "json_invalid" for item in error.errors())
        kind: type[SandboxdError] = InvalidRequest if malformed else Unprocessable
        summary = "; ".join(f"{problem['field']}: {problem['problem']}" for problem in problems[:5])
        raise kind(f"cannot use {what}: {summary}", kind="invalid_request", problems=problems[:20]) from error


def _problem(item: Any) -> dict[str, str]:
    field = ".".join(str(part)[:100] for part in item["loc"]) or "(whole)"
    return {"field": field, "problem": "unknown field" if item["type"] == "extra_forbidden" else item["msg"]}
