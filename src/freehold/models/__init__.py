"""Model families, and loading a checkpoint into one that runs.

FAMILIES is the whole registry: the config's model_type names a module whose `record` loads weights and records the
forward pass. What is not listed is refused by name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from freehold.errors import FreeholdError, RequestError, UnsupportedError
from freehold.kernels import NativeBackend, ReferenceBackend, packed_bytes
from freehold.models import deepseek, glm, gpt_oss, llama, qwen
from freehold.models.common import Config
from freehold.models.divergence import RoundingCost, compare_logits, one_sequence
from freehold.models.loader import Backend, Kept, LoadedModel, Loader, Progress, stays_in_file
from freehold.models.outline import Stored, UsedWeights, used_weights
from freehold.models.rounding import Rounding, RoundingPolicy
from freehold.models.streamed import streamed_logits
from freehold.weights.refusals import refusal

Precision = Literal["reference", "exact", "fast"]
"""reference: numpy in float32, the oracle. exact: the kernels; they keep weights exact, except on the amx level,
whose tiles round to bf16 (docs/kernels.md). fast: the same, until a format has a quicker, coarser kernel."""

_MODULES: tuple[Any, ...] = (deepseek, glm, gpt_oss, llama, qwen)
FAMILIES = {model_type: family for family in _MODULES for model_type in family.MODEL_TYPES}


class CheckpointLike(Stored, Protocol):
    """Tensors and the config that gives them meaning."""

    @property
    def config(self) -> Any: ...

    @property
    def path(self) -> Any: ...


def check_choices(precision: Precision, rounding: Rounding) -> None:
    """Raise RequestError for a word that is no precision, or no rounding of weights."""
    for what, word, known in (("precision", precision, Precision), ("weights", rounding, Rounding)):
        if word not in get_args(known):
            raise RequestError(f"{what} is {word!r}; expected one of {', '.join(get_args(known))}")


def load_model(
    checkpoint: CheckpointLike,
    *,
    precision: Precision = "exact",
    n_threads: int | None = None,
    backend: Backend | None = None,
    rounding: Rounding = "auto",
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> LoadedModel:
    """Load a checkpoint's weights into a runnable model.

    n_threads: workers of the kernels; None uses every core this process may run on. backend: one from `make_backend`,
    which then decides precision and threads. rounding: of weights (rounding.py). kept: matrices of earlier loads,
    made by the same `rounding_policy`. The checkpoint may be closed after.
    Raises UnsupportedError for an architecture or config that is not implemented, ModelFileError for tensors that do
    not fit the config or cannot be rounded, RequestError for an unknown precision or rounding.
    """
    check_choices(precision, rounding)
    family = _family(checkpoint)
    used = used_weights(family, Config(checkpoint.config, str(checkpoint.path)), checkpoint)
    backend = backend or make_backend(precision, n_threads, used.n_bytes)
    loader = Loader(used, backend, progress, RoundingPolicy.of(family, rounding), kept)
    ops, config = family.record(Config(checkpoint.config, str(checkpoint.path)), loader)
    return LoadedModel(backend, ops, loader, config.vocab_size, config.max_context)


@dataclass(frozen=True)
class Residence:
    """What weights become once loaded: the bytes they take, and which are rounded, for people; empty if none is."""

    n_bytes: int
    rounded: str = ""


def residence(checkpoint: CheckpointLike, precision: Precision = "exact", rounding: Rounding = "auto") -> Residence:
    """What loading makes of a checkpoint's weights: as stored, rounded, left in the file, or float32 for the oracle.

    Raises UnsupportedError for an architecture. What does not fit its config, which `load_model` refuses, is counted as
    it is stored.
    """
    family = _family(checkpoint)
    try:
        used = used_weights(family, Config(checkpoint.config, "the config"), checkpoint)
    except FreeholdError:
        used = UsedWeights(checkpoint, checkpoint.names)
    if precision == "reference":
        n_numbers = sum(math.prod(used.shape(name)) for name in used.names) + sum(used.copies.values())
        return Residence(4 * n_numbers)
    policy = RoundingPolicy.of(family, rounding)
    n_bytes, n_before, n_after = used.n_bytes, 0, 0
    for name, n_copied in used.copies.items():
        tensor = used.get(name)
        n_bytes += tensor.n_bytes * n_copied // math.prod(tensor.shape)
    for name in used.names:
        if not (name in used.tables or policy.may_round(name)):
            continue  # not even opened: some readers would put its rows in order
        tensor = used.get(name)
        if name in used.tables and stays_in_file(tensor):
            n_bytes -= tensor.n_bytes
        elif to := policy.target(name, tensor):
            *stacked, n_rows, n_cols = tensor.shape
            n_before += tensor.n_bytes
            n_after += math.prod(stacked) * packed_bytes(to, n_rows, n_cols)
    return Residence(n_bytes - n_before + n_after, policy.describe(n_before, n_after))


def rounding_policy(rounding: Rounding) -> str:
    """A rounding with all that it means: equal texts, equal packed weights of any checkpoint."""
    if rounding == "native":
        return rounding
    return "; ".join(sorted(repr(RoundingPolicy.of(family, rounding)) for family in _MODULES))


def measure_cost(
    checkpoint: CheckpointLike,
    model: LoadedModel,
    tokens: Sequence[int],
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> RoundingCost:
    """What a loaded model's rounding costs on a text, against the weights as its checkpoint has them.

    Reads every weight once; memory beyond the model stays below a GB. progress: bytes read, of those there are.
    """
    batch = one_sequence(tokens[: model.max_context])
    native = streamed_logits(_family(checkpoint), checkpoint, batch, n_threads or _usable_cores(), progress)
    return compare_logits(native, model.forward(batch, model.new_kv(batch.block_table.size)))


def _family(checkpoint: CheckpointLike) -> Any:
    model_type = checkpoint.config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UnsupportedError(f"{checkpoint.path}: {refusal('model_type', model_type, sorted(FAMILIES))}")
    return family


def make_backend(precision: Precision, n_threads: int | None = None, expected_bytes: int = 0) -> Backend:
    """The backend of a precision. A thread of its own makes memory ready for about `expected_bytes` of weights."""
    if precision == "reference":
        return ReferenceBackend()
    return NativeBackend(
        n_threads or _usable_cores(), expected_bytes=expected_bytes, byte_activations=precision == "fast"
    )


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
