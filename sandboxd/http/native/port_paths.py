"""Requests below /v1/sandboxes/{sandbox}/ports/{port}/, which go to the program that listens on that port."""

import re
from urllib.parse import unquote_to_bytes

from sandboxd.http.kit.ports import PortRequest, Scope

_PATH = re.compile(rb"(/v1/sandboxes/([^/]+)/ports/([0-9]{1,5}))(/.*)?", re.DOTALL)


def by_path(scope: Scope) -> PortRequest | None:
    """A request for a port by its path; None for one of the API."""
    match = _PATH.fullmatch(scope["raw_path"])
    if match is None or (match[4] is None and _is_api(scope)):
        return None
    return PortRequest(
        sandbox=unquote_to_bytes(match[2]).decode("utf-8", "replace"),
        port=int(match[3]),
        path=match[4] or b"",
        query=scope["query_string"],
        prefix=match[1].decode("ascii"),
    )


def _is_api(scope: Scope) -> bool:
    """Without a slash behind the port it is a path of the API, unless somebody wants to look at it."""
    return scope["type"] != "http" or scope["method"] not in ("GET", "HEAD")
