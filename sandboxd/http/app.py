"""The application: every request and websocket goes to the dialect that it is meant for.

    listener → host name → path prefix → the root that dialects share

Each step gives the dialect, and the rest of the path to look up among its ports and then among its routes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Final, cast
from urllib.parse import unquote

from sandboxd.http.akira import dialect as akira
from sandboxd.http.kit.conversation import conversation_of, conversing
from sandboxd.http.kit.dialect import Dialect
from sandboxd.http.kit.ports import PortRequest, origin_form
from sandboxd.http.kit.routes import Route, add_error_handlers, add_routes
from sandboxd.http.native import dialect as native
from sandboxd.http.proxy.application import PortProxy
from sandboxd.http.server.connection import SandboxdApp
from sandboxd.http.server.peer import dialect_of
from sandboxd.http.server.stack import ASGIFramework
from sandboxd.service.api import Service

DIALECTS: Final[Mapping[str, Callable[[Service], Dialect]]] = {"native": native.make, "akira": akira.make}
"""What makes each dialect, by the name with which a listener is given to it. The first one says what is nobody's."""

Scope = Mapping[str, Any]


def build_app(service: Service) -> ASGIFramework:
    """What is served: all dialects, each where it is to be found."""
    dialects = tuple(make(service) for make in DIALECTS.values())
    return conversing(cast("ASGIFramework", Switch(service, dialects)), errors=dialects[0].errors)


class Switch:
    """An ASGI application before those of the dialects, which chooses among them."""

    def __init__(self, service: Service, dialects: tuple[Dialect, ...]) -> None:
        self._proxy = PortProxy(service)
        self._own = {each.name: _Place(service, each, (each, each.routes)) for each in dialects}
        self._shared = _Place(service, dialects[0], *((each, each.shared) for each in dialects))
        self._prefixes = tuple(
            (re.compile(f"({each.prefix})(?:/.*)?", re.DOTALL), self._own[each.name])
            for each in dialects
            if each.prefix is not None
        )

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer one request or websocket."""
        place, claim, rest = self._find(scope)
        conversation = conversation_of(scope)
        conversation.errors = place.dialect.errors
        if isinstance(claim, PortRequest):
            await self._proxy.answer(claim, rest, receive, send)
        else:
            conversation.parameters = claim
            await place.app(cast("Any", rest), receive, send)

    def _find(self, scope: Scope) -> tuple["_Place", PortRequest | Mapping[str, str], Scope]:
        """Whose it is; the port that it is for, or what its host name says; and the scope, its prefix taken off."""
        given = dialect_of(scope)
        candidates = self._own.values() if given is None else (self._own[given],)
        for place in candidates:
            for by_host in place.dialect.hosts:
                if (claim := by_host(scope)) is not None:
                    return place, claim, scope
        place, prefix = (self._own[given], "") if given is not None else self._by_path(scope)
        rest = _without(prefix, scope)
        for by_path in place.dialect.ports:
            if (wanted := by_path(rest)) is not None:
                return place, replace(wanted, prefix=prefix + (wanted.prefix or "")), rest
        return place, {}, rest

    def _by_path(self, scope: Scope) -> tuple["_Place", str]:
        path = origin_form(scope["raw_path"]).decode("latin-1")
        for pattern, place in self._prefixes:
            if (match := pattern.fullmatch(path)) is not None:
                return place, match[1]
        return self._shared, ""


class _Place:
    """Where routes of dialects are at the root, and which of the dialects says that there is nothing.

    Its application is made when it is first asked: few daemons have a listener for each dialect.
    """

    def __init__(self, service: Service, dialect: Dialect, *tables: tuple[Dialect, tuple[Route, ...]]) -> None:
        self.dialect = dialect
        self._service = service
        self._tables = tables

    @cached_property
    def app(self) -> ASGIFramework:
        """What answers the requests for these routes."""
        app = SandboxdApp(self.dialect.name)
        app.config["BODY_TIMEOUT"] = self._service.config.http.body_idle_timeout
        # A path with two slashes would be redirected to one without, on whatever host the client has named.
        app.url_map.merge_slashes = False
        for dialect, routes in self._tables:
            add_routes(app, self._service, routes, authorize=dialect.authorize, errors=dialect.errors)
        add_error_handlers(app, self.dialect.errors)
        return cast("ASGIFramework", app)


def _without(prefix: str, scope: Scope) -> Scope:
    """The scope as it is for who knows nothing of the prefix."""
    if not prefix:
        return scope
    raw = origin_form(scope["raw_path"])[len(prefix) :] or b"/"
    return {**scope, "raw_path": raw, "path": unquote(raw.decode("latin-1"))}
