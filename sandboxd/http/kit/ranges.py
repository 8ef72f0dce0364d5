"""Conditional and partial GETs of something that has a size and a version (RFC 9110), without I/O.

One range is served; several at once get the whole, as the RFC allows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from werkzeug.datastructures import Headers
from werkzeug.http import http_date, parse_etags, parse_if_range_header, parse_range_header


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to answer: 200, 206, 304 or 416, these headers, and `length` bytes from `offset`."""

    status: int
    headers: Mapping[str, str]
    offset: int = 0
    length: int = 0

    @property
    def has_body(self) -> bool:
        return self.status in {200, 206}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    size: int
    version: str
    """changes with the content: the strong ETag without its quotes"""
    modified: float
    """seconds since the epoch"""
    ranges: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)


def plan(resource: Resource, request: Headers) -> Plan:
    """The answer to a GET or HEAD with these request headers."""
    headers = {
        **resource.headers,
        "etag": f'"{resource.version}"',
        "last-modified": http_date(resource.modified),
        "accept-ranges": "bytes" if resource.ranges else "none",
    }
    if parse_etags(request.get("If-None-Match")).contains_weak(resource.version):
        return Plan(status=304, headers=headers)
    asked = _asked_range(resource, request)
    if asked is None:
        return Plan(status=200, headers=headers, length=resource.size)
    start, stop = asked
    if start >= stop:
        return Plan(status=416, headers={**headers, "content-range": f"bytes */{resource.size}"})
    headers["content-range"] = f"bytes {start}-{stop - 1}/{resource.size}"
    return Plan(status=206, headers=headers, offset=start, length=stop - start)


def _asked_range(resource: Resource, request: Headers) -> tuple[int, int] | None:
    """First byte and the one after the last, or None for the whole; an empty range cannot be satisfied."""
    given = request.get("Range")
    if given is None or not resource.ranges or not _if_range(resource, request):
        return None
    parsed = parse_range_header(given)
    if parsed is None or parsed.units != "bytes" or len(parsed.ranges) != 1:
        return None
    start, stop = parsed.ranges[0]
    if start < 0:  # the last bytes
        return max(0, resource.size + start), resource.size
    return start, resource.size if stop is None else min(stop, resource.size)


def _if_range(resource: Resource, request: Headers) -> bool:
    """Only a strong ETag will do: a date says too little about a file that is being written."""
    value = request.get("If-Range")
    return value is None or (not value.startswith("W/") and parse_if_range_header(value).etag == resource.version)
