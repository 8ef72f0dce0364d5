"""Raw changes folded into what came of them: create, modify and remove, once per path and moment. No I/O.

    so far      and then     together
    –           any          it
    create      modify       create
    create      remove       nothing     unless it was renamed to here, perhaps onto another: remove
    modify      modify       modify
    modify      remove       remove
    remove      create       modify      the file was replaced
    create      create       create      by a rename onto it

Only files are folded. What happens to a directory happens to all that is in it, so it keeps its place in the order.
"""

from collections.abc import Iterator

from sandboxd.isolation.init.wire import Change, ChangeKind
from sandboxd.model import WatchEventType

CREATE, MODIFY, REMOVE = WatchEventType.CREATE, WatchEventType.MODIFY, WatchEventType.REMOVE

TYPES = {
    ChangeKind.CREATE: CREATE,
    ChangeKind.WRITE: MODIFY,
    ChangeKind.ATTRIBUTES: MODIFY,
    ChangeKind.RENAME: REMOVE,
    ChangeKind.REMOVE: REMOVE,
}

_TOGETHER: dict[tuple[WatchEventType, WatchEventType], WatchEventType | None] = {
    (CREATE, CREATE): CREATE,
    (CREATE, MODIFY): CREATE,
    (CREATE, REMOVE): None,
    (MODIFY, CREATE): MODIFY,
    (MODIFY, MODIFY): MODIFY,
    (MODIFY, REMOVE): REMOVE,
    (REMOVE, CREATE): MODIFY,
    (REMOVE, MODIFY): MODIFY,
    (REMOVE, REMOVE): REMOVE,
}


class Fold:
    """Collects changes until they are taken; those of directories come through when they are `add`ed."""

    def __init__(self) -> None:
        self._files: dict[str, WatchEventType] = {}
        self._renamed: set[str] = set()
        """files that were given this name, which another may have had"""

    def __len__(self) -> int:
        return len(self._files)

    def add(self, change: Change) -> Iterator[tuple[WatchEventType, str, bool]]:
        """What has to be told before, or as, this change: (type, path, is it a directory)."""
        kind = TYPES[change.kind]
        if change.is_directory:
            yield from self.take()
            yield kind, change.path, True
            return
        before = self._files.pop(change.path, None)
        if before is None and change.cookie:
            self._renamed.add(change.path)
        together = kind if before is None else _TOGETHER[before, kind]
        if together is None and change.path in self._renamed:
            together = REMOVE
        if together is not None:
            self._files[change.path] = together

    def take(self) -> Iterator[tuple[WatchEventType, str, bool]]:
        """All that is collected, which it then no longer is."""
        files, self._files, self._renamed = self._files, {}, set()
        for path, kind in files.items():
            yield kind, path, False
