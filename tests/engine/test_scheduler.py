"""The scheduler alone: any workload and pool give the right ids, nobody starves, a shared prefix is computed once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_fakes import VOCAB, FakeModel, expected_ids, prompt_of
from freehold.core import KV_BLOCK, SamplingParams
from freehold.engine.blocks import BlockPool
from freehold.engine.sampler import Sampler
from freehold.engine.scheduler import Scheduler, Step
from freehold.engine.sequence import Sequence


def make_sequence(prompt: list[int], max_tokens: int, namespace: str = "") -> Sequence:
    ids = np.array(prompt, np.int32)
    sampler = Sampler(SamplingParams(), ids, VOCAB)
    return Sequence(ids, sampler, max_tokens=max_tokens, stop_ids=frozenset(), namespace=namespace)


def make_scheduler(
    n_blocks: int, *, max_batch_tokens: int = 64, max_sequences: int = 8, prefix_cache: bool = True
) -> Scheduler:
    pool = BlockPool(n_blocks)
    return Scheduler(pool, max_batch_tokens=max_batch_tokens, max_sequences=max_sequences, prefix_cache=prefix_cache)


class Driver:
    """The engine's loop without its thread; greedy. Checks the token budget and the pool in every step."""

    def __init__(self, scheduler: Scheduler, max_batch_tokens: int) -> None:
        self.scheduler = scheduler
        self.max_batch_tokens = max_batch_tokens
        self.model = FakeModel()
        self.kv = self.model.new_kv(scheduler.pool.n_blocks)
        self.done: list[Sequence] = []

    def step(self) -> Step:
        step = self.scheduler.schedule()
        assert 0 < len(step.batch.tokens) <= self.max_batch_tokens
        self.scheduler.pool.check()
        logits = self.model.forward(step.batch, self.kv)
        self.scheduler.advance(step)
        for sequence, row in zip(step.sampled, logits, strict=True):
            sequence.append(int(row.argmax()))
            if len(sequence.generated) == sequence.max_tokens:
                self.scheduler.remove(sequence)
                self.done.append(sequence)
        return step

    def run(self, max_steps: int = 5000) -> None:
        while self.scheduler.has_work:
            self.step()
            max_steps -= 1
            assert max_steps, "no end in sight"
        self.scheduler.pool.check()
        assert self.scheduler.pool.n_free == self.scheduler.pool.n_blocks


workload = st.lists(
    st.tuples(
        st.integers(0, 2),  # prompts of one seed are prefixes of each other
        st.integers(1, 110),  # prompt length
        st.integers(1, 45),  # max_tokens
        st.sampled_from(["", "other"]),
        st.integers(0, 12),  # steps before it arrives
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=60, deadline=None)
@given(workload, st.integers(5, 12), st.sampled_from([1, 2, 7, 33, 64, 200]), st.integers(1, 5), st.booleans())
def test_any_workload_gives_the_ids_of_each_sequence_alone(
    jobs: list[tuple[int, int, int, str, int]], n_blocks: int, budget: int, n_max: int, cache: bool
) -> None:
    scheduler = make_scheduler(n_blocks, max_batch_tokens=budget, max_sequences=n_max, prefix_cache=cache)
    driver = Driver(scheduler, budget)
    sequences = []
    for seed, n_prompt, max_tokens, namespace, n_steps in jobs:
        for _ in range(n_steps):
            if scheduler.has_work:
                driver.step()
        sequence = make_sequence(prompt_of(seed, 110)[:n_prompt], max_tokens, namespace)
        sequences.append(sequence)
        scheduler.add(sequence)
    driver.run()
    for sequence, (seed, n_prompt, max_tokens, _, _) in zip(sequences, jobs, strict=True):
        assert sequence.generated == expected_ids(prompt_of(seed, 110)[:n_prompt], max_tokens)


def test_blocks_cover_the_known_tokens_and_no_more() -> None:
    n_needed = [make_sequence(prompt_of(1, n), 1).n_blocks_needed for n in (1, KV_BLOCK, KV_BLOCK + 1, 2 * KV_BLOCK)]
    assert n_needed == [1, 1, 2, 2]


def test_preemption_takes_the_latest_and_keeps_the_output() -> None:
    scheduler = make_scheduler(6)
    driver = Driver(scheduler, 64)
    first, second = make_sequence(prompt_of(1, 30), 100), make_sequence(prompt_of(2, 30), 100)
    scheduler.add(first)
    scheduler.add(second)
    while not scheduler.n_preemptions:
        driver.step()
    assert scheduler.running == [first]
    assert list(scheduler.waiting) == [second]
    n_kept = len(second.generated)
    assert n_kept > 30
    driver.run()
    assert driver.done == [first, second]
    assert first.generated == expected_ids(prompt_of(1, 30), 100)
    assert second.generated == expected_ids(prompt_of(2, 30), 100)


def test_a_preempted_sequence_returns_before_those_that_never_ran() -> None:
    scheduler = make_scheduler(6, max_sequences=2)
    driver = Driver(scheduler, 64)
    sequences = [make_sequence(prompt_of(i, 30), 100) for i in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)
    while not scheduler.n_preemptions:
        driver.step()
    assert list(scheduler.waiting) == sequences[1:]
    driver.run()
    assert driver.done == sequences


def test_a_preempted_sequence_publishes_its_blocks_again() -> None:
    scheduler = make_scheduler(6)
    driver = Driver(scheduler, 64)
    first, second = make_sequence(prompt_of(1, 30), 140), make_sequence(prompt_of(2, 30), 100)
    scheduler.add(first)
    scheduler.add(second)
    driver.run()
    assert scheduler.n_preemptions == 1
    again = make_sequence(prompt_of(2, 30) + second.generated, 1)
    scheduler.add(again)
    driver.run()
    assert again.n_cached == 4 * KV_BLOCK


def test_a_prefix_outlives_what_builds_on_it() -> None:
    scheduler = make_scheduler(6)
    driver = Driver(scheduler, 200)
    for prompt in (prompt_of(1, 4 * KV_BLOCK + 1), prompt_of(2, 2 * KV_BLOCK + 1)):
        scheduler.add(make_sequence(prompt, 1))
        driver.run()
    again = make_sequence(prompt_of(1, 4 * KV_BLOCK + 1), 1)
    scheduler.add(again)
    driver.run()
    assert again.n_cached == 3 * KV_BLOCK  # the second prompt took the two free blocks and the end of the first


def test_cached_tokens_are_counted_once_however_long_a_sequence_waits() -> None:
    scheduler = make_scheduler(8)
    driver = Driver(scheduler, 200)
    prompt = prompt_of(1, 2 * KV_BLOCK + 1)
    scheduler.add(make_sequence(prompt, 1))
    driver.run()
    holder, blocked = make_sequence(prompt_of(2, 5 * KV_BLOCK), 20), make_sequence(prompt, 1)
    scheduler.add(holder)
    scheduler.add(blocked)
    for _ in range(10):
        driver.step()
        assert list(scheduler.waiting) == [blocked]
    driver.run()
    assert blocked.n_cached == 2 * KV_BLOCK
    assert scheduler.n_cached_tokens == 2 * KV_BLOCK


def test_a_preempted_sequence_does_not_thrash() -> None:
    scheduler = make_scheduler(8)
    driver = Driver(scheduler, 64)
    for seed in range(4):
        scheduler.add(make_sequence(prompt_of(seed, 40), 120))
    driver.run()
    assert scheduler.n_preemptions == 3
    assert [len(s.generated) for s in driver.done] == [120] * 4


def test_a_long_prompt_delays_neither_decoding_nor_a_short_prompt() -> None:
    scheduler = make_scheduler(200, max_batch_tokens=32)
    driver = Driver(scheduler, 32)
    decoding = make_sequence(prompt_of(1, 5), 60)
    scheduler.add(decoding)
    driver.step()
    long, short = make_sequence(prompt_of(2, 1500), 2), make_sequence(prompt_of(3, 20), 2)
    scheduler.add(long)
    scheduler.add(short)
    for n_steps in range(1, 5):
        n_before = long.n_computed
        driver.step()
        assert len(decoding.generated) == 1 + n_steps
        assert long.n_computed > n_before
    assert len(short.generated) == 2
    assert long.n_computed >= 4 * 15


def test_prompts_share_a_step_evenly_and_pass_on_what_they_do_not_need() -> None:
    scheduler = make_scheduler(200, max_batch_tokens=64)
    driver = Driver(scheduler, 64)
    sequences = [make_sequence(prompt_of(i, n), 1) for i, n in enumerate((300, 4, 300, 301))]
    for sequence in sequences:
        scheduler.add(sequence)
    step = driver.step()
    assert step.work == list(zip(sequences, (20, 4, 20, 20), strict=True))


def test_decoding_does_not_starve_prefill_even_with_the_smallest_budget() -> None:
    scheduler = make_scheduler(50, max_batch_tokens=4, max_sequences=64)
    driver = Driver(scheduler, 4)
    for seed in range(3):
        scheduler.add(make_sequence(prompt_of(seed, 2), 80))
    for _ in range(4):
        driver.step()
    late, fifth = make_sequence(prompt_of(9, 40), 1), make_sequence(prompt_of(10, 1), 1)
    scheduler.add(late)
    scheduler.add(fifth)
    for n_steps in range(1, 40):
        driver.step()
        assert late.n_computed == n_steps
    assert list(scheduler.waiting) == [fifth]
    driver.run()


def test_admission_is_in_order_even_if_a_later_one_would_fit() -> None:
    scheduler = make_scheduler(10)
    driver = Driver(scheduler, 64)
    holder, big, small = (make_sequence(prompt_of(i, n), 40) for i, n in enumerate((100, 250, 3)))
    for sequence in (holder, big, small):
        scheduler.add(sequence)
    while holder not in driver.done:
        driver.step()
        assert big not in scheduler.running
        assert small not in scheduler.running
    driver.run()
    assert big.generated == expected_ids(prompt_of(1, 250), 40)


def test_a_prefix_shared_by_sequences_that_arrive_together_is_computed_once() -> None:
    scheduler = make_scheduler(100)
    driver = Driver(scheduler, 64)
    shared = prompt_of(1, 10 * KV_BLOCK)
    sequences = [make_sequence(shared + prompt_of(10 + i, 5), 3) for i in range(6)]
    for sequence in sequences:
        scheduler.add(sequence)
    driver.run()
    assert scheduler.n_prefill_tokens == 10 * KV_BLOCK + 6 * 5
    assert scheduler.n_prefix_hits == 5
    assert [s.n_cached for s in sequences] == [0] + [10 * KV_BLOCK] * 5
    for i, sequence in enumerate(sequences):
        assert sequence.generated == expected_ids(shared + prompt_of(10 + i, 5), 3)


def test_followers_go_on_when_the_sequence_they_wait_for_is_removed() -> None:
    scheduler = make_scheduler(100, max_batch_tokens=16)
    driver = Driver(scheduler, 16)
    shared = prompt_of(1, 4 * KV_BLOCK)
    leader, follower = make_sequence([*shared, 1], 2), make_sequence([*shared, 2], 2)
    scheduler.add(leader)
    scheduler.add(follower)
    driver.step()
    assert (leader.n_computed, follower.n_computed) == (16, 0)
    scheduler.remove(leader)
    driver.run()
    assert follower.generated == expected_ids([*shared, 2], 2)


def test_a_block_that_appears_in_the_cache_replaces_a_half_computed_one() -> None:
    scheduler = make_scheduler(10, max_batch_tokens=16)
    driver = Driver(scheduler, 16)
    prompt = prompt_of(1, 60)
    sequence = make_sequence(prompt, 40)
    scheduler.add(sequence)
    driver.step()
    pool = scheduler.pool
    block = pool.allocate()
    driver.kv.slots[block] = np.stack([np.arange(KV_BLOCK), prompt[:KV_BLOCK]], axis=1)
    pool.publish(block, sequence.key(0))
    driver.step()
    assert (sequence.blocks[0], sequence.n_computed, sequence.n_cached) == (block, KV_BLOCK + 16, KV_BLOCK - 16)
    pool.release(block)
    driver.run()
    assert sequence.generated == expected_ids(prompt, 40)


def test_the_last_prompt_token_is_always_computed() -> None:
    scheduler = make_scheduler(20)
    driver = Driver(scheduler, 64)
    prompt = prompt_of(1, 2 * KV_BLOCK)
    cold, warm, longer = make_sequence(prompt, 2), make_sequence(prompt, 2), make_sequence([*prompt, 7], 2)
    for sequence in (cold, warm, longer):
        scheduler.add(sequence)
        driver.run()
    assert (cold.n_cached, warm.n_cached, longer.n_cached) == (0, KV_BLOCK, 2 * KV_BLOCK)
    assert warm.generated == cold.generated == expected_ids(prompt, 2)
    assert longer.generated == expected_ids([*prompt, 7], 2)


def test_generated_tokens_are_reused_by_the_next_turn() -> None:
    scheduler = make_scheduler(20)
    driver = Driver(scheduler, 64)
    first = make_sequence(prompt_of(1, 20), 50)
    scheduler.add(first)
    driver.run()
    second = make_sequence(prompt_of(1, 20) + first.generated + [5], 1)
    scheduler.add(second)
    driver.run()
    assert second.n_cached == 2 * KV_BLOCK  # 69 tokens have KV: the last generated one was never computed


def test_without_keep_cache_nothing_of_a_sequence_is_reused() -> None:
    scheduler = make_scheduler(20)
    driver = Driver(scheduler, 200)
    prompt = prompt_of(1, 100)
    failed, again = make_sequence(prompt, 5), make_sequence(prompt, 1)
    scheduler.add(failed)
    driver.step()
    scheduler.remove(failed, keep_cache=False)
    scheduler.add(again)
    driver.run()
    assert again.n_cached == 0
