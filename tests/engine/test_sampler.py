"""The sampler against a naive float64 reference, exact probabilities, and every kind of broken logits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from freehold.core import Float32Array, SamplingParams
from freehold.engine.sampler import LANES, Choice, Sampler, Workspace, _pick, _pick_lane, candidates, largest
from freehold.errors import EngineError, RequestError

NO_PROMPT = np.zeros(0, np.int32)


class Undecided(Exception):
    """Rounding decides whether a token passes a filter."""


def reference_probabilities(logits: Float32Array, params: SamplingParams) -> dict[int, float]:
    """Exact distribution over ids: the documented filters, one after the other, on fully sorted float64 values."""
    order = sorted(range(len(logits)), key=lambda i: (-float(logits[i]), i))
    order = [i for i in order if logits[i] > -math.inf]
    if params.top_k:
        order = order[: params.top_k]
    weights = np.exp((logits[order].astype(np.float64) - logits[order[0]]) / params.temperature)
    probabilities = weights / weights.sum()
    if params.top_p < 1:
        mass = np.cumsum(probabilities)
        if np.abs(mass - params.top_p).min() < 1e-5:
            raise Undecided
        n = int((mass < params.top_p).sum()) + 1
        order, probabilities = order[:n], probabilities[:n]
    relative = probabilities / probabilities[0]
    if params.min_p > 0 and np.abs(relative - params.min_p).min() < 1e-5:
        raise Undecided
    kept = {i: p for i, p, r in zip(order, probabilities, relative, strict=True) if r >= params.min_p}
    total = sum(kept.values())
    return {i: float(p) / total for i, p in kept.items()}


def probabilities_of(logits: Float32Array, params: SamplingParams) -> dict[int, float]:
    space = Workspace(len(logits))
    space.load(logits)
    survivors = candidates(space, float(logits.max()), params)
    if survivors is None:
        ids: npt.NDArray[np.int64] = np.flatnonzero(space.weights)
        weights: npt.NDArray[np.floating] = space.weights[ids]
    else:
        ids, weights = survivors
    weights = weights.astype(np.float64)
    return dict(zip(ids.tolist(), (weights / weights.sum()).tolist(), strict=True))


@st.composite
def logit_rows(draw: st.DrawFn) -> Float32Array:
    """Rows of all sizes around the lane width, with ties, with forbidden tokens, peaked and flat."""
    size = draw(st.one_of(st.integers(1, 40), st.sampled_from([LANES - 1, LANES, LANES + 1, 3 * LANES - 7])))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    row = random.normal(size=size).astype(np.float32) * draw(st.sampled_from([0.0, 0.3, 3.0, 12.0]))
    if draw(st.booleans()):
        row = np.round(row)  # many equal values
    if draw(st.booleans()):
        row[random.random(size) < draw(st.sampled_from([0.3, 0.95]))] = -np.inf
    row[random.integers(size)] = draw(st.sampled_from([0.0, -1.0, 5.0]))
    return row


@settings(max_examples=250, deadline=None)
@given(
    logit_rows(),
    st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    st.one_of(st.just(0), st.integers(1, 60), st.integers(500, 2000)),
    st.one_of(st.just(1.0), st.floats(0.01, 0.999)),
    st.one_of(st.just(0.0), st.floats(0.001, 0.99)),
)
def test_filters_equal_the_reference(
    row: Float32Array, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    try:
        expected = reference_probabilities(row, params)
    except Undecided:
        reject()
    found = {i: p for i, p in probabilities_of(row, params).items() if p > 1e-37}
    expected = {i: p for i, p in expected.items() if p > 1e-37}  # float32 has no smaller normal numbers
    assert found == pytest.approx(expected, rel=2e-4)


@settings(max_examples=100, deadline=None)
@given(logit_rows(), st.integers(1, 4000))
def test_largest_is_a_stable_descending_selection(row: Float32Array, k: int) -> None:
    space = Workspace(len(row))
    space.load(row)
    allowed = [i for i in range(len(row)) if row[i] > -math.inf]
    assert largest(space.values, k).tolist() == sorted(allowed, key=lambda i: (-row[i], i))[:k]


def test_equal_values_prefer_the_lower_id_also_for_zeros_of_both_signs() -> None:
    row = np.array([-1, -0.0, 0.0, -0.0], np.float32)
    assert sample(row, SamplingParams()).id == 1
    assert list(probabilities_of(row, SamplingParams(temperature=1, top_k=2))) == [1, 2]


class Rule:
    """A constraint that forbids, and forces nothing."""

    def __init__(self, mask: Callable[[Float32Array], None]) -> None:
        self.mask = mask

    def accept(self, id: int) -> Sequence[int]:
        return ()


def sample(
    logits: Float32Array,
    params: SamplingParams,
    *,
    prompt: Sequence[int] = (),
    mask: Callable[[Float32Array], None] | None = None,
    position: int = 0,
) -> Choice:
    logits.flags.writeable = False  # the sampler must never edit the model's buffer
    constraint = None if mask is None else Rule(mask)
    sampler = Sampler(params, np.array(prompt, np.int32), len(logits), constraint)
    return sampler.sample(logits, position, Workspace(len(logits)))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0, seed=1),
        SamplingParams(temperature=0.6, seed=2),
        SamplingParams(temperature=1.5, top_k=6, seed=3),
        SamplingParams(temperature=1.0, top_p=0.8, seed=4),
        SamplingParams(temperature=1.2, min_p=0.1, seed=5),
        SamplingParams(temperature=1.0, top_k=9, top_p=0.9, min_p=0.05, seed=6),
    ],
    ids=["plain", "cool", "top_k", "top_p", "min_p", "all"],
)
def test_draws_follow_the_exact_probabilities(params: SamplingParams) -> None:
    n_draws, vocab_size = 4000, 2 * LANES + 300
    logits = np.full(vocab_size, -30, np.float32)
    likely = np.array([0, 1, 5, LANES - 1, LANES, LANES + 5, 2 * LANES + 5, 2 * LANES + 299, 700, 701, 702, 703])
    logits[likely] = np.linspace(2.0, -1.5, len(likely))
    sampler, space = Sampler(params, NO_PROMPT, vocab_size), Workspace(vocab_size)
    counts = Counter(sampler.sample(logits, 0, space).id for _ in range(n_draws))
    exact = {i: p for i, p in reference_probabilities(logits, params).items() if p > 1e-9}
    assert set(counts) <= set(exact)
    chi_square = sum((counts[i] - n_draws * p) ** 2 / (n_draws * p) for i, p in exact.items())
    n_free = len(exact) - 1
    assert chi_square < n_free + 4 * math.sqrt(2 * n_free)


def test_a_seed_fixes_the_draws_and_no_seed_does_not() -> None:
    logits = np.zeros(5000, np.float32)

    def draws(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1, seed=seed), NO_PROMPT, 5000)
        return [sampler.sample(logits, 0, Workspace(5000)).id for _ in range(8)]

    assert draws(7) == draws(7)
    assert len({tuple(draws(seed)) for seed in (7, 8, -1, 2**70 + 9, None, None)}) == 6


@pytest.mark.parametrize("fraction", [0.0, 0.25, np.nextafter(1.0, 0.0), 1.0])
def test_a_weight_of_zero_is_never_picked(fraction: float) -> None:
    weights = np.zeros(3 * LANES, np.float32)
    weights[[7, LANES + 7, LANES + 500]] = 1e-3, 1e-38, 3
    assert weights[_pick(weights, fraction)[0]] > 0
    assert weights[_pick_lane(weights, fraction)] > 0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000),
    st.floats(0.2, 3),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.lists(st.integers(0, 39), max_size=30),
)
def test_penalties_equal_the_reference(
    seed: int, repetition: float, frequency: float, presence: float, prompt: list[int]
) -> None:
    random = np.random.default_rng(seed)
    params = SamplingParams(repetition_penalty=repetition, frequency_penalty=frequency, presence_penalty=presence)
    sampler, space = Sampler(params, np.array(prompt, np.int32), 40), Workspace(40)
    generated: list[int] = []
    for _ in range(12):
        logits = random.normal(size=40).astype(np.float32)
        expected = logits.astype(np.float64)
        for i in {*prompt, *generated}:
            expected[i] = expected[i] / repetition if expected[i] > 0 else expected[i] * repetition
        for i, n in Counter(generated).items():
            expected[i] -= frequency * n + presence
        chosen = sampler.sample(logits, 0, space).id
        assert expected[chosen] == pytest.approx(expected.max(), abs=1e-5)
        assert space.values[:40] == pytest.approx(expected, abs=1e-4)
        generated.append(chosen)


def test_penalty_history_grows_past_its_first_allocation() -> None:
    params = SamplingParams(presence_penalty=2)
    sampler, space = Sampler(params, NO_PROMPT, 1500), Workspace(1500)
    logits = np.zeros(1500, np.float32)
    assert [sampler.sample(logits, 0, space).id for _ in range(1500)] == list(range(1500))


def test_logprobs_are_those_of_the_raw_distribution() -> None:
    logits = np.random.default_rng(0).normal(size=3000).astype(np.float32) * 4
    logits[3] = -np.inf
    exact = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    best = int(logits.argmax())

    def forbid_best(row: Float32Array) -> None:
        row[best] = -np.inf

    params = SamplingParams(temperature=0.5, top_k=3, repetition_penalty=2, logit_bias={8: 9.0}, n_logprobs=5, seed=0)
    choice = sample(logits, params, prompt=[best], mask=forbid_best)
    assert choice.id != best
    assert choice.logprob == pytest.approx(exact[choice.id], abs=1e-5)
    assert [i for i, _ in choice.top] == np.argsort(-exact, kind="stable")[:5].tolist()
    assert [p for _, p in choice.top] == pytest.approx([exact[i] for i, _ in choice.top], abs=1e-5)
    only_own = sample(logits, SamplingParams(n_logprobs=0))
    assert (only_own.id, only_own.top) == (best, ())
    assert only_own.logprob == pytest.approx(exact[best], abs=1e-5)
    assert sample(logits, SamplingParams()) == Choice(best, None, ())


def test_fewer_logprobs_than_asked_for_when_the_rest_is_impossible() -> None:
    logits = np.array([-np.inf, 0, -np.inf, 0], np.float32)
    assert [i for i, _ in sample(logits, SamplingParams(n_logprobs=4)).top] == [1, 3]


def test_bias_and_mask_apply_in_this_order() -> None:
    seen: list[list[float]] = []

    def mask(row: Float32Array) -> None:
        seen.append(row.tolist())
        row[1] = -np.inf

    params = SamplingParams(logit_bias={1: 100, 2: -np.inf, 0: 0.5})
    assert sample(np.array([1, 2, 3, 1], np.float32), params, mask=mask).id == 0
    assert seen == [[1.5, 102, -np.inf, 1]]


@pytest.mark.parametrize(
    ("row", "found"), [([0, np.nan, 1], "nan"), ([np.inf, 0, 1], "inf"), ([-np.inf] * 3, "all -inf")]
)
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1, top_k=2, n_logprobs=1)])
def test_logits_that_are_not_finite_are_refused(row: list[float], found: str, params: SamplingParams) -> None:
    with pytest.raises(EngineError, match=f"position 41 are {found}"):
        sample(np.array(row, np.float32), params, position=41)


@pytest.mark.parametrize(
    ("value", "match"), [(-np.inf, "forbid every token at position 7"), (np.nan, "give a logit of nan")]
)
def test_a_mask_that_leaves_nothing_is_named(value: float, match: str) -> None:
    def mask(row: Float32Array) -> None:
        row[:] = value

    with pytest.raises(EngineError, match=match):
        sample(np.zeros(4, np.float32), SamplingParams(temperature=1), mask=mask, position=7)


def test_a_mask_that_raises_is_named() -> None:
    def mask(row: Float32Array) -> None:
        raise KeyError("rule")

    with pytest.raises(EngineError, match="mask failed at position 3: KeyError") as caught:
        sample(np.zeros(4, np.float32), SamplingParams(), mask=mask, position=3)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [5e-324, 1e-9, 1e9, 1e308])
@pytest.mark.parametrize(
    "filters", [{}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}, {"top_k": 3, "top_p": 0.5, "min_p": 0.1}]
)
def test_extreme_temperatures_and_logits_give_an_allowed_token(temperature: float, filters: dict[str, float]) -> None:
    lowest = float(np.finfo(np.float32).min)
    logits = np.array([lowest, -np.inf, 1e30, 9e29, lowest / 2], np.float32)
    chosen = sample(logits, SamplingParams(temperature=temperature, seed=0, **filters)).id  # type: ignore[arg-type]
    assert chosen == 2 if temperature < 1 else chosen != 1


@pytest.mark.parametrize(
    ("bias", "match"),
    [
        ({9: 1.0}, "names token 9; expected ids from 0 to 3"),
        ({-1: 1.0}, "token -1"),
        ({0: math.nan}, "is nan"),
        ({0: math.inf}, "is inf"),
    ],
)
def test_a_bad_logit_bias_is_refused(bias: dict[int, float], match: str) -> None:
    with pytest.raises(RequestError, match=match):
        Sampler(SamplingParams(logit_bias=bias), NO_PROMPT, 4)
