"""State of one generation inside the engine: its tokens, its KV blocks, its sampler and its limits.

Written by the engine's thread only, with two exceptions: the submitting thread builds it, and any thread may set
`cancelled`. Holds no policy: the scheduler decides what runs, the engine decides when a sequence ends.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from queue import SimpleQueue

from freehold.core import KV_BLOCK, FinishReason, Int32Array, Token
from freehold.engine.blocks import block_key, root_key
from freehold.engine.sampler import Sampler
from freehold.errors import EngineError

_INT32 = "i"  # array type code; a growing array that numpy reads without conversion


class Sequence:
    """One prompt and what was generated after it. KV exists for the first `n_computed` of its `n_tokens` tokens."""

    def __init__(
        self,
        prompt: Int32Array,
        sampler: Sampler,
        *,
        max_tokens: int,
        stop_ids: frozenset[int],
        namespace: str,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        self.n_prompt = len(prompt)
        self.max_tokens = max_tokens
        self.stop_ids = stop_ids
        self.sampler = sampler
        self.generated: list[int] = []
        self.n_tokens = self.n_prompt
        self.n_computed = 0
        self.blocks = array(_INT32)  # in order of position; covers at least n_computed tokens
        self.n_published = 0  # leading blocks already offered to the prefix index
        self.prompt_start: int | None = None  # the first position that was computed, once one is
        self.n_cached = 0  # prompt tokens that did not have to be computed for the first generated one
        self.cancelled = False
        self.finish: FinishReason | None = None
        self.sink: SimpleQueue[Token | EngineError | None] = SimpleQueue()  # None or an error comes last
        self.on_ready = on_ready  # called once the sink has something new
        self.submitted_at = self.admitted_at = self.first_token_at = self.last_token_at = 0.0  # time.perf_counter
        self._tokens = array(_INT32, prompt.tobytes())
        self._keys = [root_key(namespace)]

    @property
    def n_pending(self) -> int:
        """Tokens known but not yet in the KV cache; at least 1 while the sequence lives."""
        return self.n_tokens - self.n_computed

    @property
    def is_decoding(self) -> bool:
        """Whether only the newest generated token is pending."""
        return self.n_pending == 1 and self.n_computed >= self.n_prompt

    @property
    def n_blocks_needed(self) -> int:
        """Blocks that all known tokens occupy."""
        return -(-self.n_tokens // KV_BLOCK)

    @property
    def n_reusable_blocks(self) -> int:
        """Leading blocks that may come from the prefix cache: the last token is computed for its logits."""
        return (self.n_tokens - 1) // KV_BLOCK

    def tokens(self, start: int, stop: int) -> array[int]:
        """Copy of the token ids at positions start .. stop - 1, int32."""
        return self._tokens[start:stop]

    def deliver(self, items: Iterable[Token | EngineError | None]) -> None:
        """Hand items to whoever reads the sink, and say so."""
        for item in items:
            self.sink.put(item)
        if self.on_ready is not None:
            self.on_ready()

    def append(self, token_id: int) -> None:
        """Record a generated token."""
        self._tokens.append(token_id)
        self.n_tokens += 1
        self.generated.append(token_id)

    def key(self, i: int) -> bytes:
        """Prefix key of block i, which must be full of known tokens. Computed once per block."""
        assert (i + 1) * KV_BLOCK <= self.n_tokens, "only full blocks have a key"
        while len(self._keys) <= i + 1:
            start = (len(self._keys) - 1) * KV_BLOCK
            self._keys.append(block_key(self._keys[-1], self._tokens[start : start + KV_BLOCK].tobytes()))
        return self._keys[i + 1]
