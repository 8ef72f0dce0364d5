"""A request's way through Quart, cut to what is used here: its route is found, the view called, the answer taken.

Quart's own way also makes an application context and a session for each request, sends six signals and looks for the
hooks of the application and of its blueprints. The daemon has none of these, and a short command would wait for them
nearly as long as for the bytes of its request to be understood.
"""

from types import TracebackType
from typing import Any, Self

from quart.typing import ResponseTypes
from quart.wrappers.base import BaseRequestWebsocket

from sandboxd.http.server.stack import AppContext, MapAdapter, QuartTrio, RequestContext, current_app, current_request


class DirectContext(RequestContext):
    """What `quart.request` and `quart.current_app` stand for while a view runs, and the route that was found."""

    app: "DirectApp"

    async def __aenter__(self) -> Self:
        self._app_token = current_app.set(self.app.standing_context)
        self._request_token = current_request.set(self)
        self.match_request()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        current_request.reset(self._request_token)
        current_app.reset(self._app_token)


class DirectApp(QuartTrio):
    """For requests, signals, sessions and before-, after- and teardown-functions do not work; error handlers do."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.standing_context = AppContext(self)

    def request_context(self, request: Any) -> DirectContext:
        return DirectContext(self, request)

    def create_url_adapter(self, request: BaseRequestWebsocket | None) -> MapAdapter | None:
        """Routes do not depend on the host, which Quart takes apart twice."""
        if request is None:
            return None
        return self.url_map.bind(
            request.host,
            script_name=request.root_path,
            url_scheme=request.scheme,
            default_method=request.method,
            path_info=request.path,
            query_args=request.query_string.decode(),
        )

    async def full_dispatch_request(self, request_context: RequestContext | None = None) -> ResponseTypes:
        try:
            result: Any = await self.dispatch_request(request_context)
        except (Exception, BaseExceptionGroup) as error:
            result = await self.handle_user_exception(error)
        return await self.make_response(result)
