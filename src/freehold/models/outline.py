"""A dry run of loading: every tensor is asked for and its shape compared, and nothing is read, packed or allocated.

What does not fit its config is so refused before the first weight is touched. Works by giving a family's `record` a
checkpoint of outlines and a backend that makes nothing of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from freehold.core import Float32Array
from freehold.formats import FORMATS, Format, QTensor
from freehold.kernels import Matrix, Ops
from freehold.models.common import Config
from freehold.models.loader import Loader


class Shapes(Protocol):
    """Names and shapes of a checkpoint's tensors."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...


def check_tensors(family: Any, config: Config, checkpoint: Shapes) -> None:
    """Raise what `family.record` would raise for this checkpoint's config, names and shapes."""
    family.record(config, Loader(_Outlines(checkpoint), _NoBackend()))


@dataclass(frozen=True)
class _Outline:
    shape: tuple[int, ...]
    format: Format = FORMATS["F32"]
    n_bytes: int = 0

    def expert(self, index: int) -> _Outline:
        return _Outline(self.shape[1:])

    def to_float32(self) -> Float32Array:
        return np.broadcast_to(np.float32(1), self.shape)


class _Outlines:
    """Loader's Weights, of outlines."""

    def __init__(self, checkpoint: Shapes) -> None:
        self._checkpoint = checkpoint
        self.names = checkpoint.names
        self.n_bytes = 0

    def get(self, name: str) -> QTensor:
        return cast(QTensor, _Outline(self._checkpoint.shape(name)))

    def release(self, name: str) -> None:
        pass


class _NoBackend:
    def matrix(
        self, tensor: QTensor, to: str | None = None, label: str = "", read: Callable[[], None] | None = None
    ) -> Matrix:
        return tensor

    def table(self, tensor: QTensor) -> Matrix:
        return tensor

    def n_bytes(self, matrix: Any) -> int:
        return 0

    def compile(self, ops: Ops) -> Any:
        raise AssertionError("outlines are not run")
