"""Requests that hostile or unusual clients send, over raw connections where a library would not send them."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from freehold.server.endpoints import all_endpoints
from scripted_model import HarmonyRoles, harmony, scripted
from served import served

SAID = harmony("<|channel|>final<|message|>Hi<|return|>")
ASK = {"model": "thinker", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    models = {"thinker": scripted(SAID, chat_format=HarmonyRoles), "plain": scripted("Paris")}
    with served(models, all_endpoints()) as url:
        yield url


def raw(url: str, head: str, body: bytes = b"") -> bytes:
    """All that the server answers to a request written by hand, which asks it to close."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as connection:
        lines = f"{head}\r\nHost: {parts.netloc}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(lines.encode() + body)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def test_every_page_that_errors_point_to_is_there(url: str) -> None:
    assert httpx.get(f"{url}/docs").status_code == 200
    assert "/docs" in httpx.get(f"{url}/").text
    assert "/v1/chat/completions" in httpx.get(f"{url}/openapi.json").json()["paths"]


def test_a_body_survives_an_offer_of_http_2(url: str) -> None:
    body = json.dumps(ASK).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade"
    answer = raw(url, head, body)
    assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
    assert b'"content":"Hi"' in answer


def test_headers_that_come_at_once_have_a_limit_too(url: str) -> None:
    long = "x" * 70_000
    assert raw(url, f"GET /health HTTP/1.1\r\nX-Long: {long}").startswith(b"HTTP/1.1 431")
    many = "\r\n".join(f"X-{i}: {'y' * 30}" for i in range(2500))
    assert raw(url, f"GET /health HTTP/1.1\r\n{many}").startswith(b"HTTP/1.1 431")


def test_a_body_that_says_it_is_too_large_is_not_awaited(url: str) -> None:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: 99999999999\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_a_compressed_body_is_refused_by_name(url: str) -> None:
    body = gzip.compress(json.dumps(ASK).encode())
    answer = httpx.post(f"{url}/v1/chat/completions", content=body, headers={"content-encoding": "gzip"})
    assert answer.status_code == 415
    assert "'gzip'" in answer.json()["error"]["message"]


def test_a_number_beyond_all_numbers_is_refused(url: str) -> None:
    body = json.dumps({**ASK, "metadata": {"a": "X"}}).replace('"X"', "1e999")
    answer = httpx.post(f"{url}/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert "1e999" in answer.json()["error"]["message"]


def test_no_keep_alive_breaks_the_list_of_models(url: str) -> None:
    body = {"model": "plain", "messages": [{"role": "user", "content": "Hi"}], "stream": False}
    for keep_alive in ("999999999h", "1000000000h", -1, "-1", "5m"):
        httpx.post(f"{url}/api/chat", json={**body, "keep_alive": keep_alive})
        assert httpx.get(f"{url}/api/ps").status_code == 200


def test_a_slash_too_many_is_no_redirect(url: str) -> None:
    answer = httpx.post(f"{url}/v1/chat/completions/", json=ASK)
    assert answer.status_code == 404
    assert "location" not in answer.headers


@pytest.mark.parametrize("host", ["localhost:80@evil.example", "[::1].evil.example", "127.0.0.1 evil.example"])
def test_a_host_that_only_looks_like_ours_is_refused(url: str, host: str) -> None:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as connection:
        connection.sendall(f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert connection.recv(65536).split(b"\r\n")[0].split()[1] in (b"400", b"403")


PRIMES = (9973, 9967, 9949, 9941, 9931, 9929, 9923, 9907, 9901, 9887)


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"type": "integer", "multipleOf": prime} for prime in PRIMES]},
        {"type": "integer", "multipleOf": 99991},
    ],
)
def test_a_schema_made_to_take_for_ever_is_refused_at_once(url: str, schema: object) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    answer = httpx.post(f"{url}/v1/chat/completions", json={**ASK, "response_format": form}, timeout=5)
    assert answer.status_code == 400
    assert "'multipleOf' cannot be enforced" in answer.json()["error"]["message"]
