"""The engine on a real (tiny) model: neither chunks, company, cached prefixes nor preemption change an answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from freehold.core import KV_BLOCK, Batch, Float32Array, Interrupted, KVCacheLike, SamplingParams
from freehold.engine import Engine, EngineConfig
from freehold.models.loader import LoadedModel
from golden_models import FAMILIES, load_golden
from kernel_programs import VECTOR_ISAS

GREEDY = SamplingParams(max_tokens=40)
SAMPLED = SamplingParams(max_tokens=40, temperature=1.0, top_p=0.95, seed=7)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Iterator[LoadedModel]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FREEHOLD_ISA", VECTOR_ISAS[-1])  # tiles make a prompt's bits depend on chunks below 16 tokens
        loaded = load_golden(request.param)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 512, n).tolist() for n in (1, 5, 31, 32, 33, 150, 300)]


def answer(engine: Engine, prompt: list[int], params: SamplingParams) -> list[int]:
    return [token.id for token in engine.submit(prompt, params)]


@pytest.fixture(scope="module")
def alone(model: LoadedModel, prompts: list[list[int]]) -> dict[str, list[list[int]]]:
    with Engine(model, EngineConfig(n_blocks=64, prefix_cache=False)) as engine:
        return {
            name: [answer(engine, p, params) for p in prompts]
            for name, params in (("greedy", GREEDY), ("sampled", SAMPLED))
        }


@pytest.mark.parametrize("chunk", [1, 3, 32, 100])
def test_every_chunk_size(
    model: LoadedModel, prompts: list[list[int]], alone: dict[str, list[list[int]]], chunk: int
) -> None:
    with Engine(model, EngineConfig(n_blocks=64, max_batch_tokens=chunk, prefix_cache=False)) as engine:
        assert [answer(engine, p, GREEDY) for p in prompts] == alone["greedy"]


@pytest.mark.parametrize(("name", "params"), [("greedy", GREEDY), ("sampled", SAMPLED)])
def test_batched_equals_alone(
    model: LoadedModel,
    prompts: list[list[int]],
    alone: dict[str, list[list[int]]],
    name: str,
    params: SamplingParams,
) -> None:
    with Engine(model, EngineConfig(n_blocks=128, max_batch_tokens=64)) as engine:
        running = [engine.submit(p, params) for p in prompts]
        assert [[token.id for token in g] for g in running] == alone[name]


def test_cached_prefix_equals_cold(
    model: LoadedModel, prompts: list[list[int]], alone: dict[str, list[list[int]]]
) -> None:
    with Engine(model, EngineConfig(n_blocks=64)) as engine:
        first = [answer(engine, p, GREEDY) for p in prompts]
        again = engine.submit(prompts[-1], GREEDY)
        assert [token.id for token in again] == alone["greedy"][-1]
        assert again.n_cached >= len(prompts[-1]) // KV_BLOCK * KV_BLOCK - KV_BLOCK
        assert first == alone["greedy"]


def test_preemption_changes_nothing(
    model: LoadedModel, prompts: list[list[int]], alone: dict[str, list[list[int]]]
) -> None:
    with Engine(model, EngineConfig(n_blocks=12, max_batch_tokens=64)) as engine:
        running = [engine.submit(p, GREEDY) for p in prompts]
        assert [[token.id for token in g] for g in running] == alone["greedy"]


class Disturbed:
    """A model whose passes are interrupted now and then, by nobody who has a reason."""

    def __init__(self, model: LoadedModel) -> None:
        self.vocab_size, self.max_context, self.kv_specs = model.vocab_size, model.max_context, model.kv_specs
        self.new_kv, self.interrupt = model.new_kv, model.interrupt
        self.n_interrupted = 0
        self._model = model
        self._random = np.random.default_rng(0)

    def forward(self, batch: Batch, kv: KVCacheLike) -> Float32Array:
        timer = None
        if self._random.random() < 0.6:
            timer = threading.Timer(float(self._random.uniform(0, 0.002)), self.interrupt)
            timer.start()
        try:
            logits = self._model.forward(batch, kv)
            if self._random.random() < 0.1:  # as if the end had come in the last step: tiny passes are hard to hit
                raise Interrupted
            return logits
        except Interrupted:
            self.n_interrupted += 1
            raise
        finally:
            if timer is not None:
                timer.cancel()
                timer.join()


def test_interrupted_passes_leave_no_trace(
    model: LoadedModel, prompts: list[list[int]], alone: dict[str, list[list[int]]]
) -> None:
    disturbed = Disturbed(model)
    # What is left of a cached prompt is too short for the plain form of latent attention: other last bits.
    config = EngineConfig(n_blocks=64, max_batch_tokens=100, prefix_cache=model.kv_specs[0].kind != "latent")
    with Engine(disturbed, config) as engine:
        for _ in range(3):
            running = [engine.submit(p, GREEDY) for p in prompts]
            assert [[token.id for token in generation] for generation in running] == alone["greedy"]
    assert disturbed.n_interrupted
