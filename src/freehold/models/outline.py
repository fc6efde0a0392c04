"""A dry run of loading: every tensor is asked for and its shape compared, and nothing is read, packed or allocated.

What does not fit its config is so refused before the first weight is touched, and it is known which tensors the model
uses. Works by giving a family's `record` a checkpoint of outlines and a backend that makes nothing of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol, cast

import numpy as np

from freehold.core import Float32Array
from freehold.errors import UnsupportedError
from freehold.formats import FORMATS, Format, QTensor
from freehold.kernels import Matrix, Ops
from freehold.models.common import Config
from freehold.models.loader import Loader, Weights


class Stored(Weights, Protocol):
    """Weights whose shapes are known without reading them."""

    def shape(self, name: str) -> tuple[int, ...]: ...


class UsedWeights:
    """The tensors of a checkpoint that its model uses, without others, such as layers that guess further ahead (MTP).

    tables: the names of those of which it looks up rows. copies: of each that is cut into parts, how many numbers of it
    are kept a second time.
    """

    def __init__(
        self,
        stored: Stored,
        used: Collection[str],
        tables: Collection[str] = (),
        copies: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._stored = stored
        self.names: tuple[str, ...] = tuple(name for name in stored.names if name in used)
        self.tables = frozenset(tables)
        self.copies = copies

    def get(self, name: str) -> QTensor:
        return self._stored.get(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored.shape(name)

    def release(self, name: str) -> None:
        self._stored.release(name)

    @cached_property
    def n_bytes(self) -> int:
        """Bytes of these tensors as stored."""
        used = frozenset(self.names)
        return self._stored.n_bytes - sum(self._n_bytes(name) for name in self._stored.names if name not in used)

    def _n_bytes(self, name: str) -> int:
        try:
            return self.get(name).n_bytes
        except UnsupportedError:  # numbers that no model uses, such as buffers of integers, and never many
            return 0


def used_weights(family: Any, config: Config, stored: Stored) -> UsedWeights:
    """What `family.record` would load of these weights; raises what it would for their names and shapes."""
    outlines = _Outlines(stored)
    loader = _DryLoader(outlines, _NoBackend())
    family.record(config, loader)
    return UsedWeights(stored, outlines.used, loader.tables, loader.copies)


class _DryLoader(Loader):
    def __init__(self, weights: _Outlines, backend: _NoBackend) -> None:
        super().__init__(weights, backend)
        self.tables: list[str] = []
        self.copies: dict[str, int] = {}

    def parts(
        self,
        name: str,
        shape: tuple[int, ...],
        sizes: Mapping[str, tuple[int, int, int]],
        cut: Callable[[QTensor], Mapping[str, Sequence[QTensor]]],
    ) -> dict[str, tuple[Matrix, ...]]:
        self.copies[name] = sum(math.prod(size) for size in sizes.values()) - math.prod(shape)
        return super().parts(name, shape, sizes, cut)

    def table(self, name: str, n_rows: int, n_cols: int) -> Matrix:
        self.tables.append(name)
        return self.matrix(name, n_rows, n_cols)


@dataclass(frozen=True)
class _Outline:
    shape: tuple[int, ...]
    format: Format = FORMATS["F32"]
    n_bytes: int = 0

    def expert(self, index: int) -> _Outline:
        return _Outline(self.shape[1:])

    def rows(self, start: int, stop: int) -> _Outline:
        return _Outline((stop - start, self.shape[1]))

    def transposed(self) -> _Outline:
        return _Outline(self.shape[::-1])

    def to_float32(self) -> Float32Array:
        return np.broadcast_to(np.float32(1), self.shape)


class _Outlines:
    """Loader's Weights, of outlines."""

    def __init__(self, checkpoint: Stored) -> None:
        self._checkpoint = checkpoint
        self.names = checkpoint.names
        self.n_bytes = 0
        self.used: set[str] = set()

    def get(self, name: str) -> QTensor:
        self.used.add(name)
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
