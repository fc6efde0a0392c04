"""From tensors' names and shapes, a config and a tokenizer's size to hardware/footprint.py's Footprint.

Owns which tensor makes which buffer, what of a file is mapped while it is packed, and what a tokenizer takes in memory.
Opens no tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from freehold.hardware.footprint import CODED, PLAIN, Footprint
from freehold.kernels.native import PIECE_BYTES, SMALL_BYTES, WAITING_BYTES
from freehold.weights import Checkpoint

_EXPERTS = ".mlp.experts."
_UNQUANTISED = frozenset({"F32", "F16", "BF16", "F8_E4M3"})
"""Formats that are multiplied with float32; the others with codes."""

_TEXT_BYTES = 310
"""Per text and per merge of a vocabulary: 280 to 340 measured with six tokenizers."""
_TEXT_JSON = 13
"""Times the size of a tokenizer.json: 11 to 15.5 measured with five, made of texts and merges in two ways."""
_PIECES = 2  # of a vocabulary entry, its text and its merge, where no tokenizer is at hand


@dataclass(frozen=True)
class Described:
    """A tensor without its numbers. format: empty if that is not known."""

    name: str
    shape: tuple[int, ...]
    n_bytes: float = 0
    format: str = ""


def footprint_of_checkpoint(checkpoint: Checkpoint) -> Footprint:
    """Of an opened model, by its tensors' names and shapes; formats are not looked at, so that both forms count."""
    tensors = (Described(name, checkpoint.shape(name)) for name in checkpoint.names)
    return replace(footprint_of(checkpoint.config, tensors), text_bytes=text_bytes(checkpoint))


def footprint_of(config: Mapping[str, Any], tensors: Iterable[Described]) -> Footprint:
    """Of a model whose config is in Hugging Face's words. What it does not say counts as nothing."""
    dense: set[int] = set()
    columns, pair_columns, width = 0, 0, 0
    formats: set[str] = set()
    pair_formats: set[str] = set()
    tensors = list(tensors)
    for tensor in tensors:
        if len(tensor.shape) < 2 or "bias" in tensor.name or "embed_tokens" in tensor.name:
            continue
        if _EXPERTS in tensor.name:
            pair_columns = max(pair_columns, tensor.shape[-1])
            width = tensor.shape[-1] if "down_proj" in tensor.name else width
            pair_formats.add(tensor.format)
            continue
        columns = max(columns, tensor.shape[-1])
        formats.add(tensor.format)
        if tensor.name.endswith(("gate_proj.weight", "up_proj.weight")):
            dense.add(tensor.shape[0])
    n_experts, top_k = _mixture(config) if pair_columns else (0, 0)
    latent = _number(config, "kv_lora_rank")
    return Footprint(
        values=_attention_values(config) + sum(dense) + n_experts + top_k * width,
        columns=columns,
        hidden=_number(config, "hidden_size"),
        vocabulary=_number(config, "vocab_size"),
        column_bytes=_input_bytes(formats),
        top_k=top_k,
        n_experts=n_experts,
        pair_columns=pair_columns,
        pair_bytes=_input_bytes(pair_formats),
        latent=latent,
        text_bytes=_PIECES * _TEXT_BYTES * _number(config, "vocab_size"),
        mapped_bytes=_mapped_bytes(tensors),
    )


def text_bytes(checkpoint: Checkpoint) -> float:
    """What the tokenizer and its text keep in memory; 0 for a checkpoint without."""
    if checkpoint.tokenizer_json is not None:
        return _TEXT_JSON * checkpoint.tokenizer_json.stat().st_size
    if checkpoint.tiktoken_model is not None:
        return _PIECES * _TEXT_BYTES * _number(checkpoint.config, "vocab_size")
    lists = ((checkpoint.gguf_metadata or {}).get(f"tokenizer.ggml.{key}") for key in ("tokens", "merges"))
    return _TEXT_BYTES * sum(len(found) for found in lists if found is not None)


def _attention_values(config: Mapping[str, Any]) -> int:
    """Numbers of a token that attention has in buffers at once, the residual and the input's included."""
    hidden, n_heads = _number(config, "hidden_size"), _number(config, "num_attention_heads")
    if latent := _number(config, "kv_lora_rank"):
        rotated, v_dim = _number(config, "qk_rope_head_dim"), _number(config, "v_head_dim")
        plain = n_heads * (_number(config, "qk_nope_head_dim") + rotated + v_dim) + _number(config, "q_lora_rank")
        return hidden + plain + latent + rotated + n_heads * (2 * latent + rotated)  # queries and sums of latents
    head_dim = _number(config, "head_dim") or hidden // max(1, n_heads)
    n_kv = _number(config, "num_key_value_heads") or n_heads
    return hidden + 2 * (n_heads + n_kv) * head_dim


def _mapped_bytes(tensors: Sequence[Described]) -> float:
    """The most that is mapped of the file beyond what is still to be packed, tensor after tensor."""
    left, waiting, most = sum(tensor.n_bytes for tensor in tensors), 0.0, 0.0
    for tensor in tensors:
        left -= tensor.n_bytes
        if len(tensor.shape) < 2 or not tensor.n_bytes:
            continue
        one = tensor.n_bytes / math.prod(tensor.shape[:-2])
        if one < SMALL_BYTES:
            waiting = min(waiting + tensor.n_bytes, WAITING_BYTES)
        most = max(most, waiting + (min(one, PIECE_BYTES) if one >= SMALL_BYTES else 0) - left)
    return most


def _input_bytes(formats: set[str]) -> float:
    """Per column, in every form that matrices of these formats need."""
    if "" in formats:
        return PLAIN + CODED
    return PLAIN * bool(formats & _UNQUANTISED) + CODED * bool(formats - _UNQUANTISED)


def _mixture(config: Mapping[str, Any]) -> tuple[int, int]:
    keys = ("n_routed_experts", "num_local_experts", "num_experts")
    return max(_number(config, key) for key in keys), _number(config, "num_experts_per_tok")


def _number(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
