"""GGUF's words for the llama architecture, translated to Hugging Face's.

Owns one table of metadata keys and one of tensor names, and the one change llama.cpp's converter makes to the numbers:
it reorders the rows of the q and k projections. A key or tensor outside the tables is refused (UnsupportedError), never
ignored, since it may change the maths. Knows nothing of how the file is laid out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from freehold.errors import ModelFileError, UnsupportedError
from freehold.formats import QTensor
from freehold.weights.quote import quote

_MODULE_NAMES: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "rope_freqs": "rope_freqs",  # llama3 rope scaling, as one divisor per frequency; Hugging Face has no tensor for it
}
_LAYER_MODULE_NAMES: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TENSOR_NAME = re.compile(r"(?:blk\.(?P<layer>0|[1-9][0-9]{0,8})\.)?(?P<module>[a-z_]+)\.(?P<kind>weight|bias)")
_PERMUTED_NAME = re.compile(r"model\.layers\.[0-9]+\.self_attn\.(?P<projection>[qk])_proj\.(?:weight|bias)")

_REQUIRED_KEYS: Mapping[str, str] = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
}
_OTHER_KEYS = {
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "rope.freq_base", "rope.dimension_count", "vocab_size",
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
}  # fmt: skip
_NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {  # keys that change the maths, unless they have one of these values
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "tensor_data_layout": ("Meta AI original pth",),  # the row order that every llama GGUF has
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.finetuned": (True, False),  # a note about how the model was made
}
_TOKEN_IDS: Mapping[str, tuple[str, ...]] = {  # what ends a text, a turn and a message: Hugging Face lists all as eos
    "bos_token_id": ("bos_token_id",),
    "eos_token_id": ("eos_token_id", "eot_token_id", "eom_token_id"),
    "pad_token_id": ("padding_token_id",),
}
_PREFIX = "llama."


def layer_count(metadata: Mapping[str, Any]) -> int:
    """The number of transformer layers; ModelFileError if the metadata does not say."""
    return _count(metadata, "block_count")


def config_from_metadata(metadata: Mapping[str, Any], names: Iterable[str], vocab_rows: int) -> dict[str, Any]:
    """The config.json that this model would have. `names` are Hugging Face's, `vocab_rows` are the embedding's rows.

    Raises ModelFileError for a missing or impossible value, UnsupportedError for a key that is not implemented.
    """
    _refuse_unknown_keys(metadata)
    present = set(names)
    config: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    for key, name in _REQUIRED_KEYS.items():
        config[name] = _count(metadata, key)
    heads = config["num_attention_heads"]
    config["num_key_value_heads"] = _count(metadata, "attention.head_count_kv", heads)
    config["head_dim"] = _head_dim(metadata, config["hidden_size"], heads)
    config["vocab_size"] = _count(metadata, "vocab_size", vocab_rows)
    config["rms_norm_eps"] = _number(metadata, "attention.layer_norm_rms_epsilon")
    config["rope_theta"] = _number(metadata, "rope.freq_base", 10000.0)
    config["rope_scaling"] = _rope_scaling(metadata)
    config["tie_word_embeddings"] = "lm_head.weight" not in present
    config["attention_bias"] = "model.layers.0.self_attn.q_proj.bias" in present
    config["mlp_bias"] = "model.layers.0.mlp.gate_proj.bias" in present
    for name, keys in _TOKEN_IDS.items():
        full_keys = [key for key in map("tokenizer.ggml.{}".format, keys) if key in metadata]
        ids = list(dict.fromkeys(_whole_number(metadata, key, least=0) for key in full_keys))
        if ids:
            config[name] = ids[0] if len(ids) == 1 else ids
    return config


def tensor_names(names: Iterable[str], n_layers: int) -> dict[str, str]:
    """Hugging Face name to GGUF name, in the given order. UnsupportedError for a tensor that llama does not have."""
    result: dict[str, str] = {}
    for name in names:
        match = _TENSOR_NAME.fullmatch(name)
        layer = match["layer"] if match else None
        modules = _MODULE_NAMES if layer is None else _LAYER_MODULE_NAMES
        if match is None or match["module"] not in modules:
            raise UnsupportedError(f"the tensor {quote(name)} is not part of the llama architecture in Freehold")
        if layer is not None and int(layer) >= n_layers:
            raise ModelFileError(
                f"the tensor {quote(name)} belongs to layer {layer}, but llama.block_count is {n_layers}"
            )
        prefix = "" if layer is None else f"model.layers.{layer}."
        result[f"{prefix}{modules[match['module']]}.{match['kind']}"] = name
    return result


def restore_row_order(name: str, tensor: QTensor, config: Mapping[str, Any]) -> QTensor:
    """Undo the converter's reordering of q and k (a copy); other tensors are returned as they are.

    Hugging Face rotates element i of a head with element i + head_dim / 2, GGUF with its neighbour: in each head the
    converter turns the rows [first half, second half] into pairs. Rows are whole in every format, so bytes are moved.
    """
    match = _PERMUTED_NAME.fullmatch(name)
    if match is None:
        return tensor
    heads = config["num_attention_heads" if match["projection"] == "q" else "num_key_value_heads"]
    head_dim = config["head_dim"]
    rows = tensor.shape[0]
    if rows != heads * head_dim or head_dim % 2:
        raise ModelFileError(f"{name!r} has {rows} rows; expected {heads} heads of an even dimension, here {head_dim}")
    order = np.arange(rows).reshape(heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
    by_row = tensor.data.reshape(rows, -1)  # a bias is stored as one row of numbers: here a number per row
    return replace(tensor, data=by_row[order].reshape(tensor.data.shape))


def _refuse_unknown_keys(metadata: Mapping[str, Any]) -> None:
    known = _REQUIRED_KEYS.keys() | _OTHER_KEYS
    for key, value in metadata.items():
        name = key.removeprefix(_PREFIX)
        if name == key or name in known:
            continue
        if name not in _NEUTRAL_VALUES:
            raise UnsupportedError(f"the GGUF key {quote(key)} is not implemented for the llama architecture")
        if not any(type(value) is type(neutral) and value == neutral for neutral in _NEUTRAL_VALUES[name]):
            expected = " or ".join(map(repr, _NEUTRAL_VALUES[name]))
            raise UnsupportedError(f"the GGUF key {quote(key)} is {quote(value)}; Freehold implements {expected}")


def _head_dim(metadata: Mapping[str, Any], hidden_size: int, heads: int) -> int:
    head_dim = _count(metadata, "attention.key_length", hidden_size // heads or 1)
    if _PREFIX + "attention.key_length" not in metadata and hidden_size % heads:
        raise ModelFileError(f"llama.embedding_length {hidden_size} is not a multiple of the {heads} attention heads")
    for key in ("attention.value_length", "rope.dimension_count"):
        value = _count(metadata, key, head_dim)
        if value != head_dim:
            raise UnsupportedError(f"llama.{key} is {value}; Freehold implements only the head dimension, {head_dim}")
    return head_dim


def _rope_scaling(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """llama3 scaling has no key: it is the tensor rope_freqs.weight."""
    kind = metadata.get(_PREFIX + "rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise UnsupportedError(f"llama.rope.scaling.type is {quote(kind)}; Freehold implements none, linear and yarn")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": _number(metadata, "rope.scaling.factor")}
    if _PREFIX + "rope.scaling.original_context_length" in metadata:
        scaling["original_max_position_embeddings"] = _count(metadata, "rope.scaling.original_context_length")
    return scaling


def _count(metadata: Mapping[str, Any], key: str, default: int | None = None) -> int:
    return _whole_number(metadata, _PREFIX + key, least=1, default=default)


def _whole_number(metadata: Mapping[str, Any], key: str, least: int, default: int | None = None) -> int:
    value = metadata.get(key, default)
    if value is None:
        raise ModelFileError(f"the GGUF key {key!r} is missing")
    if type(value) is not int or not least <= value < 1 << 31:
        raise ModelFileError(f"the GGUF key {key!r} is {quote(value)}; expected a whole number >= {least}, < 2^31")
    return value


def _number(metadata: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A positive float32, as the shortest decimal that means it: 1e-05, not 9.999999747378752e-06."""
    value = metadata.get(_PREFIX + key, default)
    if value is None:
        raise ModelFileError(f"the GGUF key {_PREFIX + key!r} is missing")
    if type(value) is not float or not 0 < value < np.finfo(np.float32).max:
        raise ModelFileError(f"the GGUF key {_PREFIX + key!r} is {quote(value)}; expected a positive number")
    return float(str(np.float32(value)))
