"""Who reaches a port, under which name, and what the two sides learn of each other's secrets."""

import contextlib
import dataclasses
import http.client
import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

import pytest

from tests.clients.conftest import listening_on_tcp
from tests.ports.conftest import PORT, Served
from tests.ports.test_http import LIMIT, ask, told
from tests.support.daemon import Daemon
from tests.support.sandbox import Box
from tests.support.waiting import wait_until

pytestmark = pytest.mark.any_user

NAVIGATION = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "none"}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    data: bytes


def visit(
    served: Served, host: str, target: str = "/", headers: Mapping[str, str] = {}, method: str = "GET"
) -> Reply:
    """One request by host name."""
    with contextlib.closing(http.client.HTTPConnection(*served.address, timeout=LIMIT)) as connection:
        connection.request(method, target, headers={"Host": host, **headers})
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())


# -- by path ------------------------------------------------------------------------------------------------------


def test_by_path_it_takes_a_key_that_may_write(served: Served) -> None:
    reader = served.box.daemon.call("POST", "/v1/keys", {"name": "reader", "scopes": ["read"]}).json
    served.expose()  # a host name is not a path
    for headers, status in (
        ({}, 401),
        ({"X-API-Key": "sbx_wrong"}, 401),
        ({"X-API-Key": reader["key"]}, 403),
        ({"X-API-Key": served.access.key}, 200),
        ({"Authorization": f"Bearer {served.access.key}"}, 200),
        ({"Authorization": "Bearer mine", "X-API-Key": served.access.key}, 200),
    ):
        answer = visit(served, "x", f"{served.path}/echo", headers)
        assert answer.status == status, headers
    served.box.daemon.call("DELETE", f"/v1/keys/{reader['id']}")


def test_on_the_unix_socket_it_takes_none(served: Served) -> None:
    assert served.box.daemon.call("GET", f"{served.path}/echo").status == 200


def test_a_key_of_the_daemons_never_reaches_the_program(served: Served) -> None:
    for headers in (
        {"Authorization": f"Bearer {served.access.key}"},
        {"X-API-Key": served.access.key},
        {"X-API-Key": served.access.key, "Authorization": f"bearer {served.access.key}"},
    ):
        answer = visit(served, "x", f"{served.path}/echo", headers)
        assert served.access.key.encode() not in answer.data


def test_the_programs_own_credentials_pass(served: Served) -> None:
    seen = told(
        served, "GET", "/echo", headers={"X-API-Key": "the program's", "Authorization": served.key["Authorization"]}
    )
    assert dict(seen["headers"])["x-api-key"] == "the program's"
    mine = {"Authorization": "Basic dTpw", "X-API-Key": served.access.key}
    seen = json.loads(visit(served, "x", f"{served.path}/echo", mine).data)
    assert dict(seen["headers"])["authorization"] == "Basic dTpw"


def test_by_path_no_header_acts_on_the_daemons_origin(served: Served) -> None:
    evil = {
        "set-cookie": "session=1; Path=/",
        "clear-site-data": "*",
        "service-worker-allowed": "/",
        "strict-transport-security": "max-age=1",
        "alt-svc": "h3=evil",
        "x-kept": "1",
    }
    answer = ask(served, "GET", f"/headers?{urlencode(evil)}")
    assert {name for name in evil if answer.headers[name] is not None} == {"x-kept"}
    assert answer.headers["content-security-policy"].startswith("sandbox ")
    assert "allow-same-origin" not in answer.headers["content-security-policy"]


def test_by_path_the_origins_cookies_stay_with_it(served: Served) -> None:
    assert "cookie" not in dict(told(served, "GET", "/echo", headers={"Cookie": "session=1"})["headers"])


def test_by_path_redirects_stay_below_the_path(served: Served) -> None:
    assert ask(served, "GET", "/headers?location=/login").headers["location"] == f"{served.path}/login"
    for elsewhere in ("//example.com/", "https://example.com/", "login"):
        assert ask(served, "GET", f"/headers?location={elsewhere}").headers["location"] == elsewhere


def test_a_forgotten_slash_is_added(served: Served) -> None:
    answer = ask(served, "GET", "?x=1")
    assert (answer.status, answer.headers["location"]) == (307, f"{served.path}/?x=1")


def test_a_name_does_for_the_id(served: Served) -> None:
    named = served.box.daemon.create(name="with.dots")
    assert visit(served, "x", "/v1/sandboxes/with.dots/ports/1/", served.key).status == 502
    served.box.daemon.delete(named)


@pytest.mark.parametrize("port", ["0", "65536", "99999"])
def test_a_number_that_is_no_port_is_a_400(served: Served, port: str) -> None:
    assert visit(served, "x", f"/v1/sandboxes/{served.id}/ports/{port}/", served.key).status == 400
    assert served.box.answer("expose", {"port": int(port)}).status == 422


# -- by host name -------------------------------------------------------------------------------------------------


def test_an_exposed_port_is_open_under_its_name(served: Served) -> None:
    exposed = served.expose()
    assert exposed["host"] == f"{PORT}-{served.id}.localhost:{served.address[1]}"
    assert exposed["url"] == f"http://{exposed['host']}/"
    result = subprocess.run(["curl", "-sS", "-m", "60", exposed["url"] + "a%2Fb?c"], capture_output=True, check=True)
    seen = json.loads(result.stdout)
    assert seen["target"] == "/a%2Fb?c"
    assert ["host", exposed["host"]] in seen["headers"]


def test_a_port_that_is_not_exposed_takes_a_key(served: Served) -> None:
    host = f"{PORT}-{served.id}.localhost"
    assert visit(served, host).status == 401
    assert visit(served, host, headers=served.key).status == 200


def test_a_stranger_does_not_learn_which_sandboxes_there_are(served: Served) -> None:
    missing, hidden = f"{PORT}-s{'0' * 20}.localhost", f"{PORT}-{served.id}.localhost"
    replies = [visit(served, host) for host in (missing, hidden)]
    assert {reply.status for reply in replies} == {401}
    assert len({re.sub(rb"'s[0-9a-f]+'", b"", reply.data) for reply in replies}) == 1
    assert visit(served, missing, headers=served.key).status == 404


def test_with_a_token_it_opens_to_the_token_only(served: Served) -> None:
    exposed = served.expose(token=True)
    host, token = exposed["host"], exposed["token"]
    assert visit(served, host).status == 401
    assert visit(served, host, "/?sandboxd_token=wrong").status == 401
    assert visit(served, host, headers={"X-Sandboxd-Token": "wrong"}).status == 401
    for target, headers in (
        (f"/echo?a=1&sandboxd_token={token}&b=2", {}),
        ("/echo?a=1&b=2", {"X-Sandboxd-Token": token}),
        ("/echo?a=1&b=2", {"Cookie": f"mine=1; sandboxd_token={token}; other=2"}),
    ):
        reply = visit(served, host, target, headers)
        assert reply.status == 200, target
        assert token.encode() not in reply.data
        assert json.loads(reply.data)["target"] == "/echo?a=1&b=2"
    assert dict(json.loads(reply.data)["headers"])["cookie"] == "mine=1; other=2"
    assert token not in served.box.daemon.log
    assert served.expose(token=True)["token"] != token
    assert visit(served, host, f"/?sandboxd_token={token}").status == 401


def test_a_token_opens_its_own_port_and_sandbox_only(served: Served) -> None:
    token = served.expose(token=True)["token"]
    assert served.expose(port=9, token=True)["token"] != token
    other = served.box.daemon.create()
    assert (
        served.box.daemon.call("POST", f"/v1/sandboxes/{other}/expose", {"port": PORT, "token": True}).status == 200
    )
    for host in (f"9-{served.id}.localhost", f"{PORT}-{other}.localhost"):
        assert visit(served, host, headers={"X-Sandboxd-Token": token}).status == 401
    assert visit(served, "x", f"{served.path}/echo", {"X-Sandboxd-Token": token}).status == 401


def test_a_browser_is_led_away_from_the_url_with_the_token(served: Served) -> None:
    exposed = served.expose(token=True)
    reply = visit(served, exposed["host"], f"/page?sandboxd_token={exposed['token']}&x=1", NAVIGATION)
    assert (reply.status, reply.headers["location"]) == (307, "/page?x=1")
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "Domain" not in cookie
    again = visit(served, exposed["host"], "/page?x=1", {"Cookie": cookie.partition(";")[0], **NAVIGATION})
    assert again.status == 200


def test_a_redirection_cannot_lead_to_another_host(served: Served) -> None:
    exposed = served.expose(token=True)
    reply = visit(served, exposed["host"], f"//evil.example/?sandboxd_token={exposed['token']}", NAVIGATION)
    assert reply.headers["location"] == "/evil.example/"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://8000-sother.localhost"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "websocket"},
    ],
    ids=["origin", "opaque", "same site", "cross site"],
)
def test_a_cookie_opens_nothing_to_another_sandboxes_page(served: Served, headers: dict[str, str]) -> None:
    exposed = served.expose(token=True)
    cookie = {"Cookie": f"sandboxd_token={exposed['token']}"}
    assert visit(served, exposed["host"], headers={**cookie, **headers}).status == 401
    own = {"Origin": f"http://{exposed['host']}", "Sec-Fetch-Site": "same-origin"}
    assert visit(served, exposed["host"], headers={**cookie, **own}).status == 200


def test_a_programs_cookies_are_for_its_own_name_only(served: Served) -> None:
    exposed = served.expose()
    target = "/headers?set-cookie=a%3D1%3B%20Domain%3Dlocalhost%3B%20Path%3D/"
    assert visit(served, exposed["host"], target).headers["set-cookie"] == "a=1; Path=/"


def test_an_exposure_ends_with_its_time(served: Served) -> None:
    exposed = served.expose(ttl_ms=600_000)
    assert exposed["end_at"] is not None
    assert visit(served, exposed["host"]).status == 200
    served.expose(ttl_ms=200)  # once more, for another time
    wait_until(lambda: visit(served, exposed["host"]).status == 401)
    assert served.box.daemon.call("GET", f"/v1/sandboxes/{served.id}/ports").json["exposed"] == []


def test_a_concealed_port_is_closed_to_strangers(served: Served) -> None:
    exposed = served.expose()
    path = f"/v1/sandboxes/{served.id}/expose/{PORT}"
    assert served.box.daemon.call("DELETE", path).json == {"port": PORT, "concealed": True}
    assert visit(served, exposed["host"]).status == 401
    assert served.box.daemon.call("DELETE", path).status == 404
    assert served.box.daemon.call("DELETE", path[:-4] + "no-port").status == 400


def test_other_names_are_the_apis(served: Served) -> None:
    for host in (
        "localhost",
        f"{served.id}.localhost",
        f"x-{served.id}.localhost",
        f"{PORT}-{served.id}.example.com",
    ):
        assert visit(served, host, "/v1/health").status == 200


def test_the_api_is_not_behind_a_ports_name(served: Served) -> None:
    exposed = served.expose()
    reply = visit(served, exposed["host"], "/v1/sandboxes", served.key)
    assert json.loads(reply.data)["target"] == "/v1/sandboxes"


# -- when it does not run -----------------------------------------------------------------------------------------


def test_a_paused_sandbox_is_a_409_that_says_so(served: Served) -> None:
    exposed = served.expose()
    assert served.box.answer("pause", None).status == 200
    for reply in (visit(served, exposed["host"]), visit(served, "x", f"{served.path}/echo", served.key)):
        assert reply.status == 409
        assert json.loads(reply.data)["details"]["state"] == "paused"
    assert served.box.answer("expose", {"port": 9}).status == 409
    assert served.box.daemon.call("GET", f"/v1/sandboxes/{served.id}/ports").status == 409
    assert served.box.answer("resume", None).status == 200
    assert visit(served, exposed["host"]).status == 200


def test_an_exposure_outlives_a_stop_and_a_start(served: Served) -> None:
    exposed = served.expose()
    assert served.box.answer("stop", None).status == 200
    assert visit(served, exposed["host"]).status == 409
    assert served.box.answer("start", None).status == 200
    assert json.loads(visit(served, exposed["host"]).data)["kind"] == "port_closed"


# -- across a restart ---------------------------------------------------------------------------------------------


def test_exposures_and_programs_survive_a_killed_daemon(own_served: Served) -> None:
    daemon = own_served.box.daemon
    opened, closed = own_served.expose(), own_served.expose(port=9, token=True)
    daemon.kill()
    daemon.start()
    assert visit(own_served, opened["host"]).status == 200
    assert visit(own_served, closed["host"]).status == 401
    assert visit(own_served, closed["host"], headers={"X-Sandboxd-Token": closed["token"]}).status == 502
    daemon.delete(own_served.id)
    assert visit(own_served, opened["host"]).status == 401


def test_a_domain_of_ones_own(own_root_daemon: Daemon) -> None:
    daemon = listening_on_tcp(own_root_daemon)
    config = daemon.root / "config.toml"
    config.write_text('[ports]\nbase_url = "https://sandboxes.example.com"\n')
    daemon = dataclasses.replace(daemon, options=(*daemon.options, "--config", str(config)))
    try:
        daemon.start()
        box = Box(daemon, daemon.create())
        exposed = box.answer("expose", {"port": 9}).json
        assert exposed["host"] == f"9-{box.id}.sandboxes.example.com"
        assert exposed["url"] == f"https://9-{box.id}.sandboxes.example.com/"
        answer = daemon.call("GET", "/", headers={"Host": f"9-{box.id}.SANDBOXES.example.com"})
        assert answer.json["kind"] == "port_closed"
    finally:
        daemon.sweep()
