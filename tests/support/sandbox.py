"""One sandbox and its daemon, held together."""

from dataclasses import dataclass
from typing import Any

from tests.support.daemon import Answer, Daemon

# What belongs to sandbox-init or to the question itself.
_OWN = ("/dev/sandbox-init", "ps ", "/bin/bash -c ps ", "COMMAND")


@dataclass(frozen=True)
class Box:
    daemon: Daemon
    id: str

    def answer(self, path: str, body: Any) -> Answer:
        """POST to something of this sandbox's."""
        return self.daemon.call("POST", f"/v1/sandboxes/{self.id}/{path}", body)

    def shell(self, cmd: str, **body: Any) -> Any:
        """Run a command to its end; its result."""
        return self.daemon.shell(self.id, cmd, **body)

    def processes(self) -> list[str]:
        """Command lines of what runs inside; sandbox-init, this question, and the dead that wait for it left out."""
        lines = self.shell("ps axww -o stat,args", user="root")["stdout"].splitlines()
        alive = [line.split(maxsplit=1)[1] for line in lines if not line.startswith("Z")]
        return [line for line in alive if not line.startswith(_OWN)]
