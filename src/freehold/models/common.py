"""What every model family needs: strict reading of configs, rotary frequencies, the compiled model, weight loading.

Knows the operations and the checkpoint, not any family. Nothing here computes; it prepares what the kernels run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from freehold.core import Batch, Float32Array, KVCacheLike, KVSpec
from freehold.errors import ModelFileError, UnsupportedError
from freehold.formats import QTensor
from freehold.kernels import Matrix, Norm, Ops, Rope

T = TypeVar("T", int, float, bool, str)
Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in total."""

_MATHS_FREE_NAMES = """
    architectures model_type torch_dtype dtype transformers_version _name_or_path auto_map use_cache bos_token_id
    eos_token_id pad_token_id unk_token_id initializer_range attention_dropout hidden_dropout chunk_size_feed_forward
    output_attentions output_hidden_states return_dict is_encoder_decoder is_llama_config quantization_config
    _attn_implementation attn_implementation pretraining_tp problem_type task_specific_params id2label label2id
    transformers.js_config tokenizer_class max_window_layers layer_types"""
_MATHS_FREE_KEYS = frozenset(_MATHS_FREE_NAMES.split())
"""Config keys that never change a forward pass, or that a family reads where it matters."""


class Config:
    """A config.json read key by key; `finish` refuses what nobody read, because it may change the maths."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self._where = where
        self._read: set[str] = set()

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The value of `key` as `kind`; without a default the key is required. Raises ModelFileError."""
        self._read.add(key)
        value = self._values.get(key)
        if value is None:
            if default is None:
                raise ModelFileError(f"{self._where}: the config lacks {key!r}, which this architecture needs")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ModelFileError(f"{self._where}: config key {key!r} is {value!r}; expected {_KINDS[kind]}")
        return value

    def size(self, key: str, default: int | None = None, most: int = 1 << 24) -> int:
        """A count from 1 to `most`."""
        value = self.get(key, int, default)
        if not 1 <= value <= most:
            raise ModelFileError(f"{self._where}: config key {key!r} is {value}; expected 1 to {most:,}")
        return value

    def section(self, *keys: str) -> Config | None:
        """The first of `keys` that holds a JSON object, or None."""
        self._read.update(keys)
        for key in keys:
            if isinstance(self._values.get(key), Mapping):
                return Config(self._values[key], f"{self._where}: {key}")
        return None

    def require(self, key: str, *allowed: object) -> None:
        """Refuse any value of `key` other than the first allowed one (also meant when it is absent) or the others."""
        self._read.add(key)
        value = self._values.get(key)
        if value is not None and value not in allowed:
            expected = " or ".join(map(repr, allowed))
            raise UnsupportedError(
                f"{self._where}: config key {key!r} is {_short(value)}, which is not implemented (only {expected})"
            )

    def finish(self) -> None:
        """Refuse keys that were not read, unless they are switched off (null, false, 0, empty) or never matter."""
        for key, value in self._values.items():
            if key not in self._read and key not in _MATHS_FREE_KEYS and value not in (None, False, 0, "", [], {}):
                raise UnsupportedError(
                    f"{self._where}: config key {key!r} = {_short(value)} is not known to this architecture and may "
                    f"change its results; Freehold refuses to guess"
                )


_KINDS: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_rope(config: Config, head_dim: int, factors: Float32Array | None = None) -> Rope:
    """Rotary frequencies of the kinds "default", "linear" and "llama3".

    factors: [head_dim / 2] divisors stored in the file (GGUF's rope_freqs), which then replace the scaling section.
    Source: the formulas of transformers' modeling_rope_utils.
    """
    parameters = config.section("rope_parameters", "rope_scaling")
    nested = parameters.get("rope_theta", float, 0.0) if parameters else 0.0
    theta = config.get("rope_theta", float, 0.0) or nested or 10000.0
    config.require("partial_rotary_factor", 1.0)
    config.require("rope_interleaved", False)
    if not (math.isfinite(theta) and theta > 0):
        raise ModelFileError(f"rope_theta is {theta}; expected a positive number")
    inverse = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if factors is not None:
        inverse = inverse / factors.astype(np.float64)
    elif parameters is not None:
        inverse = _scaled(inverse, parameters)
    if not (np.isfinite(inverse).all() and (inverse > 0).all()):
        raise ModelFileError("the rotary frequencies of this config are not positive numbers")
    return Rope(inverse)


def _scaled(inverse: npt.NDArray[np.float64], parameters: Config) -> npt.NDArray[np.float64]:
    kind = parameters.get("rope_type", str, parameters.get("type", str, "default"))
    parameters.get("rope_theta", float, 0.0)
    if kind == "default":
        parameters.finish()
        return inverse
    factor = parameters.get("factor", float)
    if not factor > 0:
        raise ModelFileError(f"rope scaling has factor {factor}; expected a positive number")
    if kind == "linear":
        parameters.finish()
        return inverse / factor
    if kind != "llama3":
        raise UnsupportedError(f"rope scaling {kind!r} is not implemented; implemented are default, linear, llama3")
    low, high = parameters.get("low_freq_factor", float), parameters.get("high_freq_factor", float)
    original = parameters.size("original_max_position_embeddings", most=1 << 30)
    parameters.finish()
    wavelength = 2 * math.pi / inverse
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)  # 0: long waves, slowed; 1: short, kept
    return (1 - smooth) * inverse / factor + smooth * inverse


class Backend(Protocol):
    """What loading and running need of a kernel backend."""

    def matrix(self, tensor: QTensor) -> Matrix: ...

    def n_bytes(self, matrix: Any) -> int: ...

    def compile(self, ops: Ops) -> Program: ...


class Program(Protocol):
    def new_kv(self, n_blocks: int) -> Any: ...

    def run(self, batch: Batch, kv: Any) -> Float32Array: ...


class Weights(Protocol):
    """A checkpoint's tensors under Hugging Face's names."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def n_bytes(self) -> int: ...

    def get(self, name: str) -> QTensor: ...

    def release(self, name: str) -> None: ...


class Loader:
    """Hands a checkpoint's tensors to a backend one by one, checks their shapes, and gives the source pages back."""

    def __init__(self, weights: Weights, backend: Backend, progress: Progress | None = None) -> None:
        self._weights = weights
        self._backend = backend
        self._progress = progress
        self._names = frozenset(weights.names)
        self._done = 0
        self.n_bytes = 0  # read so far, which is what stays resident
        self.n_parameters = 0

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def matrix(self, name: str, n_rows: int, n_cols: int) -> Matrix:
        """A weight [n_rows, n_cols], packed."""
        tensor = self._get(name, (n_rows, n_cols))
        matrix = self._backend.matrix(tensor)
        self._count(name, tensor)
        return matrix

    def vector(self, name: str, size: int) -> Float32Array:
        """A vector [size] as float32."""
        tensor = self._get(name, (size,))
        values = tensor.to_float32()
        self._count(name, tensor)
        return values

    def optional_vector(self, name: str, size: int) -> Float32Array | None:
        """The vector, or None if the checkpoint has none of that name."""
        return self.vector(name, size) if name in self else None

    def norm(self, name: str, size: int, eps: float) -> Norm:
        """An RMSNorm with this weight."""
        return Norm(self.vector(name, size), eps)

    def _get(self, name: str, shape: tuple[int, ...]) -> QTensor:
        if name not in self:
            raise ModelFileError(f"the checkpoint has no tensor {name!r}, which its config calls for")
        tensor = self._weights.get(name)
        if tensor.shape != shape:
            raise ModelFileError(f"tensor {name!r} has shape {list(tensor.shape)}; its config calls for {list(shape)}")
        return tensor

    def _count(self, name: str, tensor: QTensor) -> None:
        self.n_bytes += tensor.data.nbytes
        self.n_parameters += math.prod(tensor.shape)
        self._weights.release(name)
        if self._progress:
            self._progress(self.n_bytes, self._weights.n_bytes)


class LoadedModel:
    """A model ready to run: implements core.Model over a compiled program. `close` is final."""

    def __init__(self, backend: Backend, ops: Ops, loader: Loader, vocab_size: int, max_context: int) -> None:
        self._program: Program | None = backend.compile(ops)
        self.kv_specs: Sequence[KVSpec] = tuple(ops.kv_specs)
        self.vocab_size = vocab_size
        self.max_context = max_context
        self.n_bytes = loader.n_bytes
        self.n_parameters = loader.n_parameters
        self.step_bytes = sum(map(backend.n_bytes, ops.matrices_read()))  # of weights, read by every step

    def new_kv(self, n_blocks: int) -> KVCacheLike:
        """KV storage for n_blocks * KV_BLOCK tokens."""
        kv: KVCacheLike = self._running().new_kv(n_blocks)
        return kv

    def forward(self, batch: Batch, kv: KVCacheLike) -> Float32Array:
        """Append the batch to `kv` and return logits [n_logits, vocab_size]."""
        return self._running().run(batch, kv)

    def close(self) -> None:
        """Free the weights."""
        self._program = None

    def _running(self) -> Program:
        assert self._program is not None, "the model was closed"
        return self._program
