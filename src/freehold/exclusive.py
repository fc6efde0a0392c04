"""One model for several threads: the engine's steps and the logits of whole sequences take turns.

Owns the lock around a forward pass, which shares scratch memory with no other, and the passes that no generation needs.
Sees token ids only.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator

import numpy as np

from freehold.core import KV_BLOCK, Batch, Float32Array, Int32Array, Interrupted, KVCacheLike, Model
from freehold.errors import EngineError

LOGIT_CHUNK_BYTES = 64 * 2**20
"""Logits computed at once: rows enough to keep the matrix units busy, few enough to keep memory flat."""


class ExclusiveModel:
    """A Model whose steps exclude each other; any thread may call it."""

    def __init__(self, model: Model) -> None:
        self._inner = model
        self._lock = threading.Lock()
        self._closed = False
        self._last = -math.inf  # when a step ended
        self.vocab_size = model.vocab_size
        self.max_context = model.max_context
        self.kv_specs = model.kv_specs

    def new_kv(self, n_blocks: int) -> KVCacheLike:
        return self._inner.new_kv(n_blocks)

    def forward(self, batch: Batch, kv: KVCacheLike) -> Float32Array:
        with self._lock:
            if self._closed:
                raise EngineError("the model is closed; load it again")
            logits = self._inner.forward(batch, kv)
            self._last = time.monotonic()
            return logits

    @property
    def idle_seconds(self) -> float:
        return 0.0 if self._lock.locked() else time.monotonic() - self._last

    def close(self) -> None:
        """Wait for the step under way; later ones are refused."""
        with self._lock:
            self._closed = True

    def iter_logits(self, ids: Int32Array) -> Iterator[Float32Array]:
        """Logits after each of `ids` [n], in order, some rows at a time [n_rows, vocab_size]; a KV cache of its own."""
        kv = self.new_kv(-(-len(ids) // KV_BLOCK))
        n_chunk = max(1, min(512, LOGIT_CHUNK_BYTES // (4 * self.vocab_size)))
        for start in range(0, len(ids), n_chunk):
            end = min(start + n_chunk, len(ids))
            batch = Batch(
                tokens=ids[start:end],
                positions=np.arange(start, end, dtype=np.int32),
                seq_starts=np.array([0, end - start], np.int32),
                block_table=np.arange(-(-end // KV_BLOCK), dtype=np.int32)[None],
                logit_rows=np.arange(end - start, dtype=np.int32),
                prompts=np.array([[0, len(ids)]], np.int32),
            )
            yield self._whole_pass(batch, kv)

    def _whole_pass(self, batch: Batch, kv: KVCacheLike) -> Float32Array:
        """A pass that nobody cancels: an interruption was meant for the engine's, which waited for this one."""
        while True:
            try:
                return self.forward(batch, kv)
            except Interrupted:
                continue

    def interrupt(self) -> None:
        """End the forward pass under way soon."""
        self._inner.interrupt()
