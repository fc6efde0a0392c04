"""What /metrics says, as Prometheus reads it; the names are promised in docs/server.md."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fake_loader import MODEL_BYTES, FakeLoader
from freehold.server.app import create_app
from freehold.server.metrics import Metrics
from freehold.server.pool import ModelPool, PoolLimits
from freehold.server.service import Service
from plain_protocol import ENDPOINTS
from scripted_model import HarmonyRoles, harmony, scripted
from served import running

DOCS = Path(__file__).resolve().parents[2] / "docs" / "server.md"

Samples = dict[tuple[str, tuple[str, ...]], float]


def read(url: str) -> Samples:
    """Samples by name and label values; none may come twice."""
    answer = httpx.get(f"{url}/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation
        for sample in family.samples:
            key = (sample.name.removeprefix("freehold_"), tuple(sample.labels.values()))
            assert key not in found
            found[key] = sample.value
    return found


def test_what_is_counted() -> None:
    service = Service(ModelPool({"it": scripted("Paris")}), Metrics())
    with running(create_app(service, ENDPOINTS), service) as url:
        for stream in (True, False):
            httpx.post(f"{url}/answer", json={"model": "it", "prompt": "x" * 40, "stream": stream, "n": 2})
        httpx.post(f"{url}/answer", json={"model": "who", "prompt": "?"})
        httpx.get(f"{url}/nowhere/{'x' * 50}")
        found = read(url)
    assert found["requests_total", ("/answer", "200")] == 2
    assert found["requests_total", ("/answer", "404")] == 1
    assert found["requests_total", ("other", "404")] == 1
    assert found["errors_total", ("/answer", "404")] == 1
    assert found["request_seconds_count", ("/answer",)] == 3
    assert found["answers_total", ("it", "stop")] == 4
    assert found["prompt_tokens_total", ("it",)] == 4 * 43
    assert found["generated_tokens_total", ("it",)] == 4 * 6
    assert found["time_to_first_token_seconds_count", ("it",)] == 2
    assert found["time_per_output_token_seconds_count", ("it",)] == 4
    assert found["decode_tokens_total", ("it",)] == 4 * 5
    assert found["prefill_tokens_total", ("it",)] + found["cached_tokens_total", ("it",)] == 4 * 43
    assert found["prefix_hits_total", ("it",)] >= 2
    assert found["preemptions_total", ("it",)] == 0
    assert found["parser_recoveries_total", ("it",)] == 0
    assert found["requests_running", ("it",)] == found["requests_waiting", ("it",)] == 0
    assert (found["kv_blocks", ("it",)], found["kv_blocks_used", ("it",)]) == (16, 0)
    assert found["models_resident", ()] == 1
    assert not any("x" * 50 in part for _, labels in found for part in labels)


def test_repaired_answers_are_counted() -> None:
    said = harmony("<|channel|>analysis<|channel|>final<|message|>Paris<|return|>")
    service = Service(ModelPool({"it": scripted(said, chat_format=HarmonyRoles)}), Metrics())
    with running(create_app(service, ENDPOINTS), service) as url:
        httpx.post(f"{url}/answer", json={"model": "it", "prompt": "?"})
        assert read(url)["parser_recoveries_total", ("it",)] >= 1


def test_models_come_and_go_but_counters_stay() -> None:
    loader = FakeLoader("one", "two")
    pool = ModelPool(loader=loader, limits=PoolLimits(budget=MODEL_BYTES))
    service = Service(pool, Metrics())
    with running(create_app(service, ENDPOINTS), service) as url:
        for model in ("one", "two", "one"):
            httpx.post(f"{url}/answer", json={"model": model, "prompt": "?"})
        found = read(url)
    assert found["model_loads_total", ("one", "loaded")] == 2
    assert found["model_unloads_total", ("one", "evicted")] == 1
    assert found["model_load_seconds_total", ("one",)] > 0
    assert found["decode_tokens_total", ("one",)] == 10
    assert found["decode_tokens_total", ("two",)] == 5
    assert found["model_memory_bytes", ("one",)] == MODEL_BYTES
    assert ("model_memory_bytes", ("two",)) not in found
    assert found["memory_budget_bytes", ()] == MODEL_BYTES


def test_clients_that_leave_count_as_499() -> None:
    loader = FakeLoader("it")
    loader.gate = threading.Event()
    service = Service(ModelPool(loader=loader), Metrics())
    with running(create_app(service, ENDPOINTS), service) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/answer", json={"model": "it", "prompt": "?"}, timeout=0.1)
        assert read(url)["requests_total", ("/answer", "499")] == 1
        loader.gate.set()


def test_every_name_is_documented() -> None:
    service = Service(ModelPool(limits=PoolLimits(budget=1)), Metrics())
    text = service.metrics.render().decode()
    names = {name for name in re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE) if not name.endswith("_created")}
    assert names
    documented = set(re.findall(r"`(freehold_\w+?)(?:\{[^`]*\})?`", DOCS.read_text("utf-8")))
    assert names <= documented
    assert {name for name in documented if name.endswith("_total")} <= names
