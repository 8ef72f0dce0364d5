"""The routes of ports: a part of the table in routes.py. HTTP for a port itself passes through http/proxy/."""

from sandboxd.http.kit.routes import Route
from sandboxd.http.native.ports import handlers
from sandboxd.http.native.ports.schemas import ConcealedPort, ExposePort, NewlyExposedPort, PortList
from sandboxd.model import Scope

READ, WRITE = Scope.READ, Scope.WRITE
SANDBOX = "/v1/sandboxes/<sandbox>"

# fmt: off
PORT_ROUTES = (
    Route(method="POST", path=f"{SANDBOX}/expose", handler=handlers.expose, scope=WRITE,
          body=ExposePort, response=NewlyExposedPort, summary="Give a port a URL"),
    Route(method="DELETE", path=f"{SANDBOX}/expose/<port>", handler=handlers.conceal, scope=WRITE,
          response=ConcealedPort, summary="Take a port's URL away"),
    Route(method="GET", path=f"{SANDBOX}/ports", handler=handlers.list_all, scope=READ,
          response=PortList, summary="What listens inside, and what is exposed"),
    Route(method="GET", path=f"{SANDBOX}/tcp/<port>", handler=handlers.stream, scope=WRITE,
          streams="websocket", summary="A byte stream to a port, any protocol"),
)
# fmt: on
