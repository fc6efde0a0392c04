"""/health, / and the list of all endpoints; what /health says of engines is tested with those that fail."""

from __future__ import annotations

import threading
import time

import httpx

from freehold.server.app import create_app
from freehold.server.endpoints import all_endpoints
from freehold.server.health import ENDPOINTS, index
from freehold.server.metrics import Metrics
from freehold.server.pool import ModelPool
from freehold.server.service import Service
from scripted_model import scripted
from served import running, served


def test_health_is_quick_while_a_model_computes() -> None:
    model = scripted("Paris")
    model.script.gate = threading.Semaphore(0)
    with served({"it": model}, ENDPOINTS) as url:
        answer = model.generate([65], max_tokens=2, stream=True)
        for _ in range(3):
            start = time.perf_counter()
            health = httpx.get(f"{url}/health")
            assert (health.status_code, health.json()) == (200, {"status": "ok"})
            assert time.perf_counter() - start < 0.5
        assert model.script.steps == 0
        for _ in range(5):
            model.script.gate.release()
        assert answer.reply().text == "BC"
        assert httpx.get(f"{url}/health").status_code == 200
        assert model.script.steps == 2  # health computed nothing


def test_a_server_that_ends_says_so() -> None:
    service = Service(ModelPool(), Metrics())
    with running(create_app(service, ENDPOINTS), service) as url:
        service.drain()
        health = httpx.get(f"{url}/health")
        assert (health.status_code, health.json()) == (503, {"status": "shutting down"})


def test_the_page_lists_what_there_is() -> None:
    with served({}, (index(ENDPOINTS), *ENDPOINTS)) as url:
        page = httpx.get(url)
        assert page.headers["content-type"].startswith("text/plain")
        assert "Freehold" in page.text
        assert "Ollama is running" in page.text  # which some tools look for
        assert "GET    /health" in page.text
        assert httpx.head(url).status_code == 200


def test_all_endpoints() -> None:
    endpoints = all_endpoints()
    routes = [(endpoint.method, endpoint.path) for endpoint in endpoints]
    assert len(routes) == len(set(routes))
    expected = {
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/responses"),
        ("GET", "/v1/models"),
        ("POST", "/v1/messages"),
        ("POST", "/api/chat"),
        ("GET", "/api/tags"),
        ("POST", "/tokenize"),
        ("GET", "/health"),
        ("GET", "/metrics"),
        ("GET", "/"),
    }
    assert expected <= set(routes)
    public = {endpoint.path for endpoint in endpoints if endpoint.public}
    assert {"/", "/health"} <= public
    assert not public & {"/metrics", "/v1/models", "/v1/chat/completions", "/api/chat", "/api/tags"}
