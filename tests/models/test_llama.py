"""The Llama family: its KV layout, its refusals, its rotary scaling. Its logits are checked in test_goldens.py."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.core import KV_BLOCK
from freehold.errors import FreeholdError, ModelFileError, UnsupportedError
from freehold.models import load_model
from freehold.models.common import Config, read_rope
from freehold.weights import open_checkpoint
from golden_models import agreement, expected_of, load_golden, mean_kl, step

GOLDEN = Path(__file__).parent.parent / "golden" / "llama"


def test_kv_blocks_hold_kv_block_tokens() -> None:
    model = load_golden("llama")
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
        ({"no_rope_layers": [1, 1, 0]}, UnsupportedError, "no_rope_layers"),
        ({"model_type": "mistral"}, UnsupportedError, "sliding_window' is absent"),
        ({"model_type": "mistral", "sliding_window": 4096}, UnsupportedError, "sliding_window' is 4096"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 1]}, ModelFileError, "no_rope_layers names 2 layers"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 1, 2]}, ModelFileError, "expected a list of 0 and 1"),
        ({"model_type": "smollm3", "no_rope_layers": "110"}, ModelFileError, "expected a list of 0 and 1"),
        ({"model_type": "smollm3", "use_sliding_window": True}, UnsupportedError, "use_sliding_window"),
        ({"model_type": "smollm3", "no_rope_layer_interval": 0}, ModelFileError, "no_rope_layer_interval"),
    ],
)
def test_configs_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message), open_checkpoint(with_config(tmp_path, change)) as checkpoint:
        load_model(checkpoint)


def test_llama3_factors_from_a_tensor_equal_the_config() -> None:
    """GGUF stores the scaling of rotary frequencies as divisors in a tensor."""
    config = json.loads((GOLDEN / "config.json").read_text())
    scaled = read_rope(Config(config, "test"), 32).inverse_frequencies
    plain = read_rope(Config({**config, "rope_scaling": None}, "test"), 32).inverse_frequencies
    factors = (plain / scaled).astype(np.float32)
    again = read_rope(Config({**config, "rope_scaling": None}, "test"), 32, factors).inverse_frequencies
    np.testing.assert_allclose(again, scaled, rtol=1e-6)
    assert (factors > 1.01).any()
    assert dataclasses.is_dataclass(read_rope(Config(config, "test"), 32))


def plain_llama(
    config: dict[str, Any], weights: dict[str, np.ndarray], ids: np.ndarray, rotated: Sequence[int]
) -> np.ndarray:
    """Logits [T, vocab] in float64, one head at a time; `rotated` says by layer whether positions count."""
    dim, group = config["head_dim"], config["num_attention_heads"] // config["num_key_value_heads"]
    rope = read_rope(Config(config, "test"), dim).inverse_frequencies
    turn = np.exp(1j * np.arange(len(ids))[:, None] * rope)
    future = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)

    def normalised(x: np.ndarray, name: str) -> np.ndarray:
        inverse = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"])
        return np.asarray(x * inverse * weights[name])

    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        t = normalised(x, at + "input_layernorm.weight")
        q, k, v = (t @ weights[f"{at}self_attn.{n}_proj.weight"].T for n in "qkv")
        heads = []
        for h in range(config["num_attention_heads"]):
            qh, kh, vh = (m[:, i * dim : (i + 1) * dim] for m, i in ((q, h), (k, h // group), (v, h // group)))
            if rotated[layer]:
                qh, kh = (m[:, : dim // 2] * turn + 1j * m[:, dim // 2 :] * turn for m in (qh, kh))
            p = np.exp((qh @ kh.conj().T).real / np.sqrt(dim) + future)
            heads.append(p / p.sum(-1, keepdims=True) @ vh)
        x = x + np.concatenate(heads, -1) @ weights[at + "self_attn.o_proj.weight"].T
        t = normalised(x, at + "post_attention_layernorm.weight")
        gate, up = (t @ weights[f"{at}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + gate / (1 + np.exp(-gate)) * up @ weights[at + "mlp.down_proj.weight"].T
    logits: np.ndarray = normalised(x, "model.norm.weight") @ weights["model.embed_tokens.weight"].T
    return logits


def golden_logits(directory: Path, precision: Any = "reference", **change: Any) -> np.ndarray:
    """What the golden checkpoint makes of the golden ids with its config changed."""
    with open_checkpoint(with_config(directory, change)) as checkpoint:
        model = load_model(checkpoint, precision=precision)
    return np.asarray(step(model, expected_of("llama")["input_ids"], 0, model.new_kv(8)))


def test_mistral_is_of_the_same_form(tmp_path: Path) -> None:
    logits = golden_logits(tmp_path, model_type="mistral", sliding_window=None)
    np.testing.assert_allclose(logits, expected_of("llama")["logits"], atol=2e-3)


@pytest.mark.parametrize(
    ("change", "rotated"),
    [
        ({"model_type": "llama"}, [1, 1, 1]),  # the plain forward pass against transformers
        ({"model_type": "smollm3", "no_rope_layers": [1, 0, 1, 1]}, [1, 0, 1]),
        ({"model_type": "smollm3", "no_rope_layer_interval": 2}, [1, 0, 1]),
        ({"model_type": "smollm3", "no_rope_layer_interval": 3, "use_sliding_window": False}, [1, 1, 0]),
        ({"model_type": "smollm3"}, [1, 1, 1]),
    ],
)
def test_smollm3_leaves_layers_without_rotation(tmp_path: Path, change: dict[str, Any], rotated: list[int]) -> None:
    golden = expected_of("llama")
    with open_checkpoint(GOLDEN) as checkpoint:
        weights = {name: checkpoint.get(name).to_float32().astype(np.float64) for name in checkpoint.names}
        plain = plain_llama(dict(checkpoint.config), weights, golden["input_ids"], rotated)
    assert (np.abs(plain - golden["logits"]).max() <= 2e-3) == all(rotated)
    np.testing.assert_allclose(golden_logits(tmp_path, **change), plain, atol=2e-3)
    exact = golden_logits(tmp_path, "exact", **change)
    assert mean_kl(plain, exact) <= 1e-3
    assert agreement(plain, exact) >= 0.98  # of 96 rows one is nearly a tie
