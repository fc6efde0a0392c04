"""Sampler: chooses the next token id from one row of logits.

Owns one sequence's random generator, penalty counts and logit bias. Each sequence has its own, so a seeded result does
not depend on what else is in the batch. Knows ids and numbers only. Of equal logits, the lower id always comes first.

A vocabulary has up to 200,000 entries and a token a few milliseconds, so nothing here sorts a whole row unless the
distribution is so flat that it must. Rows are padded to whole lanes: viewed as [n, LANES], a reduction over axis 0 is
vectorised, and the k-th largest of the lane maxima bounds the k-th largest logit from below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from freehold.core import Constraint, Float32Array, Int32Array, SamplingParams
from freehold.errors import EngineError, RequestError

Float64Array = npt.NDArray[np.float64]
Weights = Float32Array | Float64Array
IdArray = npt.NDArray[np.int64]

LANES = 1024
_FEW = 128  # candidates tried first for top-p; of a peaked distribution they suffice
_MAX_SCALE = 1e6  # of 1 / temperature and its inverse: sampling is greedy, or uniform, long before float32 fails


@dataclass(frozen=True)
class Choice:
    """A sampled id and the log-probabilities that were asked for, as in core.Token."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Workspace:
    """Scratch rows for one vocabulary, reused from token to token. Padding is -inf in `values`, 0 in `weights`."""

    def __init__(self, vocab_size: int) -> None:
        n_padded = -(-vocab_size // LANES) * LANES
        self.vocab_size = vocab_size
        self.values = np.full(n_padded, -np.inf, np.float32)  # [n_padded] logits, edited in place
        self.weights = np.zeros(n_padded, np.float32)  # [n_padded] unnormalised probabilities

    def load(self, logits: Float32Array) -> Float32Array:
        """Copy logits [vocab_size] into `values` and return that part of it."""
        row = self.values[: self.vocab_size]
        np.copyto(row, logits)
        return row

    def weigh(self, peak: float, scale: float) -> float:
        """Set weights = exp((values - peak) * scale) and return their sum."""
        np.subtract(self.values, np.float32(peak), out=self.weights)
        if scale != 1:
            np.multiply(self.weights, np.float32(scale), out=self.weights)
        np.exp(self.weights, out=self.weights)
        return float(_lanes(self.weights).sum(axis=0).sum(dtype=np.float64))


class Sampler:
    """Samples for one sequence.

    prompt: token ids [n_prompt], the start of the repetition penalty's history. Raises RequestError for a logit bias
    whose id or value is out of range.
    """

    def __init__(
        self, params: SamplingParams, prompt: Int32Array, vocab_size: int, constraint: Constraint | None = None
    ) -> None:
        self._params = params
        self._constraint = constraint
        self._random = None if params.temperature == 0 else _generator(params.seed)
        self._bias_ids, self._bias_values = _checked_bias(params, vocab_size)
        self._penalties = _Penalties.create(params, prompt)
        self._edits = bool(self._penalties or constraint or len(self._bias_ids))

    def sample(self, logits: Float32Array, position: int, space: Workspace) -> Choice:
        """Choose the token that follows `position`, the place of the newest token, and count it for the penalties.

        logits: [vocab_size], not modified. Raises EngineError when the model or the mask leaves nothing to choose from.
        """
        best = int(logits.argmax())
        peak = float(logits[best])
        if not math.isfinite(peak):
            found = "all -inf" if peak == -math.inf else str(peak)
            raise EngineError(
                f"the logits at position {position} are {found}; expected finite numbers: "
                "the model's weights are damaged or a kernel is wrong (compare with precision 'reference')"
            )
        params = self._params
        if params.temperature == 0 and params.n_logprobs is None and not self._edits:
            return Choice(best)
        row = space.load(logits)
        with np.errstate(over="ignore"):  # a value that overflows to -inf has no weight either way
            log_total = 0.0
            top: tuple[tuple[int, float], ...] = ()
            if params.n_logprobs is not None:
                log_total, top = _log_probabilities(space, peak, params.n_logprobs)
            if self._edits:
                best, peak = self._edit(row, position)
            chosen = best if params.temperature == 0 else self._draw(space, peak)
        self._count(chosen)
        return Choice(chosen, None if params.n_logprobs is None else float(logits[chosen]) - log_total, top)

    def follow(self, id: int, position: int) -> list[int]:
        """Tell the constraint that `id` was chosen; returns the ids that it says must follow, counted as generated.

        Raises EngineError when the constraint fails.
        """
        if self._constraint is None:
            return []
        try:
            forced = list(self._constraint.accept(id))
        except Exception as error:
            raise EngineError(f"the constraint failed at position {position}: {error!r}") from error
        for token in forced:
            self._count(token)
        return forced

    def _count(self, id: int) -> None:
        if self._penalties is not None:
            self._penalties.count(id)

    def _edit(self, row: Float32Array, position: int) -> tuple[int, float]:
        """Apply penalties, bias and mask to row [vocab_size]; return the id and the value of its maximum."""
        if self._penalties is not None:
            self._penalties.apply(row)
        row[self._bias_ids] += self._bias_values
        if self._constraint is not None:
            try:
                self._constraint.mask(row)
            except Exception as error:  # the caller's code: its failure ends the caller's generation only
                raise EngineError(f"the logit mask failed at position {position}: {error!r}") from error
        best = int(row.argmax())
        peak = float(row[best])
        if not math.isfinite(peak):
            found = "forbid every token" if peak == -math.inf else f"give a logit of {peak}"
            raise EngineError(
                f"the penalties, logit bias and mask {found} at position {position}; expected a finite logit to be left"
            )
        return best, peak

    def _draw(self, space: Workspace, peak: float) -> int:
        assert self._random is not None
        survivors = candidates(space, peak, self._params)
        fraction = self._random.random()
        if survivors is None:
            return _pick_lane(space.weights, fraction)
        ids, weights = survivors
        return int(ids[_pick(weights, fraction)[0]])


def _generator(seed: int | None) -> np.random.Generator:
    # numpy imports its random module at the first mention: greedy decoding starts without.
    return np.random.Generator(np.random.PCG64(None if seed is None else seed % 2**64))


def candidates(space: Workspace, peak: float, params: SamplingParams) -> tuple[IdArray, Weights] | None:
    """Ids that survive temperature, top-k, top-p and min-p, and their weights (probabilities up to a factor).

    Reads space.values, whose maximum is `peak`. None without a filter: all ids survive, with the weights space.weights.
    """
    scale = min(max(1 / params.temperature, 1 / _MAX_SCALE), _MAX_SCALE)
    values = space.values
    weights: Weights
    if 0 < params.top_k < space.vocab_size:
        ids = largest(values, params.top_k)
        weights = np.exp((values[ids] - np.float64(peak)) * scale)
        if params.top_p < 1:
            mass = np.cumsum(weights)
            n = int(np.searchsorted(mass, params.top_p * mass[-1])) + 1
            ids, weights = ids[:n], weights[:n]
    elif params.top_p < 1:
        ids, weights = _nucleus(space, peak, scale, params.top_p)
    elif params.min_p > 0:
        ids = np.flatnonzero(values >= peak + math.log(params.min_p) / scale)
        return ids, np.exp((values[ids] - np.float64(peak)) * scale)
    else:
        space.weigh(peak, scale)
        return None
    if params.min_p > 0:
        keep = weights >= params.min_p  # the most likely token weighs 1
        ids, weights = ids[keep], weights[keep]
    return ids, weights


def largest(values: Float32Array, k: int) -> IdArray:
    """Ids of the k largest of values [n * LANES], in descending order; fewer if fewer are above -inf."""
    if 2 * k <= LANES:
        maxima = _lanes(values).max(axis=0)
        bound = np.partition(maxima, LANES - k)[LANES - k]
    else:
        k = min(k, len(values))
        bound = np.partition(values, len(values) - k)[len(values) - k]
    ids = np.flatnonzero(values >= bound) if bound > -np.inf else np.flatnonzero(values > -np.inf)
    return ids[_descending(values[ids])[:k]]


def _descending(values: Float32Array) -> IdArray:
    """Stable order of values [n], largest first.

    Sorts pairs (value, index) packed into one integer each, which is several times faster than a stable argsort.
    """
    bits = (values + np.float32(0)).view(np.int32)  # adding zero turns -0.0 into 0.0, its equal
    ordered = np.where(bits < 0, bits & 0x7FFFFFFF, ~bits).astype(np.int64)  # ascends as the value descends
    packed: IdArray = (ordered << 32) | np.arange(len(values))
    packed.sort()
    packed &= 0xFFFFFFFF
    return packed


def _nucleus(space: Workspace, peak: float, scale: float, top_p: float) -> tuple[IdArray, Float32Array]:
    """The fewest most likely ids whose probabilities reach top_p, and their weights."""
    target = top_p * space.weigh(peak, scale)
    ids = largest(space.values, _FEW)
    mass = np.cumsum(space.weights[ids], dtype=np.float64)
    if mass[-1] < target and len(ids) == _FEW:
        ids = _flat_nucleus(space, target)
    else:
        ids = ids[: int(np.searchsorted(mass, target)) + 1]
    return ids, space.weights[ids]


def _flat_nucleus(space: Workspace, target: float) -> IdArray:
    """The fewest most likely ids whose weights reach `target`, in no order, for thousands of them.

    Sorting plain weights to find how many, then selecting that many, is faster than sorting ids by value.
    """
    mass = np.cumsum(np.sort(space.weights)[::-1], dtype=np.float64)
    n = min(int(np.searchsorted(mass, target)) + 1, space.vocab_size)
    values = space.values
    bound = np.partition(values, len(values) - n)[len(values) - n]
    above = np.flatnonzero(values > bound)
    return np.concatenate([above, np.flatnonzero(values == bound)[: n - len(above)]])


def _pick(weights: Weights, fraction: float) -> tuple[int, float]:
    """Index i of weights [n] with probability weights[i] / sum, for `fraction` uniform in [0, 1].

    Also returns where the fraction fell within the share of i, from 0 to 1; it is uniform again.
    """
    mass = np.cumsum(weights, dtype=np.float64)
    target = fraction * mass[-1]
    i = int(np.searchsorted(mass, target, side="right"))
    if i == len(mass):  # the product was rounded up to the sum
        i = int(np.flatnonzero(weights)[-1])
    below = mass[i - 1] if i else 0.0
    return i, min(float((target - below) / weights[i]), 1.0)


def _pick_lane(weights: Float32Array, fraction: float) -> int:
    """As _pick, for weights [n * LANES]: first the lane, then the place in it, which is faster than one long cumsum."""
    grid = _lanes(weights)
    lane, fraction = _pick(grid.sum(axis=0), fraction)
    return _pick(grid[:, lane], fraction)[0] * LANES + lane


def _log_probabilities(space: Workspace, peak: float, n: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Logarithm of the sum of exp(values), and the n most likely (id, log-probability) pairs."""
    log_total = peak + math.log(space.weigh(peak, 1.0))
    ids = largest(space.values, n) if n else np.empty(0, np.int64)
    return log_total, tuple((int(i), float(space.values[i]) - log_total) for i in ids)


def _lanes(row: Float32Array) -> Float32Array:
    return row.reshape(-1, LANES)


class _Penalties:
    """Counts of the tokens seen. Prompt tokens count 0: only the repetition penalty applies to them."""

    def __init__(self, params: SamplingParams, prompt: Int32Array) -> None:
        self._params = params
        seen = np.unique(prompt) if params.repetition_penalty != 1 else prompt[:0]
        self._n = len(seen)
        self._ids = np.resize(seen.astype(np.int64), self._n + 256)  # [capacity], used up to _n
        self._counts = np.zeros(self._n + 256, np.float32)  # [capacity] times generated
        self._slots = {int(token): slot for slot, token in enumerate(seen)}

    @classmethod
    def create(cls, params: SamplingParams, prompt: Int32Array) -> _Penalties | None:
        """None if every penalty is off."""
        off = params.repetition_penalty == 1 and params.frequency_penalty == params.presence_penalty == 0
        return None if off else cls(params, prompt)

    def count(self, token: int) -> None:
        slot = self._slots.setdefault(token, self._n)
        if slot == self._n:
            if slot == len(self._ids):
                self._ids = np.resize(self._ids, 2 * slot)
                self._counts = np.concatenate([self._counts, np.zeros(slot, np.float32)])
            self._ids[slot] = token
            self._n += 1
        self._counts[slot] += 1

    def apply(self, row: Float32Array) -> None:
        """Penalise row [vocab_size] in place. Repetition divides a positive logit and multiplies a negative one."""
        params = self._params
        ids, counts = self._ids[: self._n], self._counts[: self._n]
        seen = row[ids]
        seen = np.where(seen > 0, seen / params.repetition_penalty, seen * params.repetition_penalty)
        seen -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
        row[ids] = seen


def _checked_bias(params: SamplingParams, vocab_size: int) -> tuple[IdArray, Float32Array]:
    for token, value in params.logit_bias.items():
        if not 0 <= token < vocab_size:
            raise RequestError(f"logit_bias names token {token}; expected ids from 0 to {vocab_size - 1}")
        if not value < math.inf:
            raise RequestError(f"logit_bias of token {token} is {value}; expected a number, or -inf to forbid it")
    ids = np.array(list(params.logit_bias), np.int64)
    return ids, np.array(list(params.logit_bias.values()), np.float32)
