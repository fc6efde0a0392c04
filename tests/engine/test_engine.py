"""The engine end to end on a fake model: same ids whatever is in the batch, the cache, the chunks or the pool."""

from __future__ import annotations

import numpy as np
import pytest

from engine_fakes import VOCAB, FakeModel, expected_ids, prompt_of
from freehold.core import KV_BLOCK, Float32Array, SamplingParams, Token
from freehold.engine import Engine, EngineConfig, Generation
from freehold.errors import ContextError, EngineError, RequestError


def ids_of(generation: Generation) -> list[int]:
    return [token.id for token in generation]


def greedy(n: int) -> SamplingParams:
    return SamplingParams(max_tokens=n)


@pytest.mark.parametrize("max_batch_tokens", [1, 2, 5, 31, 32, 33, 64, 1000])
def test_every_chunk_size_gives_the_same_ids(max_batch_tokens: int) -> None:
    prompt = prompt_of(1, 150)
    with Engine(FakeModel(), EngineConfig(n_blocks=20, max_batch_tokens=max_batch_tokens)) as engine:
        assert ids_of(engine.submit(prompt, greedy(20))) == expected_ids(prompt, 20)


def test_batched_equals_alone() -> None:
    prompts = [prompt_of(seed, 1 + 17 * seed) for seed in range(12)]
    model = FakeModel()
    with Engine(model, EngineConfig(n_blocks=200, max_batch_tokens=50)) as engine:
        generations = [engine.submit(prompt, greedy(5 + i)) for i, prompt in enumerate(prompts)]
        for i, generation in enumerate(generations):
            assert ids_of(generation) == expected_ids(prompts[i], 5 + i)
        assert engine.stats.n_preemptions == 0
    assert max(len(batch.seq_starts) - 1 for batch in model.batches) > 6


def test_seeded_sampling_does_not_depend_on_the_batch() -> None:
    params = [SamplingParams(temperature=1.0, top_p=0.9, seed=seed, max_tokens=12) for seed in range(8)]
    prompt = prompt_of(3, 40)
    with Engine(FakeModel(), EngineConfig(n_blocks=60, max_batch_tokens=24)) as engine:
        alone = [ids_of(engine.submit(prompt, p)) for p in params]
        together = [engine.submit(prompt, p) for p in params]
        assert [ids_of(generation) for generation in together] == alone
    assert len({tuple(ids) for ids in alone}) == 8


@pytest.mark.parametrize("n_prompt", [KV_BLOCK - 1, KV_BLOCK, KV_BLOCK + 1, 5 * KV_BLOCK, 5 * KV_BLOCK + 9])
def test_a_prefix_cache_hit_equals_cold(n_prompt: int) -> None:
    prompt = prompt_of(2, n_prompt)
    with Engine(FakeModel(), EngineConfig(n_blocks=30)) as engine:
        cold = engine.submit(prompt, greedy(40))
        assert ids_of(cold) == expected_ids(prompt, 40)
        warm = engine.submit(prompt, greedy(40))
        assert ids_of(warm) == expected_ids(prompt, 40)
        assert (cold.n_cached, warm.n_cached) == (0, (n_prompt - 1) // KV_BLOCK * KV_BLOCK)
        assert engine.stats.n_cached_tokens == warm.n_cached
        assert engine.stats.n_prefix_hits == (warm.n_cached > 0)
        assert engine.stats.n_free_blocks == 30


def test_without_prefix_cache_nothing_is_reused() -> None:
    prompt = prompt_of(2, 100)
    with Engine(FakeModel(), EngineConfig(n_blocks=30, prefix_cache=False)) as engine:
        for _ in range(2):
            generation = engine.submit(prompt, greedy(3))
            assert ids_of(generation) == expected_ids(prompt, 3)
            assert generation.n_cached == 0
        assert engine.stats.n_prefill_tokens == 200


def test_namespaces_share_no_prefix() -> None:
    prompt = prompt_of(2, 100)
    with Engine(FakeModel(), EngineConfig(n_blocks=30)) as engine:
        n_cached = []
        for namespace in ("alice", "bob", "", "alice", "bob"):
            generation = engine.submit(prompt, greedy(3), namespace=namespace)
            assert ids_of(generation) == expected_ids(prompt, 3)
            n_cached.append(generation.n_cached)
    assert n_cached == [0, 0, 0, 96, 96]


def test_preemption_does_not_change_the_output() -> None:
    params = [SamplingParams(temperature=0.9, seed=i, max_tokens=90, repetition_penalty=1.2) for i in range(5)]
    prompts = [prompt_of(i, 30) for i in range(5)]
    with Engine(FakeModel(), EngineConfig(n_blocks=100)) as roomy:
        expected = [ids_of(roomy.submit(prompt, p)) for prompt, p in zip(prompts, params, strict=True)]
    with Engine(FakeModel(), EngineConfig(n_blocks=7, max_batch_tokens=40)) as tight:
        generations = [tight.submit(prompt, p) for prompt, p in zip(prompts, params, strict=True)]
        assert [ids_of(generation) for generation in generations] == expected
        assert tight.stats.n_preemptions > 0
        assert tight.stats.n_free_blocks == 7


def test_stop_ids_end_with_the_stop_token() -> None:
    prompt = prompt_of(5, 10)
    ids = expected_ids(prompt, 30)
    stop = ids[12]
    with Engine(FakeModel(), EngineConfig(n_blocks=10)) as engine:
        generation = engine.submit(prompt, SamplingParams(stop_ids=frozenset({stop}), max_tokens=30))
        tokens = []
        for token in generation:
            tokens.append(token)
            assert token.finish is None or token.finish == generation.finish_reason
    assert [token.id for token in tokens] == ids[: ids.index(stop) + 1]
    assert [token.finish for token in tokens] == [None] * ids.index(stop) + ["stop"]
    assert generation.finish_reason == "stop"


def test_stop_wins_over_length_at_the_last_token() -> None:
    prompt = prompt_of(5, 10)
    with Engine(FakeModel(), EngineConfig(n_blocks=10)) as engine:
        stop = frozenset(expected_ids(prompt, 1))
        generation = engine.submit(prompt, SamplingParams(stop_ids=stop, max_tokens=1))
        assert [token.finish for token in generation] == ["stop"]


@pytest.mark.parametrize(
    ("max_context", "n_blocks", "match"),
    [(100, 50, "model's context holds 100 tokens"), (4096, 3, "KV cache holds 96 tokens")],
)
def test_context_limits(max_context: int, n_blocks: int, match: str) -> None:
    capacity = min(max_context, n_blocks * KV_BLOCK)
    with Engine(FakeModel(max_context=max_context), EngineConfig(n_blocks=n_blocks)) as engine:
        for n_prompt in (capacity, capacity + 1):
            with pytest.raises(ContextError, match=f"prompt has {n_prompt} tokens .* {match}"):
                engine.submit(prompt_of(1, n_prompt), greedy(5))
        for n_prompt in (capacity - 1, capacity - 10, 1):
            prompt = prompt_of(1, n_prompt)
            for max_tokens in (None, 10_000):
                tokens = list(engine.submit(prompt, SamplingParams(max_tokens=max_tokens)))
                assert [token.id for token in tokens] == expected_ids(prompt, capacity - n_prompt)
                assert tokens[-1].finish == "length"


@pytest.mark.parametrize(
    ("prompt", "match"),
    [
        ([], "prompt is empty"),
        ([1, VOCAB], f"prompt token 1 is {VOCAB}; expected ids from 0 to {VOCAB - 1}"),
        ([-1], "prompt token 0 is -1"),
        ([1.5], "float64"),
        ([[1, 2]], "shape"),
        ([2**70], "object"),
    ],
)
def test_bad_prompts_are_refused(prompt: list[int], match: str) -> None:
    with Engine(FakeModel(), EngineConfig(n_blocks=10)) as engine, pytest.raises(RequestError, match=match):
        engine.submit(prompt, greedy(5))


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(RequestError, match="n_blocks is 0; expected"):
        EngineConfig(n_blocks=0)
    with pytest.raises(RequestError, match="max_batch_tokens is 0; expected"):
        EngineConfig(n_blocks=1, max_batch_tokens=0)
    with pytest.raises(RequestError, match="max_sequences is -1; expected"):
        EngineConfig(n_blocks=1, max_sequences=-1)


def test_prompts_may_be_numpy_arrays() -> None:
    prompt = prompt_of(1, 40)
    with Engine(FakeModel(), EngineConfig(n_blocks=10)) as engine:
        assert ids_of(engine.submit(np.array(prompt, np.uint16), greedy(3))) == expected_ids(prompt, 3)  # type: ignore[arg-type]


def test_bad_logits_end_one_generation_and_not_the_others() -> None:
    good, bad = prompt_of(1, 40), prompt_of(2, 40)
    model = FakeModel()

    def poison(tokens: list[int], logits: Float32Array) -> None:
        if tokens[:40] == bad and len(tokens) == 45:
            logits[3] = np.nan

    model.edit = poison
    with Engine(model, EngineConfig(n_blocks=20)) as engine:
        failing, other = engine.submit(bad, greedy(20)), engine.submit(good, greedy(20))
        received: list[Token] = []
        with pytest.raises(EngineError, match="position 44 are nan"):
            received.extend(failing)
        assert failing.finish_reason == "error"
        assert failing.n_generated == 5
        assert ids_of(other) == expected_ids(good, 20)
        model.edit = lambda tokens, logits: None
        again = engine.submit(bad, greedy(20))
        assert ids_of(again) == expected_ids(bad, 20)
        assert again.n_cached == 0, "the KV of a failed generation must not be reused"


def test_logprobs_reach_the_tokens() -> None:
    with Engine(FakeModel(), EngineConfig(n_blocks=20)) as engine:
        tokens = list(engine.submit(prompt_of(1, 9), SamplingParams(max_tokens=3, n_logprobs=4)))
    for token in tokens:
        assert len(token.top) == 4
        assert token.top[0] == (token.id, token.logprob)


def test_counters_and_timings_add_up() -> None:
    with Engine(FakeModel(), EngineConfig(n_blocks=20, max_batch_tokens=16)) as engine:
        generation = engine.submit(prompt_of(1, 49), greedy(11))
        ids_of(generation)
        stats, timings = engine.stats, generation.timings
    assert (stats.n_prefill_tokens, stats.n_decode_tokens) == (49, 10)
    assert (stats.n_running, stats.n_waiting, stats.n_free_blocks) == (0, 0, 20)
    assert (generation.n_prompt, generation.n_generated, timings.n_generated) == (49, 11, 11)
    assert timings.queue_seconds >= 0
    assert timings.prefill_seconds > 0
    assert timings.decode_seconds > 0
