"""Published models as their families record them, from shapes alone: no weight is written or read.

Names, shapes and config go through GGUF's words and back, so that each model recorded is also one whose GGUF files are
understood. Owns what a recorded forward pass says of its model, in words for docs/models.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

from freehold.formats import QTensor
from freehold.kernels import Ops
from freehold.kernels.ops import Attend, AttendLatent, Experts, GatedLinear, Route
from freehold.models import FAMILIES
from freehold.models.common import Config
from freehold.models.outline import used_weights
from freehold.weights.gguf_tensors import _ARCHITECTURES
from freehold.weights.synth.published import Published
from freehold.weights.synth.tensors import for_gguf


@dataclass(frozen=True)
class Recorded:
    """What a forward pass says of its model; attention and feed_forward in words."""

    n_parameters: int
    n_active: int  # of the matrices that a token is multiplied with; the embedding's table is none of them
    n_layers: int
    n_dense: int  # layers with an MLP, in a model with experts
    experts: tuple[int, int] | None  # how many of how many a token goes to
    max_context: int
    attention: str
    feed_forward: str


def record_published(published: Published, **changes: Any) -> Recorded:
    """The model's forward pass; `changes` replace keys of its config."""
    stored = _Shapes(published)
    config = stored.config | changes
    family = _Watched(FAMILIES[config["model_type"]])
    used_weights(family, Config(config, published.title), stored)
    ops, routes = family.ops, _all(family.ops, Route)
    sizes = {(op.out.k, op.out.n_experts) for op in routes}
    assert len(sizes) <= 1, f"layers of {published.title} differ"
    return Recorded(
        n_parameters=sum(t.n_parameters for t in published.tensors(published.config) if t.numbers.safetensors),
        n_active=round(sum(math.prod(matrix.shape) * share for matrix, share in ops.matrices_read())),
        n_layers=len(ops.kv_specs),
        n_dense=len(ops.kv_specs) - len(routes) if routes else 0,
        experts=next(iter(sizes), None),
        max_context=family.config.max_context,
        attention=_attention(ops),
        feed_forward=_feed_forward(ops),
    )


def _attention(ops: Ops) -> str:
    """What a layer attends to, and what it does to queries and keys; what only some models of a kind do comes last."""
    for op in _all(ops, AttendLatent):
        rank = len(op.heads.norm.weight)
        return f"latents of {rank} numbers, and {op.latent.width - rank} rotated ones"
    layers = _all(ops, Attend)
    windows = sorted({op.kv.window for op in layers if op.kv.window})
    words = [f"full and, in turn, a window of {windows[0]}" if windows else "full"]
    if layers[0].sinks is not None:
        words.append("sinks")
    rotated = [2 * len(op.rope.inverse_frequencies) for op in layers if op.rope]
    if rotated[0] < layers[0].kv.k_dim:
        words.append(f"{rotated[0]} of a head's {layers[0].kv.k_dim} rotated")
    if len(rotated) < len(layers):
        words.append(f"one layer in {round(len(layers) / (len(layers) - len(rotated)))} not rotated")
    if layers[0].q_norm is not None:
        words.append("queries and keys normalised")
    return ", ".join(words)


def _feed_forward(ops: Ops) -> str:
    routes = _all(ops, Route)
    if not routes:
        return "gated MLP"
    gating = routes[0].gating
    over = f" over {'the chosen' if gating.normalised else 'all'}" if gating.score == "softmax" else ""
    words = [f"experts by {gating.score}{over}{'' if gating.bias is None else ' and a bias'}"]
    norms = {id(op.norm) for op in _all(ops, Experts)}
    if any(id(op.norm) in norms for op in _all(ops, GatedLinear)):  # an MLP beside them reads what they read
        words.append("shared experts")
    if gating.n_groups > 1:
        words.append(f"within {gating.n_kept_groups} of {gating.n_groups} groups")
    return ", ".join(words)


def _all(ops: Ops, kind: type[Any]) -> list[Any]:
    return [op for op in ops.records if isinstance(op, kind)]


class _Shapes:
    """The tensors of the model's GGUF file under Hugging Face's names."""

    n_bytes = 0

    def __init__(self, published: Published) -> None:
        metadata = {"general.architecture": published.architecture, **published.gguf_keys(published.config)}
        shapes = {one.name: one.shape for t in published.tensors(published.config) for one in for_gguf(t, seed=0)}
        architecture = _ARCHITECTURES[published.architecture]
        self._shapes = {ours: shapes[name] for ours, name in architecture.tensor_names(shapes, metadata).items()}
        self.names = tuple(self._shapes)
        n_rows = shapes["token_embd.weight"][0]
        self.config = architecture.config_from_metadata(metadata, self._shapes.keys(), n_rows)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def get(self, name: str) -> QTensor:
        raise AssertionError(f"{name} has no numbers")

    def release(self, name: str) -> None:
        pass


class _Watched:
    """A family that keeps what it recorded last."""

    def __init__(self, family: Any) -> None:
        self._family = family

    def record(self, config: Config, loader: Any) -> tuple[Ops, Any]:
        self.ops, self.config = cast("tuple[Ops, Any]", self._family.record(config, loader))
        return self.ops, self.config
