"""Model families, and loading a checkpoint into one that runs.

FAMILIES is the whole registry: the config's model_type names a module whose `record` loads weights and records the
forward pass. What is not listed is refused by name.
"""

from __future__ import annotations

import os
from typing import Any, Literal, Protocol, get_args

from freehold.errors import RequestError, UnsupportedError
from freehold.kernels import NativeBackend, ReferenceBackend
from freehold.models import llama
from freehold.models.common import Backend, Config, LoadedModel, Loader, Progress, Weights

Precision = Literal["reference", "exact", "fast"]
"""reference: numpy in float32, the oracle. exact: the kernels; they keep weights exact, except on the amx level,
whose tiles round to bf16 (docs/kernels.md). fast: the same, until a format has a quicker, coarser kernel."""

FAMILIES = {model_type: family for family in (llama,) for model_type in family.MODEL_TYPES}


class CheckpointLike(Weights, Protocol):
    """Tensors and the config that gives them meaning."""

    @property
    def config(self) -> Any: ...

    @property
    def path(self) -> Any: ...


def load_model(
    checkpoint: CheckpointLike,
    *,
    precision: Precision = "exact",
    n_threads: int | None = None,
    backend: Backend | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a checkpoint's weights into a runnable model.

    n_threads: workers of the kernels; None uses every core this process may run on. backend: one from `make_backend`,
    which then decides precision and threads. The checkpoint may be closed after.
    Raises UnsupportedError for an architecture or config that is not implemented, ModelFileError for tensors that do
    not fit the config, RequestError for an unknown precision.
    """
    backend = backend or make_backend(precision, n_threads, checkpoint.n_bytes)
    model_type = checkpoint.config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UnsupportedError(
            f"{checkpoint.path}: model_type {model_type!r} is not implemented; "
            f"implemented: {', '.join(sorted(FAMILIES))}"
        )
    loader = Loader(checkpoint, backend, progress)
    ops, config = family.record(Config(checkpoint.config, str(checkpoint.path)), loader)
    return LoadedModel(backend, ops, loader, config.vocab_size, config.max_context)


def make_backend(precision: Precision, n_threads: int | None = None, expected_bytes: int = 0) -> Backend:
    """The backend of a precision. A thread of its own makes memory ready for about `expected_bytes` of weights."""
    if precision not in get_args(Precision):
        raise RequestError(f"precision is {precision!r}; expected one of {', '.join(get_args(Precision))}")
    if precision == "reference":
        return ReferenceBackend()
    return NativeBackend(n_threads or _usable_cores(), expected_bytes=expected_bytes)


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
