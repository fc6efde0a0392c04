"""gpt-oss in safetensors: the two layouts its publisher ships, seen as one.

Owns the tables of stored names and what becomes of them: the experts' MXFP4 blocks and scales are one tensor, gate and
up are taken out of the rows they share (even and odd), q, k and v out of theirs. Matrices are views of the mapped file,
never copies. Shapes that do not fit together are refused on opening. Knows nothing of how files are laid out.

Source: the checkpoints, openai/gpt-oss (torch/weights.py, torch/model.py) and transformers (integrations/mxfp4.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from freehold.errors import ModelFileError, NotFoundError, UnsupportedError
from freehold.formats import FORMATS, MXFP4_BLOCK, QTensor
from freehold.weights import gpt_oss_config
from freehold.weights.mapping import TensorSpan
from freehold.weights.quote import naming, quote
from freehold.weights.safetensors import SafetensorsShards

_ORIGINAL_NAMES: Mapping[str, str] = {
    "embedding.weight": "model.embed_tokens.weight",
    "unembedding.weight": "lm_head.weight",
    "norm.scale": "model.norm.weight",
}
_ORIGINAL_LAYER_NAMES: Mapping[str, str] = {
    "attn.norm.scale": "input_layernorm.weight",
    "attn.qkv.weight": "self_attn.qkv_proj.weight",
    "attn.qkv.bias": "self_attn.qkv_proj.bias",
    "attn.out.weight": "self_attn.o_proj.weight",
    "attn.out.bias": "self_attn.o_proj.bias",
    "attn.sinks": "self_attn.sinks",
    "mlp.norm.scale": "post_attention_layernorm.weight",
    "mlp.gate.weight": "mlp.router.weight",
    "mlp.gate.bias": "mlp.router.bias",
    "mlp.mlp1_weight.blocks": "mlp.experts.gate_up_proj_blocks",
    "mlp.mlp1_weight.scales": "mlp.experts.gate_up_proj_scales",
    "mlp.mlp1_bias": "mlp.experts.gate_up_proj_bias",
    "mlp.mlp2_weight.blocks": "mlp.experts.down_proj_blocks",
    "mlp.mlp2_weight.scales": "mlp.experts.down_proj_scales",
    "mlp.mlp2_bias": "mlp.experts.down_proj_bias",
}
_ORIGINAL_NAME = re.compile(r"block\.(?P<layer>0|[1-9][0-9]{0,8})\.(?P<tensor>[a-z0-9_.]+)")
_EXPERTS_NAME = re.compile(r"(?P<at>.+\.mlp\.experts\.)(?P<kind>gate_up|down)_proj(?:_(?P<part>blocks|scales|bias))?")
_QKV_NAME = re.compile(r"(?P<at>.+\.self_attn\.)qkv_proj\.(?P<part>weight|bias)")

_HALVES: Mapping[str, slice] = {"gate": slice(0, None, 2), "up": slice(1, None, 2)}
_BLOCK_BYTES = MXFP4_BLOCK // 2


@dataclass(frozen=True)
class _Part:
    """A tensor as some of the outputs of a stored one, those of all experts counted through."""

    source: str
    shape: tuple[int, ...]
    outputs: slice | None = None  # rows of a matrix, numbers of a bias; None for all
    scales: str | None = None  # the stored scales, if `source` is MXFP4 blocks


class GptOssTensors:
    """The tensors of a gpt-oss checkpoint under Hugging Face's names, as if each projection of the experts were stored
    apart: mlp.experts.{gate,up,down}_proj.weight [experts, rows, cols] in MXFP4, and .bias [experts, rows].
    """

    def __init__(self, shards: SafetensorsShards, config: Mapping[str, Any]) -> None:
        """Raises ModelFileError or UnsupportedError naming the tensor; the shards stay open, they are the caller's.

        config: Hugging Face's keys.
        """
        self._shards = shards
        self._parts: dict[str, _Part] = {}
        with naming(shards.directory):
            gpt_oss_config.check_quantization(config)
            stored = _original_names(shards.names) if is_original(shards.names) else {n: n for n in shards.names}
            for name, source in stored.items():
                if match := _EXPERTS_NAME.fullmatch(name):
                    self._parts |= _expert_parts(match, stored, shards)
                elif match := _QKV_NAME.fullmatch(name):
                    self._parts |= _qkv_parts(match, source, shards.span(source), config)
                else:
                    self._parts[name] = _Part(source, shards.span(source).shape)
        self.names: tuple[str, ...] = tuple(self._parts)
        self.n_bytes = shards.n_bytes

    def get(self, name: str) -> QTensor:
        """A view of the mapped files; a bias out of a shared one is a copy."""
        part = self._part(name)
        if part.scales is not None:
            return self._mxfp4(part, part.scales)
        tensor = self._shards.get(part.source)
        if part.outputs is None:
            return tensor
        if not name.endswith(".bias"):
            return QTensor(tensor.format, part.shape, tensor.data[part.outputs])
        numbers = tensor.data.view(tensor.format.layout)[:, part.outputs]
        return QTensor(tensor.format, part.shape, np.ascontiguousarray(numbers).view(np.uint8))

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return self._part(name).shape

    def release(self, name: str) -> None:
        """Tell the system that the pages the tensor lies in are no longer needed, those it shares included."""
        part = self._part(name)
        self._shards.release(part.source)
        if part.scales is not None:
            self._shards.release(part.scales)

    def close(self) -> None:
        """Unmap all files; tensors already taken stay valid."""
        self._shards.close()

    def _part(self, name: str) -> _Part:
        try:
            return self._parts[name]
        except KeyError:
            raise NotFoundError(f"{self._shards.directory} has no tensor {name!r}") from None

    def _mxfp4(self, part: _Part, scales: str) -> QTensor:
        n_blocks, rows = part.shape[-1] // MXFP4_BLOCK, part.outputs or slice(None)
        return QTensor(
            FORMATS["MXFP4"],
            part.shape,
            self._shards.raw(part.source).reshape(-1, n_blocks * _BLOCK_BYTES)[rows],
            self._shards.raw(scales).reshape(-1, n_blocks)[rows],
        )


def is_original(names: Iterable[str]) -> bool:
    """Whether these are the tensors of the publisher's `original/` directory."""
    return not {"unembedding.weight", "block.0.attn.qkv.weight"}.isdisjoint(names)


def _original_names(names: Iterable[str]) -> dict[str, str]:
    """Hugging Face's stored name (q, k and v still together) to original name."""
    result: dict[str, str] = {}
    for name in names:
        match = _ORIGINAL_NAME.fullmatch(name)
        if match and match["tensor"] in _ORIGINAL_LAYER_NAMES:
            result[f"model.layers.{match['layer']}.{_ORIGINAL_LAYER_NAMES[match['tensor']]}"] = name
        elif name in _ORIGINAL_NAMES:
            result[_ORIGINAL_NAMES[name]] = name
        else:
            raise UnsupportedError(f"the tensor {quote(name)} is not part of the original layout of gpt-oss")
    return result


def _expert_parts(match: re.Match[str], stored: Mapping[str, str], shards: SafetensorsShards) -> dict[str, _Part]:
    """What becomes of one stored tensor of a layer's experts; nothing of scales, which go with their blocks."""
    kind, part, source = match["kind"], match["part"], stored[match[0]]
    blocks, scales = (stored.get(f"{match['at']}{kind}_proj_{other}") for other in ("blocks", "scales"))
    span = shards.span(source)
    if part is None:
        raise UnsupportedError(
            f"the tensor {quote(source)} holds experts converted to {span.dtype}; Freehold reads gpt-oss as published, "
            f"with experts in MXFP4 ({kind}_proj_blocks and {kind}_proj_scales): fetch that"
        )
    shape = span.shape
    if part == "bias":
        scales = None
        if len(shape) != 2:
            raise ModelFileError(f"the tensor {quote(source)} has shape {list(shape)}; expected [experts, rows]")
    else:
        if blocks is None or scales is None:
            raise ModelFileError(
                f"the tensor {quote(source)} has no {'scales' if blocks else 'blocks'} beside it; fetch the model again"
            )
        if part == "scales":
            return {}
        _check_mxfp4(source, span, scales, shards.span(scales))
        shape = (*shape[:2], shape[2] * MXFP4_BLOCK)
    ending = "bias" if part == "bias" else "weight"
    if kind == "down":
        return {f"{match['at']}down_proj.{ending}": _Part(source, shape, scales=scales)}
    n_experts, n_rows, *cols = shape
    if n_rows % 2:
        raise ModelFileError(f"the tensor {quote(source)} has {n_rows} rows; expected gate and up in turn, so even")
    half = (n_experts, n_rows // 2, *cols)
    return {f"{match['at']}{n}_proj.{ending}": _Part(source, half, outputs, scales) for n, outputs in _HALVES.items()}


def _check_mxfp4(source: str, blocks: TensorSpan, scales_source: str, scales: TensorSpan) -> None:
    """Blocks [experts, rows, blocks, 16] and scales [experts, rows, blocks], both of bytes."""
    if blocks.dtype != "U8" or len(blocks.shape) != 4 or blocks.shape[3] != _BLOCK_BYTES or 0 in blocks.shape:
        raise ModelFileError(
            f"the tensor {quote(source)} is {blocks.dtype} {list(blocks.shape)}; "
            f"expected U8 [experts, rows, blocks, {_BLOCK_BYTES}]"
        )
    if scales.dtype != "U8" or scales.shape != blocks.shape[:3]:
        raise ModelFileError(
            f"the tensor {quote(scales_source)} is {scales.dtype} {list(scales.shape)}; "
            f"its blocks call for U8 {list(blocks.shape[:3])}"
        )


def _qkv_parts(match: re.Match[str], source: str, span: TensorSpan, config: Mapping[str, Any]) -> dict[str, _Part]:
    """q, then k, then v, in the rows of one matrix or bias."""
    head_dim = gpt_oss_config.size(config, "head_dim")
    n_q = gpt_oss_config.size(config, "num_attention_heads") * head_dim
    n_kv = gpt_oss_config.size(config, "num_key_value_heads") * head_dim
    if len(span.shape) != (2 if match["part"] == "weight" else 1) or span.shape[0] != n_q + 2 * n_kv:
        raise ModelFileError(
            f"the tensor {quote(source)} has shape {list(span.shape)}; the config calls for {n_q} + {n_kv} + {n_kv} "
            f"rows, of q, k and v"
        )
    bounds = {"q": (0, n_q), "k": (n_q, n_q + n_kv), "v": (n_q + n_kv, n_q + 2 * n_kv)}
    return {
        f"{match['at']}{name}_proj.{match['part']}": _Part(source, (stop - start, *span.shape[1:]), slice(start, stop))
        for name, (start, stop) in bounds.items()
    }
