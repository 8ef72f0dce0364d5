"""A request as a handler gets it: authorised, its query and body checked, what its path names found."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from werkzeug.datastructures import Headers, MIMEAccept
from werkzeug.http import parse_accept_header

from sandboxd.http.kit import auth
from sandboxd.http.kit.conversation import Conversation
from sandboxd.http.server.connection import PacedBody
from sandboxd.model import ApiKey, Sandbox, Snapshot
from sandboxd.service.api import Service
from sandboxd.service.sandboxes.entry import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A checked request. Parameters of the path but `sandbox` and `snapshot` come as keyword arguments beside it."""

    service: Service
    conversation: Conversation
    grant: auth.Grant
    headers: Headers
    arguments: Mapping[str, str]
    """the query as it came, decoded; `query` is what the route's model makes of it"""
    content: PacedBody | None = None
    """the body as it comes, where the route has no model for it: iterate over it, or await its read()"""
    body: Any = None
    """the body as the route's model"""
    query: Any = None
    """the query as the route's model"""

    @property
    def caller(self) -> ApiKey | None:
        """The key that was used; None for an administrator on the Unix socket."""
        return self.grant.caller

    @property
    def owner(self) -> str | None:
        """Whose what is created now is: a key's id."""
        return None if self.caller is None else self.caller.id

    @property
    def entry(self) -> Entry:
        """The sandbox that the path names, found when the call was authorised; it may have been deleted since."""
        assert self.grant.entry is not None, "the route's path names no sandbox"
        return self.grant.entry

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot that the path names, found when the call was authorised; it may have been deleted since."""
        assert self.grant.snapshot is not None, "the route's path names no snapshot"
        return self.grant.snapshot

    @property
    def stream(self) -> PacedBody:
        """The body of a route that takes a stream of bytes."""
        assert self.content is not None, "a websocket has no body"
        return self.content

    @property
    def wants_events(self) -> bool:
        """Whether the client prefers a stream of events (`Accept: text/event-stream`) to one answer."""
        return parse_accept_header(self.headers.get("accept"), MIMEAccept).best == "text/event-stream"

    def find_sandbox(self, name: str) -> Entry:
        """The sandbox that a body or a query names, by id or name. Raises: NotFound, for another's too."""
        return auth.find_sandbox(self.service, self.caller, name)

    def find_snapshot(self, name: str) -> Snapshot:
        """As find_sandbox(), for snapshots."""
        return auth.find_snapshot(self.service, self.caller, name)

    def check_again(self) -> None:
        """Once a client has been waited for: that what the path names is here still. Raises: NotFound."""
        if self.grant.entry is not None:
            self.service.sandboxes.check_present(self.grant.entry)
        if self.grant.snapshot is not None:
            self.service.snapshots.layers.check_present(self.grant.snapshot)

    def sees(self, of: Sandbox | Snapshot) -> bool:
        """Whether this is there for the caller, or another's."""
        return auth.sees(self.caller, of.spec.owner)

    @property
    def sees_all(self) -> bool:
        """Whether the caller sees what others have created."""
        return auth.sees(self.caller, None)
