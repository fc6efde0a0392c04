"""The parts that several families' layers are made of, as tensors with the scale of their numbers.

Owns their names in either container, and the scales. A family's file says which parts its layers have; names are
relative to the layer until `whole_model` puts them in their places. Knows no model.

A product over n inputs of order 1 with weights of 1 / sqrt(n) is of order 1 again. Scores of attention are kept near 1.
Where routers follow, what attention adds is small: it is much the same for all tokens, grows with itself from layer to
layer, and would draw them to the same experts. With ROUTED_OUT it stays below a hundredth over 94 layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from freehold.weights.synth.codes import Codes
from freehold.weights.synth.numbers import F32, Floats
from freehold.weights.synth.published import Config
from freehold.weights.synth.tensors import Tensor

NORM = Floats(1.0, 0.05)
_BIAS, _EMBEDDING = Floats(0.0, 0.02), Codes(1.2)
_LOGITS_STD = 2.0

ROUTED_OUT = 0.125
"""The deviation of what attention adds, as a part of what its values have."""


def whole_model(config: Config, layer: Callable[[Config, int], Iterator[Tensor]]) -> Iterator[Tensor]:
    """Embedding, layers, norm and head: none of its own where the embedding is the head as well."""
    hidden, tied = config["hidden_size"], config["tie_word_embeddings"]
    shape, head = (config["vocab_size"], hidden), Codes(_LOGITS_STD * hidden**-0.5)
    yield Tensor("model.embed_tokens.weight", ("token_embd.weight",), shape, head if tied else _EMBEDDING)
    for index in range(config["num_hidden_layers"]):
        for part in layer(config, index):
            gguf_names = tuple(f"blk.{index}.{name}" for name in part.gguf_names)
            yield replace(part, name=f"model.layers.{index}.{part.name}", gguf_names=gguf_names)
    yield norm("model.norm", "output_norm", hidden)
    if not tied:
        yield Tensor("lm_head.weight", ("output.weight",), shape, head)


def norm(name: str, gguf_name: str, size: int) -> Tensor:
    """An RMSNorm's weight."""
    return Tensor(f"{name}.weight", (f"{gguf_name}.weight",), (size,), NORM)


def matrix(
    name: str, gguf_name: str, shape: tuple[int, int], *, gain: float = 1.0, fp8: bool = False, rotated_rows: int = 0
) -> Tensor:
    """A matrix [rows, cols] whose products have the deviation `gain`."""
    numbers = Codes(gain * shape[1] ** -0.5, fp8)
    return Tensor(f"{name}.weight", (f"{gguf_name}.weight",), shape, numbers, rotated_rows)


def grouped_attention(
    config: Config, *, biased: bool, head_norms: bool, routed: bool, permuted: bool = False
) -> Iterator[Tensor]:
    """Attention of grouped queries, behind its norm.

    biased: q, k and v have biases. head_norms: queries and keys are normalised. routed: the model has experts.
    permuted: GGUF has the halves of rotated heads interleaved.
    """
    hidden, head_dim = config["hidden_size"], head_size(config)
    q_rows, kv_rows = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    rotated_rows = head_dim if permuted else 0
    yield norm("input_layernorm", "attn_norm", hidden)
    for x, rows, x_gain, x_rotated in (
        ("q", q_rows, 1.0, rotated_rows),
        ("k", kv_rows, 0.5 if routed else 1.0, rotated_rows),
        ("v", kv_rows, 1.0, 0),
    ):
        name, gguf_name = f"self_attn.{x}_proj", f"attn_{x}"
        yield matrix(name, gguf_name, (rows, hidden), gain=x_gain, rotated_rows=x_rotated)
        if biased:
            yield Tensor(f"{name}.bias", (f"{gguf_name}.bias",), (rows,), _BIAS)
    if head_norms:
        yield norm("self_attn.q_norm", "attn_q_norm", head_dim)
        yield norm("self_attn.k_norm", "attn_k_norm", head_dim)
    yield matrix("self_attn.o_proj", "attn_output", (hidden, q_rows), gain=ROUTED_OUT if routed else 1.0)


def head_size(config: Config) -> int:
    """The dimension of a head, which not every config says."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def gated_mlp(
    config: Config, inner: int, *, where: str = "mlp", gguf_suffix: str = "", n_experts: int = 0, fp8: bool = False
) -> Iterator[Tensor]:
    """W_down (silu(W_gate x) * W_up x), or one for each expert."""
    hidden = config["hidden_size"]
    for x, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
        one = matrix(f"{where}.{x}_proj", f"ffn_{x}{gguf_suffix}", shape, fp8=fp8)
        yield replace(one, n_experts=n_experts)


def mixture(
    config: Config, n_experts: int, *, n_shared: int = 0, corrected: bool = False, fp8: bool = False
) -> Iterator[Tensor]:
    """A router and its experts. n_shared: experts of every token, joined to one. corrected: the choice has a bias."""
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    yield Tensor("mlp.gate.weight", ("ffn_gate_inp.weight",), (n_experts, hidden), Floats(0.0, hidden**-0.5))
    if corrected:
        bias = replace(_BIAS, published=F32)
        yield Tensor("mlp.gate.e_score_correction_bias", ("exp_probs_b.bias",), (n_experts,), bias)
    yield from gated_mlp(config, inner, where="mlp.experts.{}", gguf_suffix="_exps", n_experts=n_experts, fp8=fp8)
    if n_shared:
        yield from gated_mlp(config, n_shared * inner, where="mlp.shared_experts", gguf_suffix="_shexp", fp8=fp8)
