"""The shortened way of a request through Quart: whose request a view sees, and what becomes of its failure."""

from typing import Any

import pytest
import quart
import trio
import trio.testing
from werkzeug.datastructures import Headers

from sandboxd.http.server.dispatch import DirectApp
from sandboxd.http.server.stack import current_app, current_request
from tests.http.support import PATIENCE


class Refused(Exception):
    pass


@pytest.fixture
def app() -> Any:
    app: Any = DirectApp("dispatch")
    app.meeting = trio.Event()

    @app.errorhandler(Refused)
    async def refused(error: Refused) -> tuple[str, int]:
        return f"{error} at {quart.request.path}", 403

    @app.get("/of/<name>")
    async def of(name: str) -> str:
        app.meeting.set()
        await app.release.wait()
        assert quart.current_app.name == "dispatch"
        return f"{name}={quart.request.path}"

    @app.get("/refuse")
    async def refuse() -> str:
        raise Refused("no")

    return app


def request_of(app: Any, path: str, *, method: str = "GET", host: str = "x") -> Any:
    scope: Any = {"type": "http"}
    return app.request_class(
        method, "http", path, b"", Headers({"host": host}), "", "1.1", scope,
        send_push_promise=None,
    )  # fmt: skip


async def ask(app: Any, path: str, **options: str) -> tuple[int, str]:
    with trio.fail_after(PATIENCE):
        response = await app.handle_request(request_of(app, path, **options))
    data = response.get_data()
    return response.status_code, (await data if isinstance(response, quart.Response) else data).decode()


async def test_views_that_run_at_once_see_their_own_requests(app: Any) -> None:
    app.release = trio.Event()
    answers = []

    async def ask_for(name: str) -> None:
        answers.append(await ask(app, f"/of/{name}"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_for, "a")
        nursery.start_soon(ask_for, "b")
        await trio.testing.wait_all_tasks_blocked()
        app.release.set()
    assert sorted(answers) == [(200, "a=/of/a"), (200, "b=/of/b")]


async def test_a_failure_is_answered_by_its_handler_and_leaves_nothing_behind(app: Any) -> None:
    assert await ask(app, "/refuse") == (403, "no at /refuse")
    assert current_request.get(None) is None
    assert current_app.get(None) is None


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/nothing", "GET", 404), ("/refuse", "DELETE", 405), ("/refuse", "OPTIONS", 200)]
)
async def test_what_has_no_view_is_answered_too(app: Any, path: str, method: str, status: int) -> None:
    assert (await ask(app, path, method=method))[0] == status


@pytest.mark.parametrize("host", ["", "a.b.c:80", "[::1]:8000"])
async def test_a_route_does_not_depend_on_the_host(app: Any, host: str) -> None:
    assert (await ask(app, "/refuse", host=host))[0] == 403
