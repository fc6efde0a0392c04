"""A model for engine tests, whose logits depend on nothing but the tokens it reads back through the KV blocks.

Owns a KV storage of (position, token) pairs: any block that is mixed up, lost, or written by two sequences changes the
output or fails an assertion. `expected_ids` says what a generation must give, without an engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np

from freehold.core import KV_BLOCK, Batch, Float32Array, KVCacheLike, KVSpec

VOCAB = 101


def logits_of(tokens: Sequence[int], vocab_size: int = VOCAB) -> Float32Array:
    """Logits [vocab_size] after `tokens`: pseudo-random, a pure function of all of them."""
    digest = blake2b(np.asarray(tokens, np.int64).tobytes(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little")).standard_normal(vocab_size, np.float32) * 3


def expected_ids(prompt: Sequence[int], n: int) -> list[int]:
    """The greedy continuation of `prompt` by n tokens."""
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(int(logits_of(tokens).argmax()))
    return tokens[len(prompt) :]


def prompt_of(seed: int, n: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, VOCAB, n)]


class FakeKV:
    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        self.slots = np.full((n_blocks, KV_BLOCK, 2), -1, np.int64)  # (position, token)


class FakeModel:
    """`edit` may change the logits of given tokens; `before` runs first in each forward, and may block or raise."""

    def __init__(self, *, max_context: int = 4096, vocab_size: int = VOCAB) -> None:
        self.vocab_size = vocab_size
        self.max_context = max_context
        self.kv_specs = (KVSpec("full", 1, 1, 1),)
        self.batches: list[Batch] = []
        self.before: Callable[[Batch], None] = lambda batch: None
        self.edit: Callable[[list[int], Float32Array], None] = lambda tokens, logits: None

    def interrupt(self) -> None:
        """A test may set another."""

    def new_kv(self, n_blocks: int) -> FakeKV:
        return FakeKV(n_blocks)

    def forward(self, batch: Batch, kv: KVCacheLike) -> Float32Array:
        assert isinstance(kv, FakeKV)
        self.batches.append(batch)
        self.before(batch)
        self._check(batch)
        logits = np.empty((len(batch.logit_rows), self.vocab_size), np.float32)
        n_done = 0
        for row in range(len(batch.seq_starts) - 1):
            start, end = batch.seq_starts[row], batch.seq_starts[row + 1]
            slots = kv.slots[batch.block_table[row]].reshape(-1, 2)
            positions = batch.positions[start:end]
            for token, position in zip(batch.tokens[start:end], positions, strict=True):
                block = batch.block_table[row, position // KV_BLOCK]
                kv.slots[block, position % KV_BLOCK] = position, token
            past = slots[: positions[0], 0]
            assert np.array_equal(past, np.arange(positions[0])), "the KV before this chunk is missing"
            if end - 1 in batch.logit_rows:
                read = kv.slots[batch.block_table[row]].reshape(-1, 2)[: positions[-1] + 1, 1].tolist()
                logits[n_done] = logits_of(read, self.vocab_size)
                self.edit(read, logits[n_done])
                n_done += 1
        assert n_done == len(batch.logit_rows)
        logits.flags.writeable = False
        return logits

    def _check(self, batch: Batch) -> None:
        for array in (batch.tokens, batch.positions, batch.seq_starts, batch.block_table, batch.logit_rows):
            assert array.dtype == np.int32
            assert array.flags.c_contiguous
        assert batch.seq_starts[0] == 0
        assert batch.seq_starts[-1] == len(batch.tokens) == len(batch.positions)
        for row in range(len(batch.seq_starts) - 1):
            positions = batch.positions[batch.seq_starts[row] : batch.seq_starts[row + 1]]
            assert len(positions) > 0
            assert np.array_equal(positions, np.arange(positions[0], positions[0] + len(positions)))
            assert positions[-1] < self.max_context
            written = batch.block_table[row, positions[0] // KV_BLOCK : positions[-1] // KV_BLOCK + 1]
            assert (written >= 0).all()
            others = np.delete(batch.block_table, row, axis=0)
            assert not np.isin(written, others).any(), "a block is written by one sequence and visible to another"


class Gate:
    """Lets a model take one step per `open`; use as FakeModel.before."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self._free = False

    def __call__(self, batch: Batch) -> None:
        self.entered.release()
        if not self._free:
            assert self._permits.acquire(timeout=10), "the test never opened the gate"

    def wait_entered(self) -> None:
        """Return once the model is inside its next step."""
        assert self.entered.acquire(timeout=10), "the engine never called the model"

    def open(self, n_steps: int = 1) -> None:
        self._permits.release(n_steps)

    def open_for_good(self) -> None:
        self._free = True
        self._permits.release(1000)
