"""A dialect: one API that the daemon speaks, as a value.

A package of its own makes it, and one entry in `http/app.py` has it served. It is reached

    by listener    one that is given to it (`dialect` in the configuration) speaks it alone, at its root
    by host        requests that one of `hosts` recognizes are its own, whatever their path
    by path        below its `prefix`; and where listeners are shared, its `shared` routes at their root

in this order. Its `ports` are found before its routes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sandboxd.http.kit.auth import Authorize, by_key
from sandboxd.http.kit.errors import ErrorFormat
from sandboxd.http.kit.ports import PortFinder, PortRequest, Scope
from sandboxd.http.kit.routes import Route

HostFinder = Callable[[Scope], PortRequest | Mapping[str, str] | None]
"""Looks at the head of a request (an ASGI scope) for a host name, or for headers that stand for one. Gives a
request for a port; or, for one of the dialect's own routes, the parameters that the name contains; or None, if it is
not the dialect's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """An API: its routes, how requests reach it, whom it lets in, and how it says errors."""

    name: str
    """by which a listener is given to it"""
    routes: tuple[Route, ...]
    """all of them, as they are at the root of a listener of its own"""
    errors: ErrorFormat
    authorize: Authorize = by_key
    shared: tuple[Route, ...] = ()
    """those that are at the root of shared listeners too, where they must not clash with another dialect's"""
    prefix: str | None = None
    """a regular expression for what is before its paths on shared listeners, e.g. `/akira`"""
    hosts: tuple[HostFinder, ...] = ()
    """the host names that it answers to; the first that recognizes a request counts, over all dialects"""
    ports: tuple[PortFinder, ...] = ()
    """its paths that lead to programs in sandboxes"""
