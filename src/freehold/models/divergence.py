"""How far apart two sets of logits of the same text are. Owns the figures, and the batch they are computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from freehold.core import KV_BLOCK, Batch, Float32Array


@dataclass(frozen=True)
class RoundingCost:
    """What rounding does to a model's predictions of a text."""

    kl: float  # nats: the mean over the text of KL(native || rounded)
    agreement: float  # share of positions where both hold the same token for the likeliest
    n_tokens: int


def compare_logits(native: Float32Array, rounded: Float32Array) -> RoundingCost:
    """Both [n_tokens, vocab]. Computed in float64, a position at a time."""
    kl = sum(_kl(p, q) for p, q in zip(native, rounded, strict=True)) / len(native)
    same = native.argmax(-1) == rounded.argmax(-1)
    return RoundingCost(kl, float(same.mean()), len(native))


def one_sequence(tokens: Sequence[int]) -> Batch:
    """A batch of one new sequence that wants the logits of every position."""
    n = len(tokens)
    return Batch(
        tokens=np.array(tokens, np.int32),
        positions=np.arange(n, dtype=np.int32),
        seq_starts=np.array([0, n], np.int32),
        block_table=np.arange(-(-n // KV_BLOCK), dtype=np.int32)[None],
        logit_rows=np.arange(n, dtype=np.int32),
    )


def _kl(p: Float32Array, q: Float32Array) -> float:
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    return float((np.exp(log_p) * (log_p - log_q)).sum())


def _log_softmax(logits: Float32Array) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max()
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result
