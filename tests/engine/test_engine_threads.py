"""The engine and other threads: cancellation, closing, collection, a dying model, many submitters."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest

from engine_fakes import FakeKV, FakeModel, Gate, expected_ids, prompt_of
from freehold.core import Batch, Float32Array, Interrupted, KVCacheLike, SamplingParams
from freehold.engine import Engine, EngineConfig, Generation
from freehold.errors import EngineError


def greedy(n: int) -> SamplingParams:
    return SamplingParams(max_tokens=n)


def ids_of(generation: Generation) -> list[int]:
    return [token.id for token in generation]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.001)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def model(gate: Gate) -> FakeModel:
    model = FakeModel()
    model.before = gate
    return model


@pytest.fixture
def engine(model: FakeModel, gate: Gate) -> Iterator[Engine]:
    """At most 16 tokens per step, each step let through by `gate`."""
    engine = Engine(model, EngineConfig(n_blocks=100, max_batch_tokens=16, max_sequences=4))
    yield engine
    gate.open_for_good()
    engine.close()


def test_cancel_during_prefill_takes_effect_before_the_next_chunk(model: FakeModel, engine: Engine, gate: Gate) -> None:
    generation = engine.submit(prompt_of(1, 1000), greedy(5))
    gate.open(2)
    for _ in range(3):
        gate.wait_entered()
    assert generation.finish_reason is None
    generation.cancel()
    gate.open()
    assert list(generation) == []
    assert generation.finish_reason == "cancelled"
    assert len(model.batches) == 3
    assert engine.stats.n_free_blocks == 100
    assert engine.stats.n_running == 0


def test_cancel_during_decode_keeps_what_was_sampled(model: FakeModel, engine: Engine, gate: Gate) -> None:
    generation = engine.submit(prompt_of(1, 10), greedy(50))
    gate.open(4)
    for _ in range(5):
        gate.wait_entered()
    generation.cancel()
    gate.open_for_good()
    ids = [token.id for token in generation]
    assert ids == expected_ids(prompt_of(1, 10), 5)
    assert generation.finish_reason == "cancelled"
    assert list(generation) == []
    assert len(model.batches) == 5


def test_cancel_of_a_waiting_generation_does_not_disturb_the_running_ones(engine: Engine, gate: Gate) -> None:
    running = [engine.submit(prompt_of(i, 3), greedy(6)) for i in range(4)]
    waiting = [engine.submit(prompt_of(9, 3), greedy(6)), engine.submit(prompt_of(8, 3), greedy(6))]
    gate.open()
    gate.wait_entered()
    gate.wait_entered()
    assert (engine.stats.n_running, engine.stats.n_waiting) == (4, 2)
    waiting[0].cancel()
    gate.open()
    assert list(waiting[0]) == []
    assert (engine.stats.n_running, engine.stats.n_waiting) == (4, 1)
    gate.open_for_good()
    for i, generation in enumerate(running):
        assert [token.id for token in generation] == expected_ids(prompt_of(i, 3), 6)
    assert [token.id for token in waiting[1]] == expected_ids(prompt_of(8, 3), 6)


def test_leaving_the_loop_cancels(engine: Engine, gate: Gate) -> None:
    generation = engine.submit(prompt_of(1, 10), greedy(4000))
    gate.open()
    for _ in generation:
        break
    gate.open(3)
    wait_until(lambda: generation.finish_reason == "cancelled")


def test_a_dropped_generation_is_cancelled(engine: Engine, gate: Gate) -> None:
    gate.open_for_good()
    generation = engine.submit(prompt_of(1, 10), greedy(3000))
    iterator = iter(generation)
    next(iterator)
    assert engine.stats.n_running == 1
    del generation, iterator
    gc.collect()
    wait_until(lambda: engine.stats.n_running == 0)
    assert engine.stats.n_decode_tokens < 2999


def test_a_generation_that_nobody_ever_read_is_cancelled(engine: Engine, gate: Gate) -> None:
    generation = engine.submit(prompt_of(1, 10), greedy(3000))
    gate.wait_entered()
    del generation
    gate.open(2)
    wait_until(lambda: engine.stats.n_running == 0)
    assert engine.stats.n_free_blocks == 100


def test_close_cancels_everything_and_later_submits_are_refused(engine: Engine, gate: Gate) -> None:
    generations = [engine.submit(prompt_of(i, 3), greedy(1000)) for i in range(7)]
    gate.open_for_good()
    next(iter(generations[0]))
    engine.close()
    engine.close()
    for generation in generations:
        for _ in generation:
            pass
        assert generation.finish_reason == "cancelled"
    assert (engine.stats.n_running, engine.stats.n_waiting, engine.stats.n_free_blocks) == (0, 0, 100)
    with pytest.raises(EngineError, match="engine is closed"):
        engine.submit([1], greedy(1))


def test_close_without_work_ends_the_thread() -> None:
    n_threads = threading.active_count()
    with Engine(FakeModel(), EngineConfig(n_blocks=1)):
        assert threading.active_count() == n_threads + 1
    assert threading.active_count() == n_threads


def test_a_failing_model_ends_every_generation_with_its_cause(model: FakeModel, engine: Engine, gate: Gate) -> None:
    def fail(batch: Batch) -> None:
        gate(batch)
        if len(model.batches) == 8:
            raise ZeroDivisionError("bad kernel")

    model.before = fail
    generations = [engine.submit(prompt_of(i, 8), greedy(1000)) for i in range(6)]
    gate.open(8)
    for i, generation in enumerate(generations):
        ids: list[int] = []
        with pytest.raises(EngineError, match="ZeroDivisionError: bad kernel") as caught:
            ids.extend(token.id for token in generation)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert generation.finish_reason == "error"
        assert generation.n_generated <= 7
        if i == 0:
            assert generation.n_generated > 0
        with pytest.raises(EngineError, match="bad kernel"):
            list(generation)
    with pytest.raises(EngineError, match="engine stopped: ZeroDivisionError: bad kernel"):
        engine.submit([1], greedy(1))


def test_a_failing_model_also_ends_what_it_had_not_seen_yet(model: FakeModel, engine: Engine, gate: Gate) -> None:
    def fail(batch: Batch) -> None:
        gate(batch)
        raise MemoryError

    model.before = fail
    seen = engine.submit([1], greedy(5))
    gate.wait_entered()
    unseen, dropped = engine.submit([2], greedy(5)), engine.submit([3], greedy(5))
    dropped.cancel()
    gate.open()
    for generation in (seen, unseen):
        with pytest.raises(EngineError, match="MemoryError"):
            list(generation)
    assert list(dropped) == []
    assert dropped.finish_reason == "cancelled"
    assert engine.stats.n_waiting == 0


@pytest.mark.parametrize("dies", [False, True])
def test_the_kv_storage_is_freed_with_the_thread(dies: bool) -> None:
    class Storage(FakeModel):
        def new_kv(self, n_blocks: int) -> FakeKV:
            kv = super().new_kv(n_blocks)
            self.kv = weakref.ref(kv)
            return kv

        def forward(self, batch: Batch, kv: KVCacheLike) -> Float32Array:
            if dies:
                raise ValueError("bad kernel")
            return super().forward(batch, kv)

    model = Storage()
    engine = Engine(model, EngineConfig(n_blocks=4))
    generation = engine.submit([1], greedy(1))
    with pytest.raises(EngineError) if dies else nullcontext():
        list(generation)
    engine.close()
    gc.collect()
    assert model.kv() is None
    assert (generation.finish_reason == "error") == dies


def test_sixteen_threads_get_their_own_tokens() -> None:
    with Engine(FakeModel(), EngineConfig(n_blocks=24, max_batch_tokens=48, max_sequences=6)) as engine:

        def use(worker: int) -> None:
            for turn in range(6):
                prompt = [*prompt_of(worker % 5, 10 + 9 * turn), worker]
                generation = engine.submit(prompt, greedy(25), namespace=str(worker % 2))
                if (worker + turn) % 5 == 0:
                    for _ in zip(range(turn), generation, strict=False):
                        pass
                    generation.cancel()
                else:
                    assert [token.id for token in generation] == expected_ids(prompt, 25)

        with ThreadPoolExecutor(16) as pool:
            for future in [pool.submit(use, worker) for worker in range(16)]:
                future.result(timeout=60)
        wait_until(lambda: engine.stats.n_running + engine.stats.n_waiting == 0)
        assert engine.stats.n_free_blocks == 24


def test_submitting_while_closing_never_leaves_a_reader_waiting() -> None:
    for _ in range(20):
        engine = Engine(FakeModel(), EngineConfig(n_blocks=50))
        barrier = threading.Barrier(5)

        def use(engine: Engine = engine, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                while True:
                    for _ in engine.submit([1, 2, 3], greedy(2)):
                        pass
            except EngineError:
                pass

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        barrier.wait()
        engine.close()
        for thread in threads:
            thread.join(timeout=10)
            assert not thread.is_alive()


class Interruptible(FakeModel):
    """Its steps of more than `long` tokens take until they are interrupted."""

    def __init__(self, long: int) -> None:
        super().__init__()
        self.wanted = threading.Event()
        self.inside = threading.Event()
        self.n_interrupted = 0

        def before(batch: Batch) -> None:
            if len(batch.tokens) <= long:
                return
            self.wanted.clear()
            self.inside.set()
            if self.wanted.wait(10):
                self.n_interrupted += 1
                raise Interrupted

        self.before = before

    def interrupt(self) -> None:
        self.wanted.set()


def test_cancelling_a_long_prefill_ends_its_step() -> None:
    model = Interruptible(long=100)
    with Engine(model, EngineConfig(n_blocks=40)) as engine:
        long = engine.submit(prompt_of(1, 400), greedy(5))
        assert model.inside.wait(10)
        long.cancel()
        assert ids_of(long) == []
        assert ids_of(engine.submit(prompt_of(2, 9), greedy(5))) == expected_ids(prompt_of(2, 9), 5)
    assert model.n_interrupted == 1


def test_a_neighbour_in_the_interrupted_step_loses_nothing() -> None:
    model = Interruptible(long=100)
    with Engine(model, EngineConfig(n_blocks=40)) as engine:
        neighbour = engine.submit(prompt_of(2, 9), greedy(40))
        tokens = iter(neighbour)
        first = next(tokens)
        long = engine.submit(prompt_of(1, 400), greedy(5))
        assert model.inside.wait(10)
        long.cancel()
        assert [first.id, *(token.id for token in tokens)] == expected_ids(prompt_of(2, 9), 40)
    assert model.n_interrupted == 1


def test_a_step_that_others_need_as_much_goes_on() -> None:
    model = Interruptible(long=100)
    interrupted = threading.Event()
    model.interrupt = interrupted.set  # type: ignore[method-assign]
    with Engine(model, EngineConfig(n_blocks=60)) as engine:
        held = threading.Event()

        def hold(batch: Batch) -> None:
            held.wait(10)

        before, model.before = model.before, hold  # until both are there, for one step
        first = engine.submit([1], greedy(1))
        pair = [engine.submit(prompt_of(seed, 200), greedy(2)) for seed in (1, 2)]
        model.before = before
        held.set()
        ids_of(first)
        assert model.inside.wait(10)
        pair[0].cancel()
        assert not interrupted.is_set()
        model.before = lambda batch: None
        model.wanted.set()  # let go by hand
        assert ids_of(pair[1]) == expected_ids(prompt_of(2, 200), 2)


def test_closing_ends_the_step_under_way() -> None:
    model = Interruptible(long=100)
    engine = Engine(model, EngineConfig(n_blocks=40))
    generation = engine.submit(prompt_of(1, 400), greedy(5))
    assert model.inside.wait(10)
    engine.close()
    assert model.n_interrupted == 1
    assert generation.finish_reason == "cancelled"
