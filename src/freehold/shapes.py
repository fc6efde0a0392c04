"""Models as the planner sees them: from an opened checkpoint's header, or from a catalogue entry's shapes.

Owns which tensor is what (read by every token, an expert's, a table), what a format makes of a published model, what
loading makes of weights here, and attention as a config tells it. Reads no numbers of any tensor; knows no speed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from freehold.errors import FreeholdError, RequestError, UnsupportedError
from freehold.footprints import Described, footprint_of, text_bytes
from freehold.formats import FORMATS, Format
from freehold.hardware.estimate import Amount, AttentionLayers, ModelShape
from freehold.kernels import FORMATS as PACKED
from freehold.kernels import packed_bytes
from freehold.models import FAMILIES
from freehold.models.common import Config, read_context
from freehold.models.outline import used_weights
from freehold.models.rounding import Rounding, RoundingPolicy
from freehold.weights import Checkpoint
from freehold.weights.synth.codes import Codes
from freehold.weights.synth.numbers import Mxfp4
from freehold.weights.synth.published import Published
from freehold.weights.synth.tensors import Tensor

PlanFormat = Literal["published", "fp8", "q8_0", "int4", "q4_k_m"]
"""What a model can be had in, from most bits to least. q8_0 and q4_k_m: llama.cpp's files; fp8: matrices of the layers,
in blocks of 128 x 128; int4: the same in groups of 128, as AWQ and GPTQ make them."""

_EMBEDDING, _HEAD, _EXPERTS = "embed_tokens.weight", "lm_head.weight", ".mlp.experts."
_LATENT_KEYS = (".kv_b_proj.weight", ".k_b_proj.weight")
"""Of latent attention: their keys are kept a second time, transposed."""
_INT4_BITS = 4 + (16 + 4) / 128  # a scale and a zero for each group
_FALLBACKS = {"Q4_K": "Q5_0", "Q6_K": "Q8_0", "Q8_0": "F16"}
"""What llama.cpp takes where a row is not whole blocks."""


@dataclass(frozen=True)
class _Part:
    """One tensor, or one for each expert."""

    name: str
    format_name: str
    shape: tuple[int, ...]
    n_bytes: float
    n_parameters: int

    @property
    def format(self) -> Format:
        return FORMATS[self.format_name]


def formats_of(published: Published) -> tuple[PlanFormat, ...]:
    """What a published model can be had in; one with experts in MXFP4 keeps them in every format."""
    kinds = {type(tensor.numbers) for tensor in published.tensors(published.cut(1).config)}
    if Mxfp4 in kinds:
        return ("published", "q8_0")
    is_fp8 = "quantization_config" in published.config
    return ("published", *(word for word in get_args(PlanFormat)[1:] if not (is_fp8 and word == "fp8")))


def shape_of_published(
    name: str,
    published: Published,
    to: PlanFormat = "published",
    *,
    resident: bool = False,
    rounding: Rounding = "auto",
) -> ModelShape:
    """The shape of a model of the catalogue. resident: as Freehold has it in memory, rounded as `rounding` says.

    Raises RequestError for a format that the model is not to be had in.
    """
    allowed = formats_of(published)
    if to not in allowed:
        raise RequestError(f"{name} is not to be had in {to!r}; expected one of {', '.join(allowed)}")
    parts = [_converted(tensor, to, published.n_layers) for tensor in published.tensors(published.config)]
    title = _published_format(parts) if to == "published" else to
    return _assembled(name, title, parts, published.config, resident, rounding)


def shape_of_checkpoint(
    name: str, checkpoint: Checkpoint, *, resident: bool = True, rounding: Rounding = "auto"
) -> ModelShape:
    """The shape of an opened model, without tensors that it does not use; `resident` and `rounding` as above.

    Raises UnsupportedError for a config that does not say what attention keeps.
    """
    names: Iterable[str] = checkpoint.names
    family = FAMILIES.get(str(checkpoint.config.get("model_type")))
    if family is not None:
        try:
            names = used_weights(family, Config(checkpoint.config, name), checkpoint).names
        except FreeholdError:  # loading refuses it, in its own words; here it is counted as it is stored
            names = checkpoint.names
    parts = [_stored(checkpoint, one) for one in names]
    shape = _assembled(name, _published_format(parts), parts, checkpoint.config, resident, rounding)
    return replace(shape, footprint=replace(shape.footprint, text_bytes=text_bytes(checkpoint)))


def kv_token_bytes(config: Mapping[str, Any], element_bytes: int = 2) -> int | None:
    """KV cache bytes of one token in all layers, as the config alone tells it; None where it does not."""
    try:
        layers = attention_of(config)
    except UnsupportedError:
        return None
    return element_bytes * sum(part.n_layers * part.kv_elements for part in layers)


def attention_of(config: Mapping[str, Any]) -> tuple[AttentionLayers, ...]:
    """Attention by kind, from a config in Hugging Face's words. UnsupportedError where a number is missing."""
    n_layers, n_heads = _size(config, "num_hidden_layers"), _size(config, "num_attention_heads")
    if config.get("kv_lora_rank"):
        latent, rotated = _size(config, "kv_lora_rank"), _size(config, "qk_rope_head_dim")
        plain = n_heads * 2.0 * (_size(config, "qk_nope_head_dim") + rotated + _size(config, "v_head_dim"))
        return (AttentionLayers("latent", n_layers, latent + rotated, n_heads * 2.0 * (2 * latent + rotated), plain),)
    n_kv = _size(config, "num_key_value_heads") if config.get("num_key_value_heads") is not None else n_heads
    head_dim = _size(config, "head_dim" if config.get("head_dim") is not None else "hidden_size")
    head_dim //= 1 if config.get("head_dim") is not None else n_heads
    window = config.get("sliding_window")
    types = config.get("layer_types") or []
    n_windowed = sum(kind == "sliding_attention" for kind in types) if isinstance(window, int) else 0
    flops = 4.0 * n_heads * head_dim
    full = AttentionLayers("full", n_layers - n_windowed, 2 * n_kv * head_dim, flops, flops, None, n_kv)
    if not n_windowed:
        return (full,)
    return full, replace(full, kind="window", n_layers=n_windowed, window=window)


def _size(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UnsupportedError(f"the config's {key!r} is {str(value)[:40]!r}; planning needs a whole number >= 1")
    return value


def _assembled(
    name: str, format_name: str, parts: list[_Part], config: Mapping[str, Any], resident: bool, rounding: Rounding
) -> ModelShape:
    family = FAMILIES.get(str(config.get("model_type")))
    policy = RoundingPolicy.of(family, rounding) if resident and family is not None else RoundingPolicy()
    has_head = any(part.name.endswith(_HEAD) for part in parts)
    always: dict[str, Amount] = {}
    experts: dict[str, Amount] = {}
    table, residue, head = Amount(), 0.0, ("", 0.0)
    footprint = footprint_of(config, (Described(p.name, p.shape, p.n_bytes, p.format_name) for p in parts))
    for part in parts:
        is_table = part.name.endswith(_EMBEDDING) and has_head
        if is_table and resident and part.format_name == "BF16":
            residue += part.n_bytes  # its rows are read where the file has them
        else:
            part = _rounded(part, policy)
            residue -= _growth(part, config) if resident else 0
        amount = Amount(part.n_bytes, part.n_parameters)
        if is_table:
            table += amount
            continue
        if part.name.endswith(_HEAD if has_head else _EMBEDDING):
            head = part.format_name, float(part.n_parameters)
        found = experts if _EXPERTS in part.name else always
        found[part.format_name] = found.get(part.format_name, Amount()) + amount
    n_experts, top_k = _mixture(config) if experts else (0, 0)
    return ModelShape(
        name=name,
        format=format_name,
        n_layers=_size(config, "num_hidden_layers"),
        always=always,
        experts=experts,
        table=table,
        attention=attention_of(config),
        max_context=_context(config),
        hidden=_size(config, "hidden_size"),
        vocabulary=_size(config, "vocab_size"),
        n_experts=n_experts,
        top_k=top_k,
        residue=residue,
        head=head,
        footprint=footprint,
    )


def _growth(part: _Part, config: Mapping[str, Any]) -> float:
    """Bytes that a tensor takes in memory beyond what it is stored in."""
    grown = 0.0
    if part.name.endswith(_LATENT_KEYS):
        kept = _size(config, "num_attention_heads") * _size(config, "qk_nope_head_dim") * _size(config, "kv_lora_rank")
        grown = part.n_bytes * kept / part.n_parameters
    if len(part.shape) < 2 or part.format_name not in PACKED or part.shape[-1] % part.format.block:
        return grown
    n_rows, n_cols = part.shape[-2:]
    row_bytes = part.format.row_bytes(n_cols)
    return grown + part.n_bytes * (packed_bytes(part.format_name, n_rows, n_cols) / (n_rows * row_bytes) - 1)


def _rounded(part: _Part, policy: RoundingPolicy) -> _Part:
    to = policy.target(part.name, part) if part.format_name in FORMATS else None
    if to is None:
        return part
    return replace(part, format_name=to, n_bytes=part.n_parameters * FORMATS[to].n_bytes / FORMATS[to].block)


def _mixture(config: Mapping[str, Any]) -> tuple[int, int]:
    """Experts of a layer, and of a token."""
    keys = ("n_routed_experts", "num_local_experts", "num_experts")
    n_experts = next((config[key] for key in keys if config.get(key)), None)
    return _size({"experts": n_experts}, "experts"), _size(config, "num_experts_per_tok")


def _context(config: Mapping[str, Any]) -> int:
    try:
        return read_context(Config(config, "the config"))
    except FreeholdError:  # a scaling that only loading has to understand
        return _size(config, "max_position_embeddings")


def _stored(checkpoint: Checkpoint, name: str) -> _Part:
    tensor = checkpoint.get(name)
    checkpoint.release(name)
    return _Part(name, tensor.format.name, tensor.shape, tensor.n_bytes, math.prod(tensor.shape))


def _published_format(parts: list[_Part]) -> str:
    """Most of the bytes' format, and the others that matter: MXFP4+BF16."""
    sizes: dict[str, float] = {}
    for part in parts:
        sizes[part.format_name] = sizes.get(part.format_name, 0) + part.n_bytes
    total = sum(sizes.values())
    ordered = sorted(sizes, key=lambda name: -sizes[name])
    return "+".join(name for name in ordered if sizes[name] > 0.02 * total)


def _converted(tensor: Tensor, to: PlanFormat, n_layers: int) -> _Part:
    """A published tensor in a format."""
    is_matrix = isinstance(tensor.numbers, Codes | Mxfp4)
    many = max(1, tensor.n_experts)
    if to == "published" or not is_matrix or isinstance(tensor.numbers, Mxfp4):
        encodings = tensor.numbers.safetensors
        n_bytes = sum(encoding.n_bytes(tensor.shape) for encoding in encodings.values())
        name = "MXFP4" if isinstance(tensor.numbers, Mxfp4) else next((e.dtype for e in encodings.values()), "F32")
        return _Part(tensor.name, name, tensor.shape, many * n_bytes, tensor.n_parameters)
    name, bits = _matrix_format(tensor, to, n_layers)
    return _Part(tensor.name, name, tensor.shape, tensor.n_parameters * bits / 8, tensor.n_parameters)


def _matrix_format(tensor: Tensor, to: PlanFormat, n_layers: int) -> tuple[str, float]:
    """The format's name, and its bits per number."""
    in_layers = not tensor.name.endswith((_EMBEDDING, _HEAD))
    if to in ("fp8", "int4"):
        if not in_layers:
            return "BF16", 16
        return ("F8_E4M3", 8 + 32 / 128**2) if to == "fp8" else ("INT4", _INT4_BITS)
    name = "Q8_0" if to == "q8_0" else _q4_k_m(tensor, n_layers)
    n_cols = tensor.head_rows[0] if tensor.head_rows else tensor.n_cols
    while n_cols % FORMATS[name].block:
        name = _FALLBACKS[name]
    return name, 8 * FORMATS[name].n_bytes / FORMATS[name].block


def _q4_k_m(tensor: Tensor, n_layers: int) -> str:
    """llama.cpp's mixture: the head and, in the outer layers and every third, values and down-projections get more."""
    name = tensor.gguf_names[0]
    if name == "output.weight":
        return "Q6_K"
    words = name.split(".")
    if words[0] != "blk" or not words[2].startswith(("attn_v", "ffn_down", "attn_kv_a", "attn_kv_b")):
        return "Q4_K"
    layer, eighth = int(words[1]), n_layers // 8
    more = layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2
    return "Q6_K" if more else "Q4_K"
