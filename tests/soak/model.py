"""What a sandbox must be, as far as its client can know: an answer that never came leaves two truths possible."""

from dataclasses import dataclass, field

ABSENT = ""
"""the content of a file that is not there"""
TRANSIENT = frozenset({"creating", "pausing", "resuming", "stopping", "starting", "deleting"})


@dataclass
class Expected:
    """One sandbox. Only its own worker touches it, one operation at a time."""

    id: str
    states: frozenset[str] = frozenset({"running"})
    files: dict[str, frozenset[str]] = field(default_factory=dict)
    """what each file may hold"""
    counters: list[str] = field(default_factory=list)
    """commands in the background that print 0, 1, 2, …"""

    def may_hold(self, name: str) -> frozenset[str]:
        return self.files.get(name, frozenset({ABSENT}))

    def machine_ended(self) -> None:
        self.counters.clear()

    def copied(self, sandbox: str) -> "Expected":
        """What another one over the same files must be."""
        return Expected(sandbox, files=dict(self.files))


@dataclass(frozen=True)
class Kept:
    """A snapshot, and what was in it."""

    id: str
    files: dict[str, frozenset[str]]
