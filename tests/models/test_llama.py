"""The Llama family: its KV layout, its refusals, its rotary scaling. Its logits are checked in test_goldens.py."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.core import KV_BLOCK
from freehold.errors import FreeholdError, ModelFileError, UnsupportedError
from freehold.models import load_model
from freehold.weights import open_checkpoint
from golden_models import load_golden

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
    ],
)
def test_configs_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with open_checkpoint(with_config(tmp_path, change)) as checkpoint, pytest.raises(error, match=message):
        load_model(checkpoint)


def test_llama3_factors_from_a_tensor_equal_the_config() -> None:
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
