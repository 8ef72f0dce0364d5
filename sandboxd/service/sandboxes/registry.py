"""Which sandboxes there are."""

from collections.abc import Iterator

from sandboxd.errors import Conflict, NotFound
from sandboxd.model import Sandbox
from sandboxd.service.names import check_name
from sandboxd.service.sandboxes.entry import Entry


class Registry:
    """All entries, found by id and by name. Who makes a sandbox adds it, and removes it when it is gone."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def __contains__(self, entry: Entry) -> bool:
        return self._entries.get(entry.sandbox.id) is entry

    def entry(self, sandbox: str) -> Entry:
        """By id or by name. Raises: NotFound."""
        found = self._entries.get(sandbox) or self._named(sandbox)
        if found is None:
            raise NotFound(f"cannot find sandbox {sandbox!r}: it does not exist, or was deleted", sandbox=sandbox)
        return found

    def entries(self) -> Iterator[Entry]:
        """All of them, oldest first."""
        yield from list(self._entries.values())

    def all(self) -> list[Sandbox]:
        """The records of all of them, oldest first."""
        return [entry.sandbox for entry in self._entries.values()]

    def check_present(self, entry: Entry) -> None:
        """That the sandbox is here still: not what has its name by now. Raises: NotFound."""
        if entry not in self:
            sandbox = entry.sandbox.id
            raise NotFound(f"cannot find sandbox {sandbox!r} any more: it was deleted", sandbox=sandbox)

    def check_free(self, name: str | None) -> None:
        """That a new sandbox may have the name. Raises: Conflict, Unprocessable when none may."""
        check_name(name)
        if name is not None and self._named(name) is not None:
            raise Conflict(f"cannot create sandbox {name!r}: a sandbox of that name exists", name=name)

    def add(self, entry: Entry) -> None:
        """Have it found from now on."""
        self._entries[entry.sandbox.id] = entry

    def remove(self, entry: Entry) -> None:
        """Have it found no more. Fine to repeat."""
        self._entries.pop(entry.sandbox.id, None)

    def _named(self, name: str) -> Entry | None:
        return next((entry for entry in self._entries.values() if entry.sandbox.spec.name == name), None)
