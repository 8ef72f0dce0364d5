"""Code in a sandbox's kernels, through the API."""

from dataclasses import dataclass
from typing import Any

from tests.support.sandbox import Box

IMAGE = "code-interpreter"


@dataclass(frozen=True)
class Coder(Box):
    """A sandbox with kernels."""

    def run(self, code: str, **body: Any) -> Any:
        """The whole execution."""
        answer = self.answer("run", {"code": code, **body})
        assert answer.status == 200, answer.data
        return answer.json

    def text(self, code: str, **body: Any) -> Any:
        """The value of the last expression, as text; the run must not fail."""
        execution = self.run(code, **body)
        assert execution["error"] is None, execution["error"]
        (main,) = [result["text"] for result in execution["results"] if result["is_main_result"]]
        return main

    def error(self, code: str, **body: Any) -> Any:
        """What a run raises."""
        execution = self.run(code, **body)
        assert execution["error"] is not None, execution
        return execution["error"]

    def new_context(self, **body: Any) -> str:
        answer = self.answer("contexts", body)
        assert answer.status == 201, answer.data
        return str(answer.json["id"])

    def contexts(self) -> dict[str, Any]:
        answer = self.daemon.call("GET", f"/v1/sandboxes/{self.id}/contexts")
        assert answer.status == 200, answer.data
        return {context["id"]: context for context in answer.json["contexts"]}

    def is_busy(self, context: str = "default") -> bool:
        return bool(self.contexts().get(context, {}).get("busy"))
