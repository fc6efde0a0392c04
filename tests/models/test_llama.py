"""The Llama family against transformers' logits (tests/golden/llama), and its refusals."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.core import KV_BLOCK, Batch, Float32Array
from freehold.errors import FreeholdError, ModelFileError, UnsupportedError
from freehold.models import load_model
from freehold.models.common import LoadedModel
from freehold.weights import open_checkpoint
from kernel_programs import VECTOR_ISAS

GOLDEN = Path(__file__).parent.parent / "golden" / "llama"


def load(**options: Any) -> LoadedModel:
    with open_checkpoint(GOLDEN) as checkpoint:
        return load_model(checkpoint, **options)


def step(model: LoadedModel, ids: np.ndarray, start: int, kv: Any) -> Float32Array:
    n = len(ids)
    batch = Batch(
        tokens=ids.astype(np.int32),
        positions=np.arange(start, start + n, dtype=np.int32),
        seq_starts=np.array([0, n], np.int32),
        block_table=np.arange(kv.n_blocks, dtype=np.int32)[None],
        logit_rows=np.arange(n, dtype=np.int32),
    )
    logits: Float32Array = model.forward(batch, kv)
    return logits


def log_softmax(x: Float32Array) -> Float32Array:
    shifted: Float32Array = x - x.max(-1, keepdims=True)
    result: Float32Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "golden.npz"))


def test_reference_equals_transformers(golden: dict[str, np.ndarray]) -> None:
    model = load(precision="reference")
    logits = step(model, golden["input_ids"], 0, model.new_kv(8))
    assert np.abs(logits - golden["logits"]).max() <= 2e-3


def test_exact_is_close_to_transformers(golden: dict[str, np.ndarray]) -> None:
    model = load(precision="exact")
    logits = step(model, golden["input_ids"], 0, model.new_kv(8))
    expected = log_softmax(golden["logits"])
    kl = (np.exp(expected) * (expected - log_softmax(logits))).sum(-1)
    assert kl.mean() <= 1e-3
    assert (logits.argmax(-1) == golden["logits"].argmax(-1)).mean() >= 0.99


@pytest.mark.parametrize("precision", ["reference", "exact"])
def test_greedy_continuation(golden: dict[str, np.ndarray], precision: str) -> None:
    model = load(precision=precision)
    kv = model.new_kv(8)
    logits = step(model, golden["input_ids"], 0, kv)
    position = len(golden["input_ids"])
    for expected, margin in zip(golden["greedy_ids"], golden["greedy_margin"], strict=True):
        chosen = int(logits[-1].argmax())
        if margin < 0.1:
            break
        assert chosen == expected
        logits = step(model, np.array([chosen]), position, kv)
        position += 1


def test_step_by_step_equals_prefill(golden: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_ISA", VECTOR_ISAS[-1])  # on tiles prefill rounds to bf16 what decode does not
    model = load()
    ids = golden["input_ids"]
    whole = step(model, ids, 0, model.new_kv(8))
    kv = model.new_kv(8)
    for i in range(len(ids)):
        assert np.array_equal(step(model, ids[i : i + 1], i, kv)[0], whole[i])


def test_kv_blocks_hold_kv_block_tokens() -> None:
    model = load()
    spec = model.kv_specs[0]
    assert model.new_kv(3).data.nbytes == 3 * KV_BLOCK * len(model.kv_specs) * spec.elements_per_token() * 2  # type: ignore[attr-defined]


def with_config(directory: Path, change: dict[str, Any]) -> Path:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, directory / name)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **change}))
    return directory


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_type": "mamba9"}, UnsupportedError, "mamba9"),
        ({"hidden_act": "gelu"}, UnsupportedError, "hidden_act"),
        ({"mlp_bias": True}, UnsupportedError, "mlp_bias"),
        ({"sliding_window": 128}, UnsupportedError, "sliding_window"),
        ({"logit_softcapping": 30.0}, UnsupportedError, "logit_softcapping"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, UnsupportedError, "dynamic"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "twist": 3}}, UnsupportedError, "twist"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}, ModelFileError, "factor"),
        ({"hidden_size": "192"}, ModelFileError, "hidden_size"),
        ({"hidden_size": None}, ModelFileError, "hidden_size"),
        ({"num_hidden_layers": 0}, ModelFileError, "num_hidden_layers"),
        ({"num_hidden_layers": 4}, ModelFileError, "model.layers.3"),
        ({"intermediate_size": 511}, ModelFileError, "511"),
        ({"num_attention_heads": 5, "num_key_value_heads": 2}, FreeholdError, "."),
        ({"vocab_size": True}, ModelFileError, "vocab_size"),
        ({"rms_norm_eps": "tiny"}, ModelFileError, "rms_norm_eps"),
    ],
)
def test_configs_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with open_checkpoint(with_config(tmp_path, change)) as checkpoint, pytest.raises(error, match=message):
        load_model(checkpoint)


def test_llama3_factors_from_a_tensor_equal_the_config(golden: dict[str, np.ndarray]) -> None:
    """GGUF stores the scaling of rotary frequencies as divisors in a tensor."""
    from freehold.models.common import Config, read_rope

    config = json.loads((GOLDEN / "config.json").read_text())
    scaled = read_rope(Config(config, "test"), 32).inverse_frequencies
    plain = read_rope(Config({**config, "rope_scaling": None}, "test"), 32).inverse_frequencies
    factors = (plain / scaled).astype(np.float32)
    again = read_rope(Config({**config, "rope_scaling": None}, "test"), 32, factors).inverse_frequencies
    np.testing.assert_allclose(again, scaled, rtol=1e-6)
    assert (factors > 1.01).any()
    assert dataclasses.is_dataclass(read_rope(Config(config, "test"), 32))
