"""The config of gpt-oss in Hugging Face's words, for containers that say it otherwise or leave it unsaid.

Owns the constants of the family, the translation of `original/config.json`, and the check that a model is quantised as
published. A key that is not known is refused, never ignored. Knows nothing of tensors.

Source: the publisher's two config.json files and the conversion script in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freehold.errors import ModelFileError, UnsupportedError
from freehold.weights.quote import quote

_MAX_LAYERS = 1024
_SIZES: Mapping[str, str] = {
    "num_hidden_layers": "num_hidden_layers",
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "head_dim": "head_dim",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "sliding_window": "sliding_window",
    "num_experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
}
_ROPE_KEYS = {"initial_context_length", "rope_theta", "rope_scaling_factor", "rope_ntk_alpha", "rope_ntk_beta"}
_QUANTIZATION_KEYS = {"quant_method", "modules_to_not_convert", "dequantize"}  # the last is about loading elsewhere
_NOTES = {"architectures", "model_type", "torch_dtype", "dtype", "transformers_version"}  # some copies add them


def constants(n_layers: int) -> dict[str, Any]:
    """What is the same in every gpt-oss: even layers slide, odd ones see everything."""
    if n_layers > _MAX_LAYERS:
        raise ModelFileError(f"the model claims {n_layers} layers; expected at most {_MAX_LAYERS}")
    kinds = ("sliding_attention", "full_attention")
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "hidden_act": "silu",
        "attention_bias": True,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
        "swiglu_limit": 7.0,
        "layer_types": [kinds[layer % 2] for layer in range(n_layers)],
    }


def from_original(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that Hugging Face's layout has, from the `original/` one; one already in those words is kept.

    Raises ModelFileError for a missing or impossible value, UnsupportedError for a key that is not known.
    """
    if "num_local_experts" in values:
        return dict(values)
    known = {*_SIZES, *_ROPE_KEYS, *_NOTES, "swiglu_limit"}
    if unknown := [key for key in values if key not in known]:
        raise UnsupportedError(
            f"the key {quote(unknown[0])} of config.json is not known in the original layout of gpt-oss and may change "
            "its results; get the model in Hugging Face's layout"
        )
    if values.get("model_type", "gpt_oss") != "gpt_oss":
        raise UnsupportedError(f"config.json says {quote(values['model_type'])}, but the tensors are those of gpt_oss")
    config = {name: size(values, key) for key, name in _SIZES.items()}
    context, factor = size(values, "initial_context_length"), _number(values, "rope_scaling_factor")
    return {
        **constants(config["num_hidden_layers"]),
        **config,
        "swiglu_limit": _number({"swiglu_limit": 7.0, **values}, "swiglu_limit"),
        "max_position_embeddings": min(int(context * factor), 1 << 30),
        "rope_theta": _number(values, "rope_theta"),
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": factor,
            "beta_fast": _number(values, "rope_ntk_beta"),
            "beta_slow": _number(values, "rope_ntk_alpha"),
            "original_max_position_embeddings": context,
            "truncate": False,
        },
    }


def check_quantization(config: Mapping[str, Any]) -> None:
    """Refuse a quantization_config other than the published one: MXFP4 for the experts and nothing else."""
    settings = config.get("quantization_config")
    if settings is None:
        return
    if not isinstance(settings, Mapping):
        raise ModelFileError(f"quantization_config of config.json is {quote(settings)}; expected an object")
    method = settings.get("quant_method")
    if method != "mxfp4":
        raise UnsupportedError(
            f"the model is quantised by {quote(method)}; Freehold reads gpt-oss in 'mxfp4', as published: fetch that"
        )
    if unknown := [key for key in settings if key not in _QUANTIZATION_KEYS]:
        raise UnsupportedError(f"the key {quote(unknown[0])} of quantization_config is not implemented for gpt-oss")
    kept = settings.get("modules_to_not_convert")
    if kept is None:
        return
    if not isinstance(kept, list) or not all(isinstance(name, str) for name in kept):
        raise ModelFileError(f"modules_to_not_convert of config.json is {quote(kept)}; expected a list of names")
    if contradicting := [name for name in kept if name.endswith("mlp") or "experts" in name]:
        raise UnsupportedError(
            f"config.json keeps {quote(contradicting[0])} out of MXFP4; Freehold reads gpt-oss with its experts in it"
        )


def size(values: Mapping[str, Any], key: str) -> int:
    """A whole number from 1 to 2^31 - 1; ModelFileError for anything else."""
    value = _value(values, key)
    if type(value) is not int or not 1 <= value < 1 << 31:
        raise ModelFileError(f"the key {key!r} of config.json is {quote(value)}; expected a whole number from 1")
    return value


def _value(values: Mapping[str, Any], key: str) -> Any:
    if key not in values:
        raise ModelFileError(f"config.json lacks the key {key!r}")
    return values[key]


def _number(values: Mapping[str, Any], key: str) -> float:
    value = _value(values, key)
    if type(value) not in (int, float) or not 0 < value < 1e9:
        raise ModelFileError(f"the key {key!r} of config.json is {quote(value)}; expected a positive number")
    return float(value)
