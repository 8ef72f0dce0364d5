"""The application: every dialect's routes on one Quart app, and one place where errors become answers."""

import logging
from typing import Any, cast

from quart.wrappers import Response
from werkzeug.exceptions import HTTPException

from sandboxd.errors import SandboxdError
from sandboxd.http.akira import errors as akira_errors
from sandboxd.http.akira import routes as akira
from sandboxd.http.kit.conversation import conversing
from sandboxd.http.kit.routes import add_routes, render
from sandboxd.http.native.fields import ErrorBody
from sandboxd.http.native.routes import ROUTES
from sandboxd.http.proxy.application import PortProxy
from sandboxd.http.proxy.routes import by_host, by_path
from sandboxd.http.server.connection import SandboxdApp
from sandboxd.http.server.stack import ASGIFramework
from sandboxd.service.api import Service

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 1
_HINTS = {
    404: "there is nothing at this path; GET /v1/docs lists what there is",
    405: "this path does not take that method",
    408: "the request's body stopped coming",
    413: "the request's body is too large",
}


DIALECTS = frozenset({"native", "akira"})
"""the names by which a listener can be given to one dialect"""


def build_app(service: Service) -> ASGIFramework:
    app = SandboxdApp("sandboxd")
    app.config["BODY_TIMEOUT"] = service.config.http.body_idle_timeout
    add_routes(app, service, ROUTES)
    add_routes(app, service, akira.ROUTES, explain=akira_errors.explain)
    app.register_error_handler(SandboxdError, _domain_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _bug)
    proxy = PortProxy(cast("ASGIFramework", app), service, (by_host(service.ports.names.domain), by_path))
    return conversing(proxy)


def error_response(status: int, message: str, kind: str, details: dict[str, Any]) -> Response:
    response = render(ErrorBody(error=message, kind=kind, details=details), status)
    if status == 401:
        response.headers["www-authenticate"] = 'Bearer realm="sandboxd"'
    if status in {429, 503}:
        response.headers["retry-after"] = str(details.get("retry_after", RETRY_AFTER_SECONDS))
    return response


async def _domain_error(error: SandboxdError) -> Response:
    if error.status >= 500 and error.status != 503:
        log.error("%s %s", error.message, error.facts)
    return error_response(error.status, error.message, error.kind, error.facts)


async def _http_error(error: HTTPException) -> Response:
    status = error.code or 500
    kind = error.name.lower().replace(" ", "_")
    response = error_response(status, f"cannot serve this: {_HINTS.get(status, error.description)}", kind, {})
    for name, value in error.get_headers():
        if name.lower() == "allow":
            response.headers[name] = value
    return response


async def _bug(error: Exception) -> Response:
    """A 5xx that is our own fault: the log has the traceback, the client a short word."""
    log.error("request failed", exc_info=error)
    return error_response(500, "cannot serve this: the daemon failed, its log says why", "internal", {})
