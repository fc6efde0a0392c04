"""A model's forward pass in float32 without its weights in memory: each is read when a product needs it, and dropped.

The oracle for models that only fit once they are rounded. A pass costs one reading of the file, and memory for a few
pieces of a matrix. Works by giving a family's `record` a checkpoint of promises and a backend of matrices that keep
them; the recorded operations are then run by the numpy backend. Knows no family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from freehold.core import Batch, Float32Array
from freehold.formats import Format, QTensor, decode
from freehold.kernels import Matrix, Ops, ReferenceBackend
from freehold.models.common import Config
from freehold.models.loader import Loader, Program, Progress, Weights

PIECE_NUMBERS = 4 << 20
"""Numbers of a matrix that a thread decodes at once: 16 MiB in float32."""


class Source(Weights, Protocol):
    """Tensors and the config that gives them meaning."""

    @property
    def config(self) -> Any: ...

    @property
    def path(self) -> Any: ...


def streamed_logits(
    family: Any, checkpoint: Source, batch: Batch, n_threads: int, progress: Progress | None = None
) -> Float32Array:
    """Logits [n_logits, vocab] of a batch of new sequences, by every weight as published.

    progress: bytes of weights that were read, of those there are. The checkpoint stays open meanwhile.
    """
    with ThreadPoolExecutor(n_threads) as pool:
        backend = _StreamedBackend(pool, _Count(checkpoint.n_bytes, progress))
        ops, _ = family.record(Config(checkpoint.config, str(checkpoint.path)), Loader(_Promises(checkpoint), backend))
        program = backend.compile(ops)
        logits = program.run(batch, program.new_kv(int(batch.block_table.max()) + 1))
    if progress:
        progress(checkpoint.n_bytes, checkpoint.n_bytes)  # experts that no token went to were not read
    return logits


@dataclass(frozen=True)
class _Promise:
    """A tensor that `load` gives whenever it is asked; between two times nothing of it is kept."""

    shape: tuple[int, ...]
    format: Format
    n_bytes: int
    load: Callable[[], QTensor]

    def expert(self, index: int) -> _Promise:
        return _Promise(self.shape[1:], self.format, self.n_bytes // self.shape[0], lambda: self.load().expert(index))

    def rows(self, start: int, stop: int) -> _Promise:
        n_bytes = self.n_bytes * (stop - start) // self.shape[0]
        return _Promise((stop - start, self.shape[1]), self.format, n_bytes, lambda: self.load().rows(start, stop))

    def transposed(self) -> _Promise:
        return _Promise(self.shape[::-1], self.format, self.n_bytes, lambda: self.load().transposed())

    def to_float32(self) -> Float32Array:
        return self.load().to_float32()


class _Promises:
    """Loader's Weights, of promises."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.names = weights.names
        self.n_bytes = weights.n_bytes

    def get(self, name: str) -> QTensor:
        tensor = self._weights.get(name)
        promise = _Promise(tensor.shape, tensor.format, tensor.n_bytes, partial(self._weights.get, name))
        return cast(QTensor, promise)

    def release(self, name: str) -> None:
        self._weights.release(name)


class _Count:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress, self._done = total, progress, 0

    def add(self, n_bytes: int) -> None:
        self._done += n_bytes
        if self._progress:
            self._progress(min(self._done, self._total), self._total)


class _StreamedMatrix:
    """A matrix [n_rows, n_cols] for the numpy backend, which looks up its rows and multiplies by its transpose."""

    def __init__(
        self, promise: _Promise, pool: ThreadPoolExecutor, count: _Count, read: Callable[[], None] | None
    ) -> None:
        self.shape = promise.shape
        self._promise, self._pool, self._count, self._read = promise, pool, count, read

    @property
    def T(self) -> _Transposed:
        return _Transposed(self)

    def __getitem__(self, rows: npt.NDArray[np.int32]) -> Float32Array:
        """[len(rows), n_cols]"""
        tensor = self._promise.load()
        return np.concatenate([_decode_rows(tensor, slice(row, row + 1)) for row in rows.tolist()])

    def times(self, x: Float32Array) -> Float32Array:
        """x @ transpose: [n, n_cols] to [n, n_rows], pieces of rows side by side on the pool's threads."""
        tensor = self._promise.load()
        n_rows, n_cols = self.shape
        step = max(1, PIECE_NUMBERS // n_cols)
        pieces = [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
        run: Callable[..., Iterable[Float32Array]] = map if len(pieces) == 1 else self._pool.map
        products = run(lambda rows: x @ _decode_rows(tensor, rows).T, pieces)
        result: Float32Array = np.concatenate(list(products), axis=1)
        if self._read is not None:
            self._read()
        self._count.add(tensor.n_bytes)
        return result


class _Transposed:
    __array_ufunc__ = None  # or numpy would take this for a scalar instead of asking it

    def __init__(self, matrix: _StreamedMatrix) -> None:
        self._matrix = matrix

    def __rmatmul__(self, x: Float32Array) -> Float32Array:
        return self._matrix.times(x)


def _decode_rows(tensor: QTensor, rows: slice) -> Float32Array:
    return decode(tensor.format, tensor.data[rows], None if tensor.scales is None else tensor.scales[rows])


class _StreamedBackend:
    """Loader's Backend: nothing is packed, nothing resident."""

    def __init__(self, pool: ThreadPoolExecutor, count: _Count) -> None:
        self._pool, self._count = pool, count

    def matrix(
        self, tensor: QTensor, to: str | None = None, label: str = "", read: Callable[[], None] | None = None
    ) -> Matrix:
        return _StreamedMatrix(cast(_Promise, tensor), self._pool, self._count, read)

    def table(self, tensor: QTensor) -> Matrix:
        return self.matrix(tensor)

    def n_bytes(self, matrix: Any) -> int:
        return 0

    def compile(self, ops: Ops) -> Program:
        return ReferenceBackend().compile(ops)
