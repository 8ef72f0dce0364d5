"""The native API: every path of /v1, who may use it, and what does it; each capability has its own table."""

from sandboxd.http.native import manual, openapi
from sandboxd.http.native.code import CODE_ROUTES
from sandboxd.http.native.commands.routes import COMMAND_ROUTES
from sandboxd.http.native.daemon import DAEMON_ROUTES
from sandboxd.http.native.events import EVENT_ROUTES
from sandboxd.http.native.files.routes import FILE_ROUTES
from sandboxd.http.native.images import IMAGE_ROUTES
from sandboxd.http.native.keys import KEY_ROUTES
from sandboxd.http.native.log import LOG_ROUTES
from sandboxd.http.native.ports import PORT_ROUTES
from sandboxd.http.native.sandboxes import SANDBOX_ROUTES
from sandboxd.http.native.snapshots import SNAPSHOT_ROUTES
from sandboxd.http.native.watches import WATCH_ROUTES

API = (
    *DAEMON_ROUTES,
    *SANDBOX_ROUTES,
    *COMMAND_ROUTES,
    *FILE_ROUTES,
    *CODE_ROUTES,
    *WATCH_ROUTES,
    *PORT_ROUTES,
    *SNAPSHOT_ROUTES,
    *EVENT_ROUTES,
    *LOG_ROUTES,
    *IMAGE_ROUTES,
    *KEY_ROUTES,
)
"""What the API's own description tells of."""

ROUTES = (*API, *openapi.routes(API), *manual.ROUTES)
