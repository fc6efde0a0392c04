"""gpt-oss beyond its logits (test_goldens.py): rope at long range, the price of rounding, refusals."""

from __future__ import annotations

import json
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.core import Float32Array, KVSpec
from freehold.errors import FreeholdError, ModelFileError, UnsupportedError
from freehold.kernels import NativeBackend, Ops, ReferenceBackend, available_isas
from freehold.models import Residence, load_model, residence
from freehold.models.common import Config, read_rope
from freehold.models.gpt_oss import ROUNDED
from freehold.models.loader import Backend
from freehold.weights import open_checkpoint
from golden_models import GOLDEN, agreement, expected_of, load_golden, mean_kl, step
from kernel_programs import batch, f32

PUBLISHED_ROPE = {
    "rope_theta": 150000.0,
    "rope_scaling": {
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "original_max_position_embeddings": 4096, "truncate": False,
    },
}  # fmt: skip


def test_what_eight_bits_cost(record_property: Any) -> None:
    """Rounding attention and head, the default, against native weights. The tiny model's logits exaggerate it."""
    ids = expected_of("gpt_oss")["input_ids"]
    logits = []
    for rounding in ("native", "auto"):
        model = load_golden("gpt_oss", rounding=rounding)
        logits.append(step(model, ids, 0, model.new_kv(8)))
    kl = mean_kl(*logits)
    record_property("kl", kl)
    print(f"mean KL of auto against native weights: {kl:.2e} nats")
    assert 0 < kl <= 3e-3
    assert agreement(*logits) >= 0.97


def test_what_loading_makes_of_the_weights() -> None:
    with open_checkpoint(GOLDEN / "gpt_oss") as checkpoint:
        table = checkpoint.get("model.embed_tokens.weight").n_bytes
        rounded = sum(
            checkpoint.get(name).n_bytes for name in checkpoint.names if name.endswith(ROUNDED)
        )  # to 34 bytes of each block's 64
        assert residence(checkpoint, rounding="native") == Residence(checkpoint.n_bytes - table)
        made = residence(checkpoint)
        assert made.n_bytes == checkpoint.n_bytes - table - rounded * 30 // 64
        assert "attention and head rounded to Q8_0" in made.rounded


def yarn_by_the_book(position: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin [dim / 2] in float64, one frequency at a time, for the published values."""
    cos, sin = [], []
    low, high = (dim * math.log(4096 / (turns * 2 * math.pi)) / (2 * math.log(150000)) for turns in (32, 1))
    for i in range(dim // 2):
        frequency = 150000 ** (-2 * i / dim)
        share = min(max((i - low) / (high - low), 0), 1)
        frequency = frequency * (1 - share) + frequency / 32 * share
        cos.append(math.cos(position * frequency) * (0.1 * math.log(32) + 1))
        sin.append(math.sin(position * frequency) * (0.1 * math.log(32) + 1))
    return np.array(cos), np.array(sin)


def test_yarn_has_the_published_corrections() -> None:
    rope = read_rope(Config(PUBLISHED_ROPE, "test"), 64)
    plain = 150000.0 ** (-np.arange(0, 64, 2) / 64)
    ratio = plain / rope.inverse_frequencies
    assert rope.scale == pytest.approx(1.3465736, abs=1e-7)
    assert (ratio[:9] == 1).all()  # up to 8.09 turns are kept
    assert ratio[9] > 1
    assert ratio[17] < 31.9  # the ramp ends at 17.398
    np.testing.assert_allclose(ratio[18:], 32)


BACKENDS: dict[str, Any] = {
    "reference": ReferenceBackend,
    **{isa: partial(NativeBackend, 2, isa) for isa in available_isas()},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("position", [1, 4095, 4096, 4097, 20_000, 131_071])
def test_rope_beyond_the_original_context(backend: str, position: int) -> None:
    """Two tokens that see each other and nothing else, against a rotation computed in float64 from the formulas."""
    rng = np.random.default_rng(position)
    q, k, v = rng.standard_normal((3, 2, 64))
    made: Backend = BACKENDS[backend]()
    got = attend_two(made, q, k, v, position)
    turned = [[rotate(x[i], *yarn_by_the_book(position - 1 + i, 64)) for i in range(2)] for x in (q, k)]
    scores = np.array([turned[0][1] @ turned[1][j] for j in range(2)]) / 8
    weights = np.exp(scores - scores.max())
    expected = weights @ v / weights.sum()
    tolerance = 2e-6 if backend == "reference" else 4e-3  # the kernels keep keys and values in bfloat16
    assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    a, b = x[:32], x[32:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin])


def attend_two(backend: Backend, q: np.ndarray, k: np.ndarray, v: np.ndarray, position: int) -> Float32Array:
    """What the token at `position` gets from itself and the one before it."""
    ops = Ops()
    x = ops.embed(backend.matrix(f32(np.concatenate([q, k, v], axis=1))))
    parts = np.split(np.eye(192), 3)
    queries, keys, values = ops.linear(x, [backend.matrix(f32(part)) for part in parts])
    rope = read_rope(Config(PUBLISHED_ROPE, "test"), 64)
    out = ops.attend(queries, keys, values, KVSpec("window", 1, 64, 64, 2), rope=rope, scale=0.125)
    ops.head(out, backend.matrix(f32(np.eye(64))))
    program = backend.compile(ops)
    logits = program.run(batch([(position - 1, 2)], tokens=[0, 1]), program.new_kv(position // 32 + 1))
    return np.asarray(logits[1])


def with_config(directory: Path, change: dict[str, Any]) -> Path:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "gpt_oss" / name, directory / name)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **change}))
    return directory


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden_act": "gelu"}, UnsupportedError, "hidden_act"),
        ({"attention_bias": False}, UnsupportedError, "attention_bias"),
        ({"tie_word_embeddings": True}, UnsupportedError, "tie_word_embeddings"),
        ({"layer_types": ["full_attention", "linear_attention"] * 2}, UnsupportedError, "layer_types"),
        ({"layer_types": ["full_attention"]}, ModelFileError, "layer_types names 1 layers"),
        ({"num_experts_per_tok": 9}, ModelFileError, "9"),
        ({"num_local_experts": 16}, FreeholdError, "router"),
        ({"sliding_window": 0}, ModelFileError, "sliding_window"),
        ({"shared_experts": 2}, UnsupportedError, "shared_experts"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 32.0}}, ModelFileError, "original_max_position_embeddings"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 0.5, "original_max_position_embeddings": 4096}},
            ModelFileError,
            "factor 0.5",
        ),
    ],
)
def test_configs_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message), open_checkpoint(with_config(tmp_path, change)) as checkpoint:
        load_model(checkpoint)


def test_layer_types_decide_which_layers_slide(tmp_path: Path) -> None:
    kinds = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    with open_checkpoint(with_config(tmp_path, {"layer_types": kinds})) as checkpoint:
        assert [spec.kind for spec in load_model(checkpoint).kv_specs] == ["full", "full", "window", "full"]
