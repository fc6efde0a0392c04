"""Model families, and loading a checkpoint into one that runs.

FAMILIES is the whole registry: the config's model_type names a module whose `record` loads weights and records the
forward pass. What is not listed is refused by name.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from freehold.errors import FreeholdError, RequestError, UnsupportedError
from freehold.formats import FORMATS
from freehold.kernels import NativeBackend, ReferenceBackend
from freehold.models import deepseek, glm, gpt_oss, llama, qwen
from freehold.models.common import Config
from freehold.models.loader import Backend, Kept, LoadedModel, Loader, Progress, rounded_format, stays_in_file
from freehold.models.outline import Stored, UsedWeights, used_weights
from freehold.weights.refusals import refusal

Precision = Literal["reference", "exact", "fast"]
"""reference: numpy in float32, the oracle. exact: the kernels; they keep weights exact, except on the amx level,
whose tiles round to bf16 (docs/kernels.md). fast: the same, until a format has a quicker, coarser kernel."""

Rounding = Literal["int8", "native"]
"""int8: the bfloat16 matrices that a family names in ROUNDED are packed as Q8_0, blocks of 32 with a scale each.
native: every weight stays as published. The reference precision rounds nothing either way."""

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
    rounding: Rounding = "int8",
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> LoadedModel:
    """Load a checkpoint's weights into a runnable model.

    n_threads: workers of the kernels; None uses every core this process may run on. backend: one from `make_backend`,
    which then decides precision and threads. rounding: of bfloat16 weights. kept: matrices of earlier loads, made by
    the same `rounding_policy`. The checkpoint may be closed after.
    Raises UnsupportedError for an architecture or config that is not implemented, ModelFileError for tensors that do
    not fit the config, RequestError for an unknown precision.
    """
    check_choices(precision, rounding)
    family = _family(checkpoint)
    used = used_weights(family, Config(checkpoint.config, str(checkpoint.path)), checkpoint)
    backend = backend or make_backend(precision, n_threads, used.n_bytes)
    loader = Loader(used, backend, progress, family.ROUNDED if rounding == "int8" else (), kept)
    ops, config = family.record(Config(checkpoint.config, str(checkpoint.path)), loader)
    return LoadedModel(backend, ops, loader, config.vocab_size, config.max_context)


@dataclass(frozen=True)
class Residence:
    """What weights become once loaded: the bytes they take, and which are rounded, for people; empty if none is."""

    n_bytes: int
    rounded: str = ""


def residence(checkpoint: CheckpointLike, precision: Precision = "exact", rounding: Rounding = "int8") -> Residence:
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
        return Residence(sum(4 * math.prod(used.shape(name)) for name in used.names))
    rounded = family.ROUNDED if rounding == "int8" else ()
    n_bytes, n_before, n_after = used.n_bytes, 0, 0
    for name in used.names:
        if not (name.endswith(rounded) or name in used.tables):
            continue
        tensor = used.get(name)
        if to := rounded_format(name, tensor, rounded):
            n_before += tensor.n_bytes
            n_after += math.prod(tensor.shape[:-1]) * FORMATS[to].row_bytes(tensor.shape[-1])
        elif name in used.tables and stays_in_file(tensor):
            n_bytes -= tensor.n_bytes
    if not n_before:
        return Residence(n_bytes)
    remark = f"attention and head as Q8_0 ({n_after / 1e9:.2f} GB for {n_before / 1e9:.2f} GB of bfloat16)"
    return Residence(n_bytes - n_before + n_after, remark)


def rounding_policy(rounding: Rounding) -> str:
    """A rounding with all that it means: equal texts, equal packed weights of any checkpoint."""
    rounded = [name for family in _MODULES for name in family.ROUNDED] if rounding == "int8" else []
    return " ".join([rounding, *rounded])


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
    return NativeBackend(n_threads or _usable_cores(), expected_bytes=expected_bytes)


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
