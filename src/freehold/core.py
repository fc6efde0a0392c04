"""Nouns that models and the engine share: KV layout, sampling parameters, batches, tokens.

Owns plain values only. Imports nothing of ours except the errors; knows nothing of text, files or kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from freehold.errors import RequestError

KV_BLOCK = 32
"""Tokens in one KV block (page). 32 is the K extent of a 16-bit matrix tile, so a block feeds a tile product whole."""

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]
FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "error"]
"""Why an answer ended. The engine, which knows no calls, never says "tool_calls"."""

LogitMask = Callable[[Sequence[int], Float32Array], None]
"""Called with the tokens generated so far and the logits [vocab]; sets what is forbidden to -inf, in place."""


class Constraint(Protocol):
    """What a generation may say, followed token by token on the engine's thread. What it raises ends this generation
    alone.
    """

    def mask(self, logits: Float32Array) -> None:
        """Set the logits [vocab_size] of ids that may not come next to -inf, in place."""
        ...

    def accept(self, id: int) -> Sequence[int]:
        """Token `id` was chosen. Returns the ids that must come next; they follow without being sampled."""
        ...


@dataclass(frozen=True)
class KVSpec:
    """What one layer keeps per past token.

    kind: "full" keeps every token, "window" only the last `window`, "latent" one compressed row (MLA).
    """

    kind: Literal["full", "window", "latent"]
    n_heads: int
    k_dim: int
    v_dim: int
    window: int | None = None

    def elements_per_token(self) -> int:
        """Stored numbers per token of this layer."""
        return self.n_heads * (self.k_dim + self.v_dim)


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. temperature 0 is greedy; the other filters then have no effect.

    top_k 0, top_p 1 and min_p 0 switch the filter off. Filters apply in the order penalties, logit bias, mask,
    temperature, top-k, top-p, min-p. `seed` None draws one from the operating system.
    `n_logprobs` None returns no log-probabilities, 0 only the sampled token's, n the n most likely ones as well;
    they are those of the model's distribution before any filter.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    stop_ids: frozenset[int] = frozenset()
    n_logprobs: int | None = None

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, value: object, expected: str) -> None:
            if not ok:
                raise RequestError(f"{name} is {value!r}; expected {expected}")

        check(0 <= self.temperature < float("inf"), "temperature", self.temperature, "a number >= 0 (0 is greedy)")
        check(self.top_k >= 0, "top_k", self.top_k, "a whole number >= 0 (0 switches it off)")
        check(0 < self.top_p <= 1, "top_p", self.top_p, "a number above 0 and at most 1 (1 switches it off)")
        check(0 <= self.min_p < 1, "min_p", self.min_p, "a number from 0 (off) to below 1")
        repetition = self.repetition_penalty
        check(0 < repetition < float("inf"), "repetition_penalty", repetition, "a number above 0 (1 is off)")
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            check(-2 <= value <= 2, name, value, "a number from -2 to 2 (0 is off)")
        check(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", self.max_tokens, "a whole number >= 1")
        check(self.n_logprobs is None or 0 <= self.n_logprobs <= 100, "n_logprobs", self.n_logprobs, "0 to 100")


@dataclass(frozen=True)
class Batch:
    """One step's work for the model: tokens of several sequences, prefill chunks and decode tokens mixed.

    Sequence i owns tokens[seq_starts[i]:seq_starts[i + 1]]; they directly follow what its KV blocks already hold.
    prompts[i] are the positions, first and end, that are computed as one prompt, in however many steps: where there are
    several ways to compute, this decides and not the cut into steps. Without it, every chunk is a prompt of its own.
    """

    tokens: Int32Array  # [n_tokens]
    positions: Int32Array  # [n_tokens] absolute position of each token in its sequence
    seq_starts: Int32Array  # [n_seqs + 1] ascending, from 0 to n_tokens
    block_table: Int32Array  # [n_seqs, max_blocks] KV block ids in order of position; unused entries are -1
    logit_rows: Int32Array  # [n_logits] ascending indices into tokens whose logits are wanted
    prompts: Int32Array | None = None  # [n_seqs, 2]


@dataclass(frozen=True)
class Token:
    """One generated token. `logprob` and `top` follow SamplingParams.n_logprobs; `finish` is set on the last one."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: FinishReason | None = None


class Interrupted(Exception):
    """A forward pass was ended by `interrupt`. Nothing of it counts; it may be run again."""


class KVCacheLike(Protocol):
    """Storage behind block ids; `n_blocks` ids from 0 are valid in every layer."""

    @property
    def n_blocks(self) -> int: ...


class Model(Protocol):
    """What the engine needs of a loaded model."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_context(self) -> int: ...

    @property
    def kv_specs(self) -> Sequence[KVSpec]: ...

    def new_kv(self, n_blocks: int) -> KVCacheLike:
        """Storage for n_blocks * KV_BLOCK tokens. Memory is touched only when used."""
        ...

    def forward(self, batch: Batch, kv: KVCacheLike) -> Float32Array:
        """Append the batch's keys and values to `kv` and return logits [n_logits, vocab_size].

        Raises Interrupted when `interrupt` was called meanwhile.
        """
        ...

    def interrupt(self) -> None:
        """End the forward pass under way soon, if there is one and it can be ended. From any thread; never waits."""
        ...
