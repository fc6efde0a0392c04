"""Does it fit? Weights, KV cache and scratch against the memory this process may use, decided before it is taken.

Owns the arithmetic and the messages. Knows nothing of files, threads or how memory is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from freehold.core import KV_BLOCK, KVSpec
from freehold.errors import RequestError, ResourceError

MIN_CONTEXT = 256
"""Tokens below which a context left over by the weights is called too small to be useful."""


LIMITS_HINT = "`freehold doctor` shows the limits"


@dataclass(frozen=True)
class MemoryPlan:
    """What a loaded model may hold: `context` tokens per conversation, `n_blocks` KV blocks for all conversations.

    `token_bytes` is what one token takes in the KV cache, `budget` what the process may use in all, `working_bytes`
    what must stay free beside weights and KV cache. `note` tells the user where the plan falls short of the model's
    own limits.
    """

    context: int
    n_blocks: int
    weight_bytes: int
    token_bytes: int
    budget: int
    note: str | None = None
    working_bytes: int = 0

    @property
    def spare_bytes(self) -> int:
        """Bytes of the budget that weights, a full KV cache and scratch leave over."""
        return self.budget - self.weight_bytes - self.n_blocks * KV_BLOCK * self.token_bytes - self.working_bytes


def kv_bytes_per_token(specs: Sequence[KVSpec], element_bytes: int) -> int:
    """KV cache bytes one token takes in all layers together, before a window frees any."""
    return element_bytes * sum(spec.elements_per_token() for spec in specs)


def check_weights(n_bytes: int, working_bytes: int, budget: int, what: str) -> None:
    """ResourceError unless `n_bytes` of weights, working memory and at least a little KV fit in `budget` bytes."""
    if n_bytes + working_bytes > budget:
        raise ResourceError(
            f"{what} does not fit: its weights take {_gb(n_bytes)} and working memory {_gb(working_bytes)}, but this "
            f"process may use {_gb(budget)}. Use a smaller model, or give it more memory ({LIMITS_HINT})"
        )


def plan_memory(
    *,
    weight_bytes: int,
    token_bytes: int,
    max_context: int,
    context: int | None,
    budget: int,
    working_bytes: int = 0,
    n_sequences: int = 4,
    what: str = "the model",
) -> MemoryPlan:
    """Choose context and KV blocks. `token_bytes` is kv_bytes_per_token, `working_bytes` what hardware/footprint.py
    reserves, `budget` the bytes this process may use.

    `context` None takes the model's own or the largest that fits; a number is granted or refused, never changed.
    The cache gets room for up to `n_sequences` full conversations, less where memory is short, never less than one.
    """
    if context is not None and not 1 <= context <= max_context:
        raise RequestError(f"context is {context}; expected 1 to {max_context}, the most {what} was trained for")
    free = budget - weight_bytes - working_bytes
    block_bytes = max(1, token_bytes * KV_BLOCK)
    fit_blocks = max(0, free // block_bytes)
    wanted = context if context is not None else max_context
    if _blocks(wanted) <= fit_blocks:
        chosen, remark = wanted, None
    elif context is not None or fit_blocks * KV_BLOCK < min(MIN_CONTEXT, max_context):
        sizes = weight_bytes, working_bytes, token_bytes, budget
        raise ResourceError(_too_big(what, wanted, *sizes, fit_blocks * KV_BLOCK))
    else:
        chosen = fit_blocks * KV_BLOCK
        remark = (
            f"context is {chosen} tokens instead of the model's {max_context}, so that {what} stays within the "
            f"{_gb(budget)} this process may use (--context sets another)"
        )
    n_blocks = min(fit_blocks, n_sequences * _blocks(chosen))
    return MemoryPlan(chosen, n_blocks, weight_bytes, token_bytes, budget, remark, working_bytes)


def _too_big(
    what: str, context: int, weight_bytes: int, working_bytes: int, token_bytes: int, budget: int, fits: int
) -> str:
    kv_bytes = _blocks(context) * KV_BLOCK * token_bytes
    total = weight_bytes + kv_bytes + working_bytes
    remedy = f"A context of {fits} fits" if fits >= MIN_CONTEXT else "Use a smaller model, or give it more memory"
    return (
        f"{what} with a context of {context} needs {_gb(total)}: weights {_gb(weight_bytes)}, "
        f"KV cache {_gb(kv_bytes)}, working memory {_gb(working_bytes)}; this process may use {_gb(budget)}. "
        f"{remedy} ({LIMITS_HINT})"
    )


def _blocks(n_tokens: int) -> int:
    return -(-n_tokens // KV_BLOCK)


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB"
