"""Background commands of one sandbox, for tests."""

import contextlib
import http.client
import signal
from dataclasses import dataclass
from typing import Any

from tests.support.daemon import Answer, Daemon


@dataclass(frozen=True)
class Background:
    """The commands of one sandbox, over the API."""

    daemon: Daemon
    sandbox: str

    @property
    def path(self) -> str:
        return f"/v1/sandboxes/{self.sandbox}/commands"

    def start(self, cmd: str, **body: Any) -> str:
        answer = self.daemon.call("POST", self.path, {"cmd": cmd, **body})
        assert answer.status == 201, answer.data
        return str(answer.json["command_id"])

    def answer(self, command: str, operation: str, body: Any = None) -> Answer:
        return self.daemon.call("POST", f"{self.path}/{command}/{operation}", body)

    def post(self, command: str, operation: str, body: Any = None) -> Any:
        answer = self.answer(command, operation, body)
        assert answer.status == 200, answer.data
        return answer.json

    def answer_and_die(self, command: str, operation: str, body: Any = None) -> None:
        """The request after which the daemon dies, whether or not it has answered."""
        with contextlib.suppress(http.client.HTTPException, OSError):
            self.answer(command, operation, body)
        assert self.daemon.wait() == -signal.SIGKILL

    def view(self, command: str) -> Any:
        answer = self.daemon.call("GET", f"{self.path}/{command}")
        assert answer.status == 200, answer.data
        return answer.json

    def views(self) -> list[Any]:
        return list(self.daemon.call("GET", self.path).json["commands"])

    def ended(self, command: str, *, limit_ms: int = 50_000) -> Any:
        """Wait for its end."""
        view = self.post(command, "wait", {"timeout_ms": limit_ms})
        assert view["status"] != "running", view
        return view

    def logs(self, command: str, **wish: Any) -> Any:
        return self.post(command, "logs", wish)

    def stdout(self, command: str) -> str:
        return str(self.logs(command)["stdout"])
