"""Models by name: loading on demand, sharing loads, making room, unloading, and what a client is told."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from fake_loader import MODEL_BYTES, FakeLoader
from freehold.errors import ModelFileError, ResourceError
from freehold.server.errors import ApiError
from freehold.server.pool import ModelPool, PoolLimits
from freehold.server.resident import Lease
from scripted_model import scripted


@pytest.fixture
def loader() -> Iterator[FakeLoader]:
    loader = FakeLoader("alpha", "beta", "gamma")
    yield loader
    loader.close()


def run(scenario: Callable[[ModelPool], Awaitable[None]], loader: FakeLoader, **options: Any) -> None:
    async def within() -> None:
        pool = ModelPool(loader=loader, **options)
        try:
            await asyncio.wait_for(scenario(pool), 20)
        finally:
            await pool.close()
        assert not pool.residents

    asyncio.run(within())


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it did not come about")


def n_leases(pool: ModelPool) -> int:
    return sum(resident.n_leases for resident in pool.residents)


def loaded(pool: ModelPool) -> list[str]:
    return [card.name for card in pool.cards() if card.loaded]


@pytest.mark.parametrize(
    "word", ["alpha", "ALPHA", "alpha:latest", "Alpha:Small", "alias-alpha", "openai/alpha", "/models/alpha.gguf"]
)
def test_names(loader: FakeLoader, word: str) -> None:
    async def scenario(pool: ModelPool) -> None:
        assert pool.resolve(word) == "alpha"
        assert not loader.loads

    run(scenario, loader)


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("alpa", ["no model 'alpa' here", "did you mean 'alpha'?", "alpha, beta, gamma"]),
        ("smollm2", ["`freehold pull smollm2`"]),
        ("../../etc/passwd", ["no model"]),
        ("", ["no model ''"]),
        ("x" * 5000, ["x" * 100]),
    ],
)
def test_unknown_names(loader: FakeLoader, word: str, words: list[str]) -> None:
    async def scenario(pool: ModelPool) -> None:
        with pytest.raises(ApiError) as caught:
            await pool.lease(word)
        assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")
        assert all(expected in caught.value.message for expected in words)
        assert len(caught.value.message) < 600

    run(scenario, loader)


def test_one_model_answers_to_any_name(loader: FakeLoader) -> None:
    async def scenario(pool: ModelPool) -> None:
        assert pool.resolve("gpt-4o") == "beta"
        assert pool.resolve("alpha") == "alpha"

    run(scenario, loader, default="beta")


def test_models_that_appear_are_found(loader: FakeLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.server.pool.LOOK_SECONDS", 0)

    async def scenario(pool: ModelPool) -> None:
        assert len(pool.cards()) == 3
        loader.names.append("delta")
        assert pool.resolve("delta") == "delta"

    run(scenario, loader)


def test_concurrent_requests_share_a_load(loader: FakeLoader) -> None:
    async def scenario(pool: ModelPool) -> None:
        loader.gate = threading.Event()
        tasks = [asyncio.create_task(pool.lease("alpha")) for _ in range(5)]
        await until(lambda: loader.n_loading == 1)
        for task in tasks[:2]:
            task.cancel()
        await asyncio.gather(*tasks[:2], return_exceptions=True)
        loader.gate.set()
        leases = await asyncio.gather(*tasks[2:])
        assert loader.loads == ["alpha"]
        assert n_leases(pool) == 3
        for lease in leases:
            lease.release()
            lease.release()
        assert n_leases(pool) == 0

    run(scenario, loader)


def test_a_load_outlives_all_who_wanted_it(loader: FakeLoader) -> None:
    async def scenario(pool: ModelPool) -> None:
        loader.gate = threading.Event()
        task = asyncio.create_task(pool.lease("alpha"))
        await until(lambda: loader.n_loading == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        loader.gate.set()
        await until(lambda: loaded(pool) == ["alpha"])
        assert n_leases(pool) == 0

    run(scenario, loader)


def test_one_load_at_a_time(loader: FakeLoader) -> None:
    async def scenario(pool: ModelPool) -> None:
        await asyncio.gather(*(pool.lease(name) for name in ("alpha", "beta", "gamma")))
        assert sorted(loader.loads) == ["alpha", "beta", "gamma"]
        assert not loader.overlapped

    run(scenario, loader)


def test_the_least_recently_used_makes_room(loader: FakeLoader) -> None:
    async def scenario(pool: ModelPool) -> None:
        for name in ("alpha", "beta", "alpha"):
            (await pool.lease(name)).release()
        (await pool.lease("gamma")).release()
        assert sorted(loaded(pool)) == ["alpha", "gamma"]
        assert loader.budgets == [5 * MODEL_BYTES // 2, 3 * MODEL_BYTES // 2, 3 * MODEL_BYTES // 2]
        assert pool.n_unloads == {("beta", "evicted"): 1}

    run(scenario, loader, limits=PoolLimits(budget=5 * MODEL_BYTES // 2))


def test_models_in_use_are_not_pushed_out(loader: FakeLoader) -> None:
    async def scenario(pool: ModelPool) -> None:
        lease = await pool.lease("alpha")
        with pytest.raises(ApiError) as caught:
            await pool.lease("beta")
        assert caught.value.status == 503
        assert "it needs 1.00 GB and 0.50 GB of 1.50 GB are free" in caught.value.message
        assert "alpha (1.00 GB)" in caught.value.message
        assert caught.value.headers["retry-after"]
        lease.release()
        (await pool.lease("beta")).release()
        assert loaded(pool) == ["beta"]

    run(scenario, loader, limits=PoolLimits(budget=3 * MODEL_BYTES // 2))


def test_a_model_alone_gets_what_there_is(loader: FakeLoader) -> None:
    async def scenario(pool: ModelPool) -> None:
        (await pool.lease("alpha")).release()
        assert loader.budgets == [MODEL_BYTES // 2]  # the loader decides whether that is enough

    run(scenario, loader, limits=PoolLimits(budget=MODEL_BYTES // 2))


def test_max_models(loader: FakeLoader) -> None:
    async def scenario(pool: ModelPool) -> None:
        lease = await pool.lease("alpha")
        with pytest.raises(ApiError, match="--max-models"):
            await pool.lease("beta")
        lease.release()
        await pool.lease("beta")
        assert loaded(pool) == ["beta"]

    run(scenario, loader, limits=PoolLimits(max_models=1))


@pytest.mark.parametrize("keep_alive", [0, 0.05])
def test_idle_models_are_unloaded(loader: FakeLoader, keep_alive: float) -> None:
    async def scenario(pool: ModelPool) -> None:
        first, second = await pool.lease("alpha"), await pool.lease("alpha")
        first.release()
        await asyncio.sleep(2 * keep_alive)
        assert loaded(pool) == ["alpha"]
        second.release()
        await until(lambda: not pool.residents)
        assert pool.n_unloads == {("alpha", "idle"): 1}
        assert (await pool.lease("alpha")).model is loader.models[1]

    run(scenario, loader, limits=PoolLimits(keep_alive=keep_alive))


def test_models_stay_when_they_are_to_stay(loader: FakeLoader) -> None:
    async def scenario(pool: ModelPool) -> None:
        (await pool.lease("alpha")).release()
        await asyncio.sleep(0.05)
        card = pool.card("alpha")
        assert (card.loaded, card.expires, card.memory, card.family) == (True, None, MODEL_BYTES, "llama")
        pool.keep("alpha", 1000)
        assert pool.card("alpha").expires is not None
        pool.keep("alpha", 0)
        await until(lambda: not pool.residents)

    run(scenario, loader, limits=PoolLimits(keep_alive=-1))


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ModelFileError("/home/me/secret.gguf is damaged"), 500, "the model alpha could not be loaded"),
        (OSError(5, "disk", "/home/me/secret.gguf"), 500, "the model alpha could not be loaded"),
        (ResourceError("alpha needs 9 GB"), 503, "alpha needs 9 GB"),
    ],
)
def test_a_load_that_fails(
    loader: FakeLoader, error: Exception, status: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(pool: ModelPool) -> None:
        loader.error = error
        results = await asyncio.gather(*(pool.lease("alpha") for _ in range(3)), return_exceptions=True)
        for failure in results:
            assert isinstance(failure, ApiError)
            assert failure.status == status
            assert words in failure.message
            assert "secret" not in failure.message
        assert str(error) in caplog.text
        (await pool.lease("alpha")).release()  # the next request tries again
        assert pool.n_loads == {("alpha", "failed"): 1, ("alpha", "loaded"): 1}

    run(scenario, loader)


def kill(lease: Lease) -> None:
    """Let the model's engine end in an error."""
    lease.model._model.close()
    with pytest.raises(Exception, match="closed"):
        lease.model.generate([1], max_tokens=1)


def test_a_dead_engine_is_replaced(loader: FakeLoader) -> None:
    async def scenario(pool: ModelPool) -> None:
        lease = await pool.lease("alpha")
        assert pool.problems() == []
        kill(lease)
        assert pool.problems() == ["alpha: its engine has stopped"]
        fresh = await pool.lease("alpha")
        assert fresh.model is not lease.model
        assert fresh.model.generate([65], max_tokens=1).text == "B"
        assert pool.problems() == []
        await until(lambda: len(pool.residents) == 1)  # the dead one is closed at once
        assert n_leases(pool) == 1
        lease.release()
        fresh.release()
        assert n_leases(pool) == 0

    run(scenario, loader)


def test_a_stuck_engine_is_noticed(loader: FakeLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(pool: ModelPool) -> None:
        lease = await pool.lease("alpha")
        loader.models[0].script.gate = threading.Semaphore(0)
        answer = loader.models[0].generate([65], max_tokens=1, stream=True)
        await until(lambda: loader.models[0].script.inside == 1)
        assert pool.problems() == []  # a step under way is no problem
        for resident in pool.residents:
            resident.pulse._stuck_seconds = 0.01
        await asyncio.sleep(0.02)
        assert len(pool.problems()) == 1
        assert "no step has ended" in pool.problems()[0]
        with pytest.raises(ApiError) as caught:
            await pool.lease("alpha")
        assert caught.value.status == 503
        loader.models[0].script.gate.release(100)
        assert answer.reply().text == "B"
        await until(lambda: pool.problems() == [])
        lease.release()

    run(scenario, loader)


def test_models_given_as_they_are_stay() -> None:
    async def scenario() -> None:
        pool = ModelPool({"mine": scripted("Paris")}, limits=PoolLimits(max_models=1, keep_alive=0))
        lease = await pool.lease("MINE")
        lease.release()
        await asyncio.sleep(0.02)
        assert loaded(pool) == ["mine"]
        kill(lease)
        with pytest.raises(ApiError) as caught:
            await pool.lease("mine")
        assert caught.value.status == 503
        await pool.close()

    asyncio.run(scenario())


def test_the_end_refuses_those_who_wait_for_a_load(loader: FakeLoader) -> None:
    async def scenario(pool: ModelPool) -> None:
        loader.gate = threading.Event()
        task = asyncio.create_task(pool.lease("alpha"))
        await until(lambda: loader.n_loading == 1)
        await pool.close()
        with pytest.raises(ApiError, match="shutting down"):
            await task
        with pytest.raises(ApiError, match="shutting down"):
            await pool.lease("beta")

    run(scenario, loader)


def test_no_lease_is_lost(loader: FakeLoader) -> None:
    """Any order of requests, cancellations, failures and evictions leaves nothing in use."""

    async def one(pool: ModelPool, random_: random.Random) -> None:
        if random_.random() < 0.05:
            loader.error = ModelFileError("damaged")
        try:
            lease = await pool.lease(random_.choice(loader.names))
        except ApiError:
            return
        try:
            assert not lease.model.engine.stats.n_running
            await asyncio.sleep(random_.random() * 0.004)
        finally:
            lease.release()

    async def scenario(pool: ModelPool) -> None:
        random_ = random.Random(5)
        for _ in range(40):
            tasks = [asyncio.create_task(one(pool, random_)) for _ in range(5)]
            await asyncio.sleep(random_.random() * 0.006)
            for task in tasks:
                if random_.random() < 0.4:
                    task.cancel()
            await asyncio.wait(tasks)
            assert n_leases(pool) == 0
            assert len(pool.residents) <= 2
        assert not loader.overlapped

    run(scenario, loader, limits=PoolLimits(budget=2 * MODEL_BYTES, keep_alive=0.01))
