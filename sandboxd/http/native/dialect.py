"""The native API as a dialect: at the root of every listener that is not given to another one."""

from sandboxd.http.kit.dialect import Dialect
from sandboxd.http.kit.ports import by_host
from sandboxd.http.native.errors import ERRORS
from sandboxd.http.native.port_paths import by_path
from sandboxd.http.native.routes import ROUTES
from sandboxd.service.api import Service


def make(service: Service) -> Dialect:
    """The native API, and with it the host names of exposed ports."""
    return Dialect(
        name="native",
        routes=ROUTES,
        shared=ROUTES,
        errors=ERRORS,
        hosts=(by_host(service.ports.names.domain),),
        ports=(by_path,),
    )
