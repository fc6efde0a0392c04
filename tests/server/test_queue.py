"""The line in front of a model: its bound, its order, and that no place is ever lost."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.server.errors import ApiError
from freehold.server.queue import LONGEST_RETRY, FairQueue, Place, QueueLimits


def test_so_many_are_inside_and_so_many_wait() -> None:
    async def scenario() -> None:
        queue = FairQueue(QueueLimits(max_running=2, max_waiting=3))
        places = [queue.join("") for _ in range(5)]
        assert (queue.n_running, queue.n_waiting) == (2, 3)
        for refused in (queue.check, lambda: queue.join("")):
            with pytest.raises(ApiError) as caught:
                refused()
            assert caught.value.status == 429
            assert int(caught.value.headers["retry-after"]) >= 1
        places[0].leave()
        queue.check()
        assert (queue.n_running, queue.n_waiting) == (2, 2)

    asyncio.run(scenario())


def test_nobody_may_wait_where_no_line_is_wanted() -> None:
    async def scenario() -> None:
        queue = FairQueue(QueueLimits(max_running=1, max_waiting=0))
        place = queue.join("")
        with pytest.raises(ApiError):
            queue.join("")
        place.leave()
        queue.join("")

    asyncio.run(scenario())


def entered(places: dict[str, Place]) -> list[str]:
    return [name for name, place in places.items() if place.entered_at is not None and not place.left]


def test_namespaces_take_turns() -> None:
    async def scenario() -> list[str]:
        queue = FairQueue(QueueLimits(max_running=1))
        first = queue.join("a")
        places = {name: queue.join(name[0]) for name in ("a1", "a2", "a3", "b1", "c1", "b2")}
        order = []
        first.leave()
        while inside := entered(places):
            order += inside
            places[inside[0]].leave()
        return order

    assert asyncio.run(scenario()) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_who_gives_up_leaves_the_line() -> None:
    async def scenario() -> None:
        queue = FairQueue(QueueLimits(max_running=1))
        inside = queue.join("")

        async def take_part() -> str:
            place = queue.join("")
            try:
                await place.turn()
                return "served"
            finally:
                place.leave()

        gone, patient = asyncio.create_task(take_part()), asyncio.create_task(take_part())
        await asyncio.sleep(0)
        assert queue.n_waiting == 2
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert queue.n_waiting == 1
        inside.leave()
        assert await patient == "served"
        assert (queue.n_running, queue.n_waiting) == (0, 0)

    asyncio.run(scenario())


def test_who_is_put_out_of_the_line_gets_the_reason() -> None:
    async def scenario() -> None:
        queue = FairQueue(QueueLimits(max_running=1))
        queue.join("")
        place = queue.join("")
        waiting = asyncio.create_task(place.turn())
        await asyncio.sleep(0)
        place.leave(ApiError(504, "too late"))
        with pytest.raises(ApiError, match="too late"):
            await waiting
        assert queue.n_waiting == 0

    asyncio.run(scenario())


def test_the_time_to_come_back_follows_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("freehold.server.queue.time", SimpleNamespace(monotonic=lambda: now))

    def retry_after(seconds: float) -> int:
        nonlocal now
        queue = FairQueue(QueueLimits(max_running=2, max_waiting=10))
        for _ in range(30):
            place = queue.join("")
            now += seconds
            place.leave()
        for _ in range(12):
            queue.join("")
        with pytest.raises(ApiError) as caught:
            queue.check()
        return int(caught.value.headers["retry-after"])

    async def scenario() -> list[int]:
        return [retry_after(0.01), retry_after(8), retry_after(1e6)]

    assert asyncio.run(scenario()) == [1, 40, LONGEST_RETRY]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(0, 4),
    st.lists(st.tuples(st.sampled_from(["join", "leave"]), st.sampled_from("abc"), st.integers(0, 9)), max_size=60),
)
def test_no_place_is_lost(max_running: int, max_waiting: int, steps: list[tuple[str, str, int]]) -> None:
    async def scenario() -> None:
        queue = FairQueue(QueueLimits(max_running, max_waiting))
        alive: list[Place] = []
        for what, namespace, which in steps:
            if what == "leave" and alive:
                place = alive.pop(which % len(alive))
                place.leave()
                place.leave()
            elif what == "join":
                full = queue.n_running == max_running and queue.n_waiting == max_waiting
                try:
                    alive.append(queue.join(namespace))
                    assert not full
                except ApiError:
                    assert full
            inside = [place for place in alive if place.entered_at is not None]
            assert queue.n_running == len(inside) == min(len(alive), max_running)
            assert queue.n_waiting == len(alive) - len(inside) <= max_waiting
        for place in alive:
            place.leave()
        assert (queue.n_running, queue.n_waiting) == (0, 0)

    asyncio.run(scenario())
