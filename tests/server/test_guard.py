"""Who may ask: hosts, origins, keys, and what the log says."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse

from freehold.errors import RequestError
from freehold.server.app import AppOptions
from freehold.server.body import Body
from freehold.server.endpoint import Call, Endpoint, Json
from freehold.server.guard import ApiKeys, Guard, GuardRules, allowed_hosts, checked_origins, is_loopback
from freehold.server.metrics import Metrics
from served import served


class Echo(Body):
    text: str


async def echo(call: Call) -> Json:
    return Json({"text": call.body.text, "namespace": call.namespace})


async def ping(call: Call) -> Json:
    return Json({"namespace": call.namespace})


ENDPOINTS = (
    Endpoint("POST", "/v1/echo", echo, "Echo", "Test", Echo),
    Endpoint("GET", "/v1/ping", ping, "Ping", "Test"),
    Endpoint("GET", "/health", ping, "Ping", "Test", public=True),
)


class Asked:
    """The guard in front of an application that notes what reached it."""

    def __init__(self, rules: GuardRules) -> None:
        self.reached: list[dict[str, Any]] = []
        self.guard = Guard(self._app, rules, Metrics())

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached.append(scope)
        await PlainTextResponse("fine")(scope, receive, send)

    def __call__(
        self, method: str = "GET", path: str = "/v1/ping", *, host: str | None = "localhost:1", **headers: str
    ) -> httpx.Response:
        named = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
        if host is not None:
            named.append((b"host", host.encode("latin-1")))
        scope = {"type": "http", "method": method, "path": path, "headers": named, "client": ("127.0.0.1", 9)}
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self.guard(scope, receive, send))
        return httpx.Response(sent[0]["status"], headers=sent[0]["headers"], content=sent[1].get("body", b""))


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:11435", "127.0.0.1:8000", "[::1]:8000", "[::1]", "localhost."]
)
def test_hosts_of_this_machine(host: str) -> None:
    assert Asked(GuardRules())(host=host).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:8000",
        "",
        None,
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "[::2]",
    ],
)
def test_other_hosts(host: str | None) -> None:
    asked = Asked(GuardRules())
    answer = asked(host=host)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "host_not_allowed"
    assert not asked.reached


def test_the_hosts_of_a_server() -> None:
    assert Asked(GuardRules(allowed_hosts("127.0.0.2")))(host="127.0.0.2:80").status_code == 200
    assert Asked(GuardRules(allowed_hosts("0.0.0.0")))(host="models.example").status_code == 200
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.3.2.1")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "models.example", "")] == [False] * 5


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3000"},
        {"origin": "http://["},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site", "sec_fetch_mode": "no-cors"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_pages_of_other_origins(method: str, headers: dict[str, str]) -> None:
    asked = Asked(GuardRules())
    answer = asked(method, **headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in answer.headers
    assert not asked.reached


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://localhost:1"},
        {"sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "none"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"},
    ],
)
def test_our_own_pages_and_links(headers: dict[str, str]) -> None:
    assert Asked(GuardRules())(**headers).status_code == 200


def test_pages_that_are_listed() -> None:
    asked = Asked(GuardRules(origins=checked_origins(["https://App.example/"]), keys=ApiKeys(["key"])))
    preflight = asked(
        "OPTIONS",
        origin="https://app.example",
        access_control_request_method="POST",
        access_control_request_headers="authorization,content-type",
    )
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
    assert not asked.reached
    for answer in (asked(origin="https://app.example"), asked(origin="https://app.example", x_api_key="key")):
        assert answer.headers["access-control-allow-origin"] == "https://app.example"  # errors can be read as well
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert answer.headers["vary"] == "Origin"
    assert asked(origin="https://other.example").status_code == 403
    assert Asked(GuardRules(origins=checked_origins(["*"])))(origin="https://any.example").status_code == 200


@pytest.mark.parametrize("origin", ["example.com", "https://example.com/path", "https:// x", ""])
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(RequestError, match="origin"):
        checked_origins([origin])


def test_keys() -> None:
    asked = Asked(GuardRules(keys=ApiKeys(["one", "two"]), public=frozenset({"/health"})))
    for headers in ({}, {"authorization": "Bearer three"}, {"authorization": "one"}, {"x_api_key": "One"}):
        answer = asked(**headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "three" not in answer.text
    assert not asked.reached
    assert asked(path="/health").status_code == 200
    for headers in (
        {"authorization": "Bearer one"},
        {"authorization": "bearer  one"},
        {"x_api_key": "one"},
        {"authorization": "Bearer wrong", "x_api_key": "one"},
        {"x_api_key": "two"},
    ):
        assert asked(**headers).status_code == 200
    names = [scope["freehold.namespace"] for scope in asked.reached]
    assert names[0] == ""
    assert len(set(names[1:5])) == 1
    assert len({*names}) == 3
    assert not any("one" in name or "two" in name for name in names)


@pytest.mark.parametrize(
    ("path", "where"),
    [("/v1/chat/completions", ("error", "code")), ("/v1/messages", ("error", "type")), ("/api/chat", ("error",))],
)
def test_refusals_speak_the_protocol(path: str, where: tuple[str, ...]) -> None:
    body = Asked(GuardRules(keys=ApiKeys(["key"])))("POST", path).json()
    for name in where:
        body = body[name]
    assert isinstance(body, str)


@pytest.mark.parametrize("key", ["", "a b", "schlüssel", "line\nbreak"])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(RequestError, match="API key"):
        ApiKeys([key])


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["origin", "authorization", "x_api_key", "sec_fetch_site", "access_control_request_method"]),
        st.text(st.characters(max_codepoint=255), max_size=20),
    ),
    st.text(st.characters(max_codepoint=255), max_size=20),
)
def test_no_header_gets_past_or_breaks_it(headers: dict[str, str], host: str) -> None:
    asked = Asked(GuardRules(keys=ApiKeys(["a-key-that-is-not-guessed"])))
    assert asked("POST", host=host, **headers).status_code in (401, 403)
    assert not asked.reached


def test_over_http(caplog: pytest.LogCaptureFixture) -> None:
    rules = GuardRules(keys=ApiKeys(["secret-key"]))
    with caplog.at_level(logging.INFO, "freehold"), served({}, ENDPOINTS, options=AppOptions(guard=rules)) as url:
        body = json.dumps({"text": "private words"})
        assert httpx.post(f"{url}/v1/echo", content=body).status_code == 401
        answer = httpx.post(f"{url}/v1/echo?key=hidden", content=body, headers={"x-api-key": "secret-key"})
        assert answer.json()["text"] == "private words"
        assert httpx.get(f"{url}/v1/ping%0Aforged").status_code == 401
    lines = [record.getMessage() for record in caplog.records if record.name == "freehold.server.access"]
    assert [line.split()[:3] for line in lines] == [
        ["POST", "/v1/echo", "401"],
        ["POST", "/v1/echo", "200"],
        ["GET", "/v1/ping%0Aforged", "401"],
    ]
    assert answer.headers["x-request-id"] in lines[1]
    assert "private" not in caplog.text
    assert "secret-key" not in caplog.text
    assert "hidden" not in caplog.text


def test_bodies_are_logged_when_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "freehold"), served({}, ENDPOINTS, options=AppOptions(log_bodies=True)) as url:
        httpx.post(f"{url}/v1/echo", json={"text": "said\nthis"})
    assert r"said\\nthis" in caplog.text


def connect(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=5)


def until_closed(connection: socket.socket) -> bytes:
    """What the server says before it hangs up."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


def test_bodies_that_do_not_arrive() -> None:
    with served({}, ENDPOINTS, options=AppOptions(body_seconds=0.1)) as url, connect(url) as client:
        client.sendall(b'POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"te')
        answer = until_closed(client)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"took longer than 0.1 seconds" in answer


def test_bodies_that_are_too_long() -> None:
    with served({}, ENDPOINTS, options=AppOptions(max_body=100)) as url:
        assert httpx.post(f"{url}/v1/echo", content=b"x" * 101).status_code == 413


def test_heads_that_do_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.server.connection.HEAD_SECONDS", 0.1)
    with served({}, ENDPOINTS) as url:
        with connect(url) as silent:
            assert until_closed(silent).startswith(b"HTTP/1.1 408 ")
        with connect(url) as slow:
            slow.sendall(b"GET /v1/ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while b'{"namespace":""}' not in answer:
                answer += slow.recv(65536)
            slow.sendall(b"GET /v1/ping HTTP/1.1\r\nHost: loc")  # the second request on the connection
            assert until_closed(slow).startswith(b"HTTP/1.1 408 ")
        with connect(url) as endless:
            endless.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000)
            assert until_closed(endless).startswith(b"HTTP/1.1 431 ")


def test_idle_connections_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.server.connection.HEAD_SECONDS", 0.1)
    with served({}, ENDPOINTS) as url, httpx.Client() as client:
        first = client.get(f"{url}/v1/ping").extensions["network_stream"].get_extra_info("client_addr")
        time.sleep(0.2)
        assert client.get(f"{url}/v1/ping").extensions["network_stream"].get_extra_info("client_addr") == first


def test_so_many_connections_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.server.connection.MAX_CONNECTIONS", 2)
    with served({}, ENDPOINTS) as url:
        with connect(url), connect(url):
            time.sleep(0.05)
            with connect(url) as third:
                assert until_closed(third).startswith(b"HTTP/1.1 503 ")
        time.sleep(0.05)
        assert httpx.get(f"{url}/v1/ping").status_code == 200


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"\r\n\r\n\r\nnonsense\r\n\r\n"])
def test_what_is_not_http(garbage: bytes) -> None:
    with served({}, ENDPOINTS) as url:
        with connect(url) as client:
            client.sendall(garbage)
            assert until_closed(client).startswith(b"HTTP/1.1 400 ")
        assert httpx.get(f"{url}/v1/ping").status_code == 200
