"""What the server counts, in Prometheus's form.

Owns the names, which docs/server.md lists and which stay as they are. What requests did is counted as it happens; what
models and engines are doing is read from the pool when somebody asks. Labels are routes, statuses and the names of
models that are served: nothing that a client could make up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from freehold.reply import Reply

if TYPE_CHECKING:
    from freehold.server.pool import ModelPool

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_REQUEST_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
_FIRST_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
_TOKEN_SECONDS = (0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)

_ENGINE_COUNTERS = {
    "prefill_tokens": "Prompt tokens computed, again after a preemption included.",
    "decode_tokens": "Tokens computed one at a time after a prompt.",
    "cached_tokens": "Prompt tokens whose KV was taken from the prefix cache.",
    "prefix_hits": "Prompts of which a part was found in the prefix cache.",
    "preemptions": "Sequences that gave up their KV blocks for others and computed them again.",
}

_MODEL_GAUGES = {
    "requests_running": "Requests being answered.",
    "requests_waiting": "Requests in line.",
    "model_memory_bytes": "Memory planned for a loaded model.",
    "kv_blocks": "KV blocks of a loaded model.",
    "kv_blocks_used": "KV blocks that running sequences hold.",
}


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"freehold_{name}", text, labels, registry=self._registry)

        def histogram(name: str, text: str, label: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"freehold_{name}", text, (label,), buckets=buckets, registry=self._registry)

        self._requests = counter("requests", "HTTP requests, by route and status.", "endpoint", "status")
        self._errors = counter("errors", "Failures, those within a stream included.", "endpoint", "status")
        self._answers = counter("answers", "Answers that ended by themselves, by reason.", "model", "reason")
        self._prompt = counter("prompt_tokens", "Tokens of the prompts of these answers.", "model")
        self._generated = counter("generated_tokens", "Tokens of these answers, reasoning included.", "model")
        self._recoveries = counter("parser_recoveries", "Malformed spots of answers that were repaired.", "model")
        self._seconds = histogram(
            "request_seconds", "From the request's head to the answer's end.", "endpoint", _REQUEST_SECONDS
        )
        self._first = histogram(
            "time_to_first_token_seconds", "From accepting a request to its first token.", "model", _FIRST_SECONDS
        )
        self._token = histogram(
            "time_per_output_token_seconds", "Mean over an answer, after its first token.", "model", _TOKEN_SECONDS
        )

    def watch(self, pool: ModelPool) -> None:
        """Report the pool's models and their engines too."""
        self._registry.register(_Models(pool))

    def render(self) -> bytes:
        """Everything, in Prometheus's text format (MEDIA_TYPE)."""
        return generate_latest(self._registry)

    def requested(self, endpoint: str, status: int, seconds: float) -> None:
        """A request ended; 499 stands for a client that left before there was an answer."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def failed(self, path: str, status: int) -> None:
        """A request was answered with an error, as a whole or within its stream."""
        self._errors.labels(path, str(status)).inc()

    def first_token(self, model: str, seconds: float) -> None:
        """A request got the first token of its first answer."""
        self._first.labels(model).observe(seconds)

    def answered(self, model: str, reply: Reply) -> None:
        """An answer ended."""
        self._answers.labels(model, reply.finish_reason).inc()
        self._prompt.labels(model).inc(reply.n_prompt)
        self._generated.labels(model).inc(reply.n_generated)
        self._recoveries.labels(model).inc(reply.n_recoveries)
        if reply.n_generated > 1:
            self._token.labels(model).observe(reply.decode_seconds / (reply.n_generated - 1))


class _Models(Collector):
    """The state of a pool at the moment of a scrape."""

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        yield from self._gauges()
        yield from self._counters()

    def _gauges(self) -> Iterator[Metric]:
        residents = self._pool.residents
        values: dict[str, dict[str, int]] = {}  # by model: one that is about to leave may have its successor beside it
        for resident in residents:
            found = values.setdefault(resident.name, dict.fromkeys(_MODEL_GAUGES, 0))
            n_blocks = resident.model.plan.n_blocks
            found["requests_running"] += resident.queue.n_running
            found["requests_waiting"] += resident.queue.n_waiting
            found["model_memory_bytes"] += resident.memory
            found["kv_blocks"] += n_blocks
            found["kv_blocks_used"] += n_blocks - resident.model.engine.stats.n_free_blocks
        for field, text in _MODEL_GAUGES.items():
            family = GaugeMetricFamily(f"freehold_{field}", text, labels=("model",))
            for name, fields in values.items():
                family.add_metric((name,), fields[field])
            yield family
        yield GaugeMetricFamily("freehold_models_resident", "Models in memory.", value=len(residents))
        if self._pool.limits.budget is not None:
            text = "Memory that all models together may take."
            yield GaugeMetricFamily("freehold_memory_budget_bytes", text, value=self._pool.limits.budget)

    def _counters(self) -> Iterator[Metric]:
        counts = self._pool.engine_counts()
        for field, text in _ENGINE_COUNTERS.items():
            family = CounterMetricFamily(f"freehold_{field}", text, labels=("model",))
            for name, fields in counts.items():
                family.add_metric((name,), fields[field])
            yield family
        for name, text, label, found in (
            ("model_loads", "Loads of models, by outcome.", "outcome", self._pool.n_loads),
            ("model_unloads", "Models unloaded, by reason.", "reason", self._pool.n_unloads),
        ):
            family = CounterMetricFamily(f"freehold_{name}", text, labels=("model", label))
            for labels, value in found.items():
                family.add_metric(labels, value)
            yield family
        seconds = CounterMetricFamily("freehold_model_load_seconds", "Time spent loading models.", labels=("model",))
        for model, total in self._pool.load_seconds.items():
            seconds.add_metric((model,), total)
        yield seconds
