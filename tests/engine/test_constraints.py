"""Generations that may not say everything: masks, forced tokens, and readers that must not wait."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_fakes import VOCAB, FakeModel, logits_of, prompt_of
from freehold.core import Float32Array, SamplingParams
from freehold.engine import Engine, EngineConfig
from freehold.engine.generation import Generation
from freehold.errors import EngineError


class Echo:
    """After id i come n % `most` copies of it, unsampled; odd ids are forbidden."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.accepted: list[int] = []

    def mask(self, logits: Float32Array) -> None:
        logits[1::2] = -np.inf

    def accept(self, id: int) -> Sequence[int]:
        self.accepted.append(id)
        return [id] * (id % self.most)


def expected(prompt: Sequence[int], n: int, most: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + n:
        logits = logits_of(tokens)
        logits[1::2] = -np.inf
        id = int(logits.argmax())
        tokens += [id] * (1 + id % most)
    return tokens[len(prompt) : len(prompt) + n]


def greedy(n: int, **options: object) -> SamplingParams:
    return SamplingParams(max_tokens=n, **options)  # type: ignore[arg-type]


def ids_of(generation: Generation) -> list[int]:
    return [token.id for token in generation]


@pytest.mark.parametrize("most", [1, 3, 40])
def test_forced_tokens_follow_without_being_sampled(most: int) -> None:
    echo = Echo(most)
    with Engine(FakeModel(), EngineConfig(n_blocks=20)) as engine:
        ids = ids_of(engine.submit(prompt_of(1, 9), greedy(90), constraint=echo))
    assert ids == expected(prompt_of(1, 9), 90, most)
    assert all(id % 2 == 0 for id in ids)
    assert len(echo.accepted) < 90 or most == 1, "a forced token is not told to the constraint again"


@settings(max_examples=25, deadline=None)
@given(
    most=st.integers(1, 70),
    lengths=st.lists(st.integers(1, 120), min_size=1, max_size=6),
    n_blocks=st.integers(8, 20),
    max_batch_tokens=st.sampled_from([4, 7, 64, 512]),
)
def test_forced_tokens_among_neighbours_preemption_and_small_steps(
    most: int, lengths: list[int], n_blocks: int, max_batch_tokens: int
) -> None:
    prompts = [prompt_of(seed, n) for seed, n in enumerate(lengths)]
    config = EngineConfig(n_blocks=n_blocks, max_batch_tokens=max_batch_tokens, max_sequences=4)
    with Engine(FakeModel(), config) as engine:
        running = [engine.submit(p, greedy(60), constraint=Echo(most)) for p in prompts]
        assert [ids_of(generation) for generation in running] == [expected(p, 60, most) for p in prompts]


def test_a_forced_stop_id_ends_the_generation() -> None:
    class Ending(Echo):
        def accept(self, id: int) -> Sequence[int]:
            return [5, 7, 9]

    with Engine(FakeModel(), EngineConfig(n_blocks=20)) as engine:
        tokens = list(engine.submit([1, 2], greedy(90, stop_ids=frozenset({7})), constraint=Ending(1)))
    assert [token.id for token in tokens][1:] == [5, 7]
    assert [token.finish for token in tokens] == [None, None, "stop"]


def test_a_forced_token_is_certain_and_counts_for_the_penalties() -> None:
    with Engine(FakeModel(), EngineConfig(n_blocks=20)) as engine:
        tokens = list(engine.submit([1, 2], greedy(30, n_logprobs=2, presence_penalty=2.0), constraint=Echo(3)))
    forced = [token for token in tokens if token.logprob == 0.0]
    assert forced
    assert all(token.top == () for token in forced)
    assert all(token.logprob is not None and len(token.top) == 2 for token in tokens if token not in forced)


@pytest.mark.parametrize("where", ["mask", "accept"])
def test_a_constraint_that_fails_ends_its_own_generation_only(where: str) -> None:
    class Broken(Echo):
        def mask(self, logits: Float32Array) -> None:
            if where == "mask":
                raise ValueError("no such rule")

        def accept(self, id: int) -> Sequence[int]:
            raise ValueError("no such rule")

    with Engine(FakeModel(), EngineConfig(n_blocks=20)) as engine:
        failing = engine.submit(prompt_of(1, 9), greedy(6), constraint=Broken(1))
        ids = ids_of(engine.submit(prompt_of(1, 9), greedy(6), constraint=Echo(1)))
        with pytest.raises(EngineError, match="no such rule"):
            ids_of(failing)
    assert ids == expected(prompt_of(1, 9), 6, 1)


def test_a_reader_that_must_not_wait_is_told() -> None:
    told = threading.Semaphore(0)
    ids: list[int] = []
    with Engine(FakeModel(), EngineConfig(n_blocks=20)) as engine:
        generation = engine.submit([3], greedy(40), constraint=Echo(4), on_ready=told.release)
        ended = False
        while not ended:
            assert told.acquire(timeout=10), "nobody said that there was something to read"
            tokens, ended = generation.poll()
            ids += [token.id for token in tokens]
        assert generation.poll() == ([], True)
    assert ids == expected([3], 40, 4)
    assert all(0 <= id < VOCAB for id in ids)


def test_a_reader_that_must_not_wait_gets_the_error() -> None:
    model = FakeModel()
    told = threading.Event()

    def edit(tokens: list[int], logits: Float32Array) -> None:
        if len(tokens) > 4:
            logits[:] = np.nan

    model.edit = edit
    with Engine(model, EngineConfig(n_blocks=20)) as engine:
        generation = engine.submit([1, 2], greedy(20), on_ready=told.set)
        ids: list[int] = []

        def read() -> None:
            while True:
                assert told.wait(10)
                told.clear()
                ids.extend(token.id for token in generation.poll()[0])

        with pytest.raises(EngineError, match="nan"):
            read()
    assert len(ids) == 3
