"""Rounding while loading: which tensors each word rounds, what that makes of sizes, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from freehold.errors import ModelFileError, RequestError
from freehold.formats import FORMATS, QTensor
from freehold.kernels import NativeBackend, unwrap
from freehold.models import FAMILIES as MODEL_TYPES
from freehold.models import load_model, measure_cost, residence, rounding_policy, streamed
from freehold.models.divergence import compare_logits
from freehold.models.loader import Loader
from freehold.models.rounding import Rounding, RoundingPolicy
from freehold.weights import open_checkpoint
from golden_models import FAMILIES, GOLDEN, agreement, expected_of, load_golden, mean_kl, step

WORDS: tuple[Rounding, ...] = ("native", "auto", "q8", "q4")


class Formats:
    """A loader's Kept that has nothing and notes in which format each matrix was packed."""

    def __init__(self) -> None:
        self.found: dict[str, set[str]] = {}

    def find(self, name: str, n: int, n_rows: int, n_cols: int) -> None:
        return None

    def keep(self, name: str, matrices: Sequence[Any]) -> None:
        self.found[name] = {unwrap(matrix)[0] for matrix in matrices}


def formats_of(family: str, rounding: Rounding) -> dict[str, set[str]]:
    """By matrix of a golden checkpoint."""
    formats = Formats()
    load_golden(family, rounding=rounding, kept=formats)
    return formats.found


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe"])
def test_nothing_is_rounded_unasked(family: str) -> None:
    for rounding in ("native", "auto"):
        assert set.union(*formats_of(family, rounding).values()) == {"BF16"}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe"])
def test_q8_rounds_every_matrix_but_routers(family: str) -> None:
    for name, formats in formats_of(family, "q8").items():
        assert formats == {"BF16" if name.endswith("mlp.gate.weight") else "Q8_0"}, name


def test_q4_suits_its_format_to_the_rows_and_spares_embedding_and_head() -> None:
    found = formats_of("llama", "q4")
    with open_checkpoint(GOLDEN / "llama") as checkpoint:
        for name, formats in found.items():
            spared, whole = name.startswith(("model.embed_tokens", "lm_head")), checkpoint.shape(name)[-1] % 256 == 0
            assert formats == {"Q8_0" if spared else "Q4_K" if whole else "Q4_1"}, name
    assert {frozenset(formats) for formats in found.values()} >= {frozenset({"Q4_K"}), frozenset({"Q4_1"})}


def test_gpt_oss_keeps_experts_and_routers_under_every_word() -> None:
    for rounding in WORDS:
        for name, formats in formats_of("gpt_oss", rounding).items():
            if ".experts." in name:
                assert formats == {"MXFP4"}, name
            if name.endswith("router.weight"):
                assert formats == {"BF16"}, name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_words_meaning(family: str) -> None:
    """What residence goes by, tensor by tensor, is what loading does."""
    for rounding in WORDS:
        with open_checkpoint(GOLDEN / family) as checkpoint:
            policy = RoundingPolicy.of(MODEL_TYPES[checkpoint.config["model_type"]], rounding)
            for name, formats in formats_of(family, rounding).items():
                if name in checkpoint.names:
                    tensor = checkpoint.get(name)
                    assert formats == {policy.target(name, tensor) or tensor.format.name}, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rounding", ["auto", "q8", "q4"])
def test_the_budget_knows_the_rounded_size(family: str, rounding: Rounding) -> None:
    native, made = load_golden(family, rounding="native"), load_golden(family, rounding=rounding)
    with open_checkpoint(GOLDEN / family) as checkpoint:
        before, after = residence(checkpoint, rounding="native"), residence(checkpoint, rounding=rounding)
    assert not before.rounded
    if not family.endswith("fp8"):  # as published it is counted as its file has it: packed, it has more scales
        assert before.n_bytes - after.n_bytes == native.n_bytes - made.n_bytes
        assert bool(after.rounded) == (after.n_bytes < before.n_bytes)


def test_what_is_said_of_the_sizes() -> None:
    policy = RoundingPolicy("q4")
    assert policy.describe(15_200_000_000, 4_940_000_000) == "weights rounded to q4 (4.9 GB for 15.2 GB)"
    assert policy.describe(269_000_000, 143_000_000) == "weights rounded to q4 (143.0 MB for 269.0 MB)"
    assert policy.describe(0, 0) == ""


# The goldens' random weights make every logit a close call: real models lose a fraction of this (docs/lab-notebook.md).
# Few of their rows are whole blocks of 256, so that q4 makes Q4_1 of nearly all: 0.08 to 0.22 nats.
MOST = {"q8": 3e-3, "q4": 0.25}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("rounding", ["q8", "q4"])
def test_the_measured_cost_is_that_of_two_models(family: str, rounding: Rounding, record_property: Any) -> None:
    ids = expected_of(family)["input_ids"].ravel()
    with open_checkpoint(GOLDEN / family) as checkpoint:
        model = load_model(checkpoint, rounding=rounding)
        cost = measure_cost(checkpoint, model, ids.tolist(), n_threads=2)
    native = load_golden(family, precision="reference")
    expected, logits = (step(one, ids, 0, one.new_kv(8)) for one in (native, model))
    assert cost.kl == pytest.approx(mean_kl(expected, logits), rel=1e-3)
    assert cost.agreement == agreement(expected, logits)
    assert cost.n_tokens == len(ids)
    record_property("kl", cost.kl)
    assert 0 < cost.kl <= MOST[rounding]


def test_the_oracle_reads_weights_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a few rows: the same numbers but for the order of sums, and progress that only grows."""
    monkeypatch.setattr(streamed, "PIECE_NUMBERS", 1000)
    ids = expected_of("qwen3_moe")["input_ids"].ravel().tolist()
    seen: list[tuple[int, int]] = []
    with open_checkpoint(GOLDEN / "qwen3_moe") as checkpoint:
        model = load_model(checkpoint, precision="reference")
        cost = measure_cost(checkpoint, model, ids, 3, lambda done, total: seen.append((done, total)))
        assert seen == sorted(seen)
        assert seen[-1] == (checkpoint.n_bytes, checkpoint.n_bytes)
    assert cost.kl < 1e-9
    assert cost.agreement == 1


def test_figures_of_known_distributions() -> None:
    native = np.log(np.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]], np.float32))
    other = np.log(np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], np.float32)) + 100
    cost = compare_logits(native, other)
    assert cost.kl == pytest.approx(0.5 * 0.25 * np.log(2), rel=1e-5)
    assert (cost.agreement, cost.n_tokens) == (0.5, 2)


class Stack:
    """A checkpoint of one tensor."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self.names = (name,)
        bits = (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        data = bits.view(np.uint8).reshape(-1, 2 * values.shape[-1])
        self._tensor = QTensor(FORMATS["BF16"], values.shape, data)
        self.n_bytes = self._tensor.n_bytes

    def get(self, name: str) -> QTensor:
        return self._tensor

    def release(self, name: str) -> None:
        pass


@pytest.mark.parametrize(("word", "expected"), [("native", "BF16"), ("auto", "BF16"), ("q8", "Q8_0"), ("q4", "Q4_K")])
def test_stacked_experts_are_rounded(word: Rounding, expected: str) -> None:
    name = "model.layers.0.mlp.experts.gate_proj.weight"
    weights = Stack(name, np.random.default_rng(0).standard_normal((3, 20, 256)))
    loader = Loader(weights, NativeBackend(1), policy=RoundingPolicy(word))
    assert [unwrap(matrix)[0] for matrix in loader.experts(name, 3, 20, 256)] == [expected] * 3


def test_a_damaged_expert_is_named() -> None:
    name = "model.layers.0.mlp.experts.up_proj.weight"
    values = np.ones((3, 20, 256))
    values[1, 19, 200] = np.nan
    backend = NativeBackend(1)
    Loader(Stack(name, values), backend, policy=RoundingPolicy("q4")).experts(name, 3, 20, 256)
    with pytest.raises(ModelFileError, match=r"expert 1 of tensor .*up_proj.* holds a number"):
        backend.pack_waiting()


def test_words_have_keys_of_their_own() -> None:
    keys = [rounding_policy(word) for word in WORDS]
    assert len(set(keys)) == len(WORDS)
    assert keys == [rounding_policy(word) for word in WORDS]


@pytest.mark.parametrize("word", ["int8", "Q4", "", "q5"])
def test_other_words_are_refused(word: Any) -> None:
    with pytest.raises(RequestError, match="expected one of auto, native, q8, q4"):
        load_golden("llama", rounding=word)
