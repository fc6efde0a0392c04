"""Scheduler: which tokens of which sequences the next step computes, and in which KV blocks.

Owns the waiting line, the running list and the block pool. Sees token ids and lengths only; never runs a model or a
sampler. The rules, in order:

1. Every decoding sequence advances by one token, or by those that a constraint forced, which count as prefill. When
   blocks run out, the latest admitted sequence is preempted: it gives back its blocks, keeps its tokens, and computes
   their KV again once it leaves the head of the waiting line.
2. Waiting sequences are admitted strictly in order, each with blocks for all its tokens, so prefill never runs out.
3. What is left of the step's token budget is shared evenly among the prefilling sequences: a long prompt delays a
   short one by no more than its share. No more sequences run than a step has tokens, so each advances in every step;
   only a sequence whose next block an older one is computing right now waits, and takes over that block.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from freehold.core import KV_BLOCK, Batch
from freehold.engine.blocks import BlockPool
from freehold.engine.sequence import Sequence

_WANTED_SHARE = 8  # of a step's tokens, one in so many keeps it going


@dataclass(frozen=True)
class Step:
    """What one forward pass computes: `work` in batch order, and the sequences of the logits' rows in row order."""

    batch: Batch
    work: list[tuple[Sequence, int]]  # (sequence, number of its pending tokens to compute)
    sampled: list[Sequence]

    @property
    def is_unwanted(self) -> bool:
        """Whether it computes next to nothing but cancelled sequences: then doing the rest again costs less time."""
        n_wanted = sum(n_new for sequence, n_new in self.work if not sequence.cancelled)
        return n_wanted * _WANTED_SHARE < len(self.batch.tokens)


class Scheduler:
    """Plans steps for the sequences it was given. Not thread-safe: it belongs to the engine's thread."""

    def __init__(self, pool: BlockPool, *, max_batch_tokens: int, max_sequences: int, prefix_cache: bool) -> None:
        self.pool = pool
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of admission
        self.n_prefill_tokens = 0
        self.n_decode_tokens = 0
        self.n_cached_tokens = 0
        self.n_prefix_hits = 0
        self.n_preemptions = 0
        self._max_batch_tokens = max_batch_tokens
        self._max_running = min(max_sequences, max_batch_tokens)
        self._prefix_cache = prefix_cache

    @property
    def has_work(self) -> bool:
        """Whether any sequence is unfinished."""
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Append to the waiting line. The pool must be able to hold the sequence at its greatest length."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence, *, keep_cache: bool = True) -> None:
        """Drop a sequence, wherever it is, with its blocks; without `keep_cache`, its KV is not reused either."""
        if not keep_cache:
            for block in sequence.blocks:
                self.pool.forget(block)
        self._release_blocks(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def schedule(self) -> Step:
        """Plan the next step. There must be work; the step is never empty."""
        work = self._plan_decode()
        self._admit()
        work += self._plan_prefill(decoding={s for s, _ in work}, budget=self._max_batch_tokens - len(work))
        assert work, "a step must make progress"
        return _build_step(work)

    def advance(self, step: Step) -> None:
        """Record that the step's KV is computed, and publish the blocks it filled."""
        for sequence, n_new in step.work:
            if sequence.is_decoding:
                self.n_decode_tokens += 1
            else:
                self.n_prefill_tokens += n_new
            sequence.n_computed += n_new
            if not sequence.n_pending and not sequence.generated:
                self.n_prefix_hits += sequence.n_cached > 0
                self.n_cached_tokens += sequence.n_cached
            if self._prefix_cache:
                for i in range(sequence.n_published, sequence.n_computed // KV_BLOCK):
                    self.pool.publish(sequence.blocks[i], sequence.key(i))
                    sequence.n_published = i + 1

    def _plan_decode(self) -> list[tuple[Sequence, int]]:
        work = []
        for sequence in tuple(self.running):
            # Without blocks it was preempted just now, for one before it.
            if sequence.blocks and self._make_room(sequence) and sequence.is_decoding:
                work.append((sequence, 1))
        return work

    def _make_room(self, sequence: Sequence) -> bool:
        """Give a sequence the blocks its new tokens need; False if it was preempted for want of one."""
        while len(sequence.blocks) < sequence.n_blocks_needed:
            while not self.pool.n_free:
                latest = self.running[-1]
                self._preempt(latest)
                if latest is sequence:
                    return False
            sequence.blocks.append(self.pool.allocate())
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release_blocks(sequence)
        self.waiting.appendleft(sequence)
        self.n_preemptions += 1

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._max_running:
            sequence = self.waiting[0]
            self._adopt(sequence)
            n_missing = sequence.n_blocks_needed - len(sequence.blocks)
            # One block is left over for each running sequence: admitting into the last blocks would preempt at once.
            if self.running and n_missing + len(self.running) > self.pool.n_free:
                self._release_blocks(sequence)
                return
            sequence.blocks.extend(self.pool.allocate() for _ in range(n_missing))
            self.running.append(self.waiting.popleft())
            if not sequence.admitted_at:
                sequence.admitted_at = time.perf_counter()

    def _adopt(self, sequence: Sequence) -> None:
        """Take over the longest prefix of what is pending that is cached by now."""
        if not self._prefix_cache:
            return
        for i in range(sequence.n_computed // KV_BLOCK, sequence.n_reusable_blocks):
            block = self.pool.lookup(sequence.key(i))
            if block is None:
                break
            self.pool.acquire(block)
            if i < len(sequence.blocks):
                self.pool.release(sequence.blocks[i])
                sequence.blocks[i] = block
            else:
                sequence.blocks.append(block)
            n_new = (i + 1) * KV_BLOCK - sequence.n_computed
            sequence.n_computed += n_new
            sequence.n_published = i + 1
            if not sequence.generated:
                sequence.n_cached += n_new

    def _plan_prefill(self, *, decoding: set[Sequence], budget: int) -> list[tuple[Sequence, int]]:
        chosen = []
        in_progress = set()  # keys of the blocks that this step works on
        for sequence in self.running:
            if sequence in decoding:
                continue
            self._adopt(sequence)
            i = sequence.n_computed // KV_BLOCK
            if self._prefix_cache and i < sequence.n_reusable_blocks:
                key = sequence.key(i)
                if key in in_progress:
                    continue
                in_progress.add(key)
            chosen.append(sequence)
        return _share(chosen, budget)

    def _release_blocks(self, sequence: Sequence) -> None:
        for block in reversed(sequence.blocks):
            self.pool.release(block)
        del sequence.blocks[:]
        sequence.n_computed = sequence.n_published = 0
        if not sequence.generated:
            sequence.n_cached = 0


def _share(sequences: list[Sequence], budget: int) -> list[tuple[Sequence, int]]:
    """Split `budget` tokens evenly; what a short sequence does not need goes to the longer ones."""
    shares = {}
    for n_done, sequence in enumerate(sorted(sequences, key=lambda s: s.n_pending)):
        share = min(sequence.n_pending, budget // (len(sequences) - n_done))
        shares[sequence] = share
        budget -= share
    return [(sequence, shares[sequence]) for sequence in sequences]


def _build_step(work: list[tuple[Sequence, int]]) -> Step:
    n_tokens = sum(n_new for _, n_new in work)
    tokens = np.empty(n_tokens, np.int32)
    positions = np.empty(n_tokens, np.int32)
    seq_starts = np.zeros(len(work) + 1, np.int32)
    block_table = np.full((len(work), max(len(s.blocks) for s, _ in work)), -1, np.int32)
    prompts = np.empty((len(work), 2), np.int32)
    sampled, logit_rows = [], []
    end = 0
    for row, (sequence, n_new) in enumerate(work):
        start, end = end, end + n_new
        first = sequence.n_computed
        tokens[start:end] = sequence.tokens(first, first + n_new)
        positions[start:end] = np.arange(first, first + n_new)
        seq_starts[row + 1] = end
        if sequence.prompt_start is None:
            sequence.prompt_start = first
        prompts[row] = sequence.prompt_start, sequence.n_prompt
        block_table[row, : len(sequence.blocks)] = sequence.blocks
        if n_new == sequence.n_pending:
            sampled.append(sequence)
            logit_rows.append(end - 1)
    batch = Batch(tokens, positions, seq_starts, block_table, np.array(logit_rows, np.int32), prompts)
    return Step(batch, work, sampled)
