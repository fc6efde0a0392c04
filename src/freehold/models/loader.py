"""From a checkpoint's tensors to a model that runs: what loading needs of weights and of a kernel backend.

Owns the order in which a tensor's bytes are read, packed and given back, and the runnable model. Knows no family and no
file format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from freehold.core import Batch, Float32Array, KVCacheLike, KVSpec
from freehold.errors import ModelFileError
from freehold.formats import QTensor
from freehold.kernels import Matrix, Norm, Ops
from freehold.models.rounding import RoundingPolicy

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in total."""


class Backend(Protocol):
    """What loading and running need of a kernel backend."""

    def matrix(
        self, tensor: QTensor, to: str | None = None, label: str = ..., read: Callable[[], None] | None = None
    ) -> Matrix:
        """Takes a tensor, whose bytes must stay readable until `read` was called, at the latest in `compile`."""
        ...

    def table(self, tensor: QTensor) -> Matrix: ...

    def n_bytes(self, matrix: Any) -> int: ...

    def compile(self, ops: Ops) -> Program: ...


class Program(Protocol):
    def new_kv(self, n_blocks: int) -> Any: ...

    def run(self, batch: Batch, kv: Any) -> Float32Array: ...

    def interrupt(self) -> None: ...


class Weights(Protocol):
    """A checkpoint's tensors under Hugging Face's names."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def n_bytes(self) -> int: ...

    def get(self, name: str) -> QTensor: ...

    def release(self, name: str) -> None: ...


class Kept(Protocol):
    """Matrices that were packed by an earlier load of the same weights."""

    def find(self, name: str, n: int, n_rows: int, n_cols: int) -> tuple[Matrix, ...] | None:
        """The n matrices [n_rows, n_cols] of a tensor, all or none."""
        ...

    def keep(self, name: str, matrices: Sequence[Matrix]) -> None:
        """What `find` did not have, for the next load."""
        ...


class Loader:
    """Hands a checkpoint's tensors to a backend one by one, checks their shapes, and gives the source pages back.

    policy: which matrices are rounded, and to what; without one, none is.
    kept: asked first for every matrix; what it has is not read from the checkpoint.
    """

    def __init__(
        self,
        weights: Weights,
        backend: Backend,
        progress: Progress | None = None,
        policy: RoundingPolicy | None = None,
        kept: Kept | None = None,
    ) -> None:
        self._weights = weights
        self._policy = policy or RoundingPolicy()
        self._backend = backend
        self._progress = progress
        self._kept = kept
        self._names = frozenset(weights.names)
        self._done = 0  # bytes of the checkpoint
        self.n_bytes = 0  # of what stays resident
        self.n_parameters = 0

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def matrix(self, name: str, n_rows: int, n_cols: int) -> Matrix:
        """A weight [n_rows, n_cols], packed."""
        if found := self._find(name, 1, n_rows, n_cols):
            return found[0]
        tensor = self._get(name, (n_rows, n_cols))
        to, read = self._policy.target(name, tensor), partial(self._weights.release, name)
        matrix = self._backend.matrix(tensor, to, f"tensor {name!r}", read)
        self._keep(name, [matrix])
        self._count(tensor, self._backend.n_bytes(matrix))
        return matrix

    def experts(self, name: str, n: int, n_rows: int, n_cols: int) -> tuple[Matrix, ...]:
        """The matrices [n_rows, n_cols] of n experts, stored as one tensor or, under their numbers, as one each."""
        numbered = [name.replace(".experts.", f".experts.{index}.") for index in range(n)]
        if numbered[0] in self:
            return tuple(self.matrix(one, n_rows, n_cols) for one in numbered)
        if found := self._find(name, n, n_rows, n_cols):
            return found
        tensor = self._get(name, (n, n_rows, n_cols))
        to, read = self._policy.target(name, tensor), partial(self._weights.release, name)
        matrices = tuple(
            self._backend.matrix(tensor.expert(index), to, f"expert {index} of tensor {name!r}", read)
            for index in range(n)
        )
        self._keep(name, matrices)
        self._count(tensor, sum(map(self._backend.n_bytes, matrices)))
        return matrices

    def parts(
        self,
        name: str,
        shape: tuple[int, ...],
        sizes: Mapping[str, tuple[int, int, int]],
        cut: Callable[[QTensor], Mapping[str, Sequence[QTensor]]],
    ) -> dict[str, tuple[Matrix, ...]]:
        """Groups of matrices that `cut` makes of one tensor, packed as they are, whatever else is rounded.

        sizes: of each group, how many matrices it has, their rows and their columns.
        """
        self._require(name)
        groups: dict[str, tuple[Matrix, ...]] = {}
        for group, size in sizes.items():
            if self._kept is not None and (found := self._kept.find(f"{name}:{group}", *size)):
                groups[group] = found
        if groups.keys() == sizes.keys():
            resident = self._resident(groups)
            self._add(math.prod(shape), resident, resident)
            return groups
        tensor, read = self._get(name, shape), partial(self._weights.release, name)
        for group, parts in cut(tensor).items():
            if group not in groups:
                groups[group] = tuple(self._backend.matrix(part, None, f"tensor {name!r}", read) for part in parts)
                self._keep(f"{name}:{group}", groups[group])
        self._count(tensor, self._resident(groups))
        return groups

    def table(self, name: str, n_rows: int, n_cols: int) -> Matrix:
        """A matrix of which only rows are looked up. In bfloat16 it stays in its file, paged in as it is used."""
        tensor = self._get(name, (n_rows, n_cols))
        if not stays_in_file(tensor):
            return self.matrix(name, n_rows, n_cols)
        self._add(n_rows * n_cols, tensor.n_bytes, 0)
        return self._backend.table(tensor)

    def vector(self, name: str, *shape: int) -> Float32Array:
        """A vector, or a table of vectors, as float32."""
        tensor = self._get(name, shape)
        values = tensor.to_float32()
        self._weights.release(name)
        self._count(tensor, values.nbytes)
        return values

    def optional_vector(self, name: str, size: int) -> Float32Array | None:
        """The vector, or None if the checkpoint has none of that name."""
        return self.vector(name, size) if name in self else None

    def norm(self, name: str, size: int, eps: float) -> Norm:
        """An RMSNorm with this weight."""
        return Norm(self.vector(name, size), eps)

    def _find(self, name: str, n: int, n_rows: int, n_cols: int) -> tuple[Matrix, ...] | None:
        """The n matrices of a tensor as an earlier load packed them; the checkpoint is not touched."""
        self._require(name)
        found = None if self._kept is None else self._kept.find(name, n, n_rows, n_cols)
        if found is not None:
            resident = sum(map(self._backend.n_bytes, found))
            self._add(n * n_rows * n_cols, resident, resident)
        return found

    def _resident(self, groups: Mapping[str, Sequence[Matrix]]) -> int:
        return sum(self._backend.n_bytes(matrix) for matrices in groups.values() for matrix in matrices)

    def _keep(self, name: str, matrices: Sequence[Matrix]) -> None:
        if self._kept is not None:
            self._kept.keep(name, matrices)

    def _require(self, name: str) -> None:
        if name not in self:
            raise ModelFileError(f"the checkpoint has no tensor {name!r}, which its config calls for")

    def _get(self, name: str, shape: tuple[int, ...]) -> QTensor:
        self._require(name)
        tensor = self._weights.get(name)
        if tensor.shape != shape:
            raise ModelFileError(f"tensor {name!r} has shape {list(tensor.shape)}; its config calls for {list(shape)}")
        return tensor

    def _count(self, tensor: QTensor, resident: int) -> None:
        self._add(math.prod(tensor.shape), tensor.n_bytes, resident)

    def _add(self, n_parameters: int, n_bytes: int, resident: int) -> None:
        self.n_bytes += resident
        self.n_parameters += n_parameters
        self._done += n_bytes
        if self._progress:
            total = self._weights.n_bytes
            self._progress(min(self._done, total), total)  # some formats grow when they are packed


def stays_in_file(tensor: QTensor) -> bool:
    """Whether a table of rows is used where it lies."""
    return tensor.format.name == "BF16" and len(tensor.shape) == 2


class LoadedModel:
    """A model ready to run: implements core.Model over a compiled program. `close` is final."""

    def __init__(self, backend: Backend, ops: Ops, loader: Loader, vocab_size: int, max_context: int) -> None:
        self._program: Program | None = backend.compile(ops)
        self.kv_specs: Sequence[KVSpec] = tuple(ops.kv_specs)
        self.vocab_size = vocab_size
        self.max_context = max_context
        self.n_bytes = loader.n_bytes
        self.n_parameters = loader.n_parameters
        # Of weights, read by every step of one token.
        self.step_bytes = int(sum(share * backend.n_bytes(matrix) for matrix, share in ops.matrices_read()))

    def new_kv(self, n_blocks: int) -> KVCacheLike:
        """KV storage for n_blocks * KV_BLOCK tokens."""
        kv: KVCacheLike = self._running().new_kv(n_blocks)
        return kv

    def forward(self, batch: Batch, kv: KVCacheLike) -> Float32Array:
        """Append the batch to `kv` and return logits [n_logits, vocab_size]."""
        return self._running().run(batch, kv)

    def interrupt(self) -> None:
        """End the forward pass under way soon."""
        if self._program is not None:
            self._program.interrupt()

    def close(self) -> None:
        """Free the weights."""
        self._program = None

    def _running(self) -> Program:
        assert self._program is not None, "the model was closed"
        return self._program
