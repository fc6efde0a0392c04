"""GGUF's words for the llama and smollm3 architectures, translated to Hugging Face's.

Owns their tables of keys and tensor names, and the one change llama.cpp's converter makes to the numbers: it reorders
the rows of the q and k projections. Knows nothing of how the file is laid out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from freehold.errors import ModelFileError
from freehold.formats import QTensor
from freehold.weights.gguf_words import COMMON_KEYS, COMMON_NEUTRAL, Words, translate_names

ARCHITECTURES: Mapping[str, str] = {"llama": "LlamaForCausalLM", "smollm3": "SmolLM3ForCausalLM"}
"""By name, their class; the names are Hugging Face's model_type as well. SmolLM3's pattern of layers without rotation
is the usual one, which its config need not say and its GGUF files do not."""

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
_PERMUTED_NAME = re.compile(r"model\.layers\.[0-9]+\.self_attn\.(?P<projection>[qk])_proj\.(?:weight|bias)")
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **COMMON_NEUTRAL,
    "expert_count": (0,),
    "expert_used_count": (0,),
    "tensor_data_layout": ("Meta AI original pth",),  # the row order that every llama GGUF has
}


def tensor_names(names: Iterable[str], metadata: Mapping[str, Any]) -> dict[str, str]:
    """Hugging Face name to GGUF name, in the given order; errors as in `translate_names`."""
    words = Words(metadata, metadata["general.architecture"])
    return translate_names(names, words, _MODULE_NAMES, _LAYER_MODULE_NAMES)


def config_from_metadata(metadata: Mapping[str, Any], names: Collection[str], vocab_rows: int) -> dict[str, Any]:
    """The config.json that this model would have. `names` are Hugging Face's, `vocab_rows` are the embedding's rows.

    Raises ModelFileError for a missing or impossible value, UnsupportedError for a key that is not implemented.
    """
    words = Words(metadata, metadata["general.architecture"])
    words.refuse_unknown(COMMON_KEYS, _NEUTRAL)
    return {
        "architectures": [ARCHITECTURES[words.architecture]],
        "model_type": words.architecture,
        "hidden_act": "silu",
        "mlp_bias": "model.layers.0.mlp.gate_proj.bias" in names,
        **words.common_config(names, vocab_rows),
    }


def restore(name: str, tensor: QTensor, config: Mapping[str, Any]) -> QTensor:
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
