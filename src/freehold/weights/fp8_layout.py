"""Safetensors with matrices in FP8, as DeepSeek publishes them: each with its scales beside it, seen as one.

Owns the pairing of `X` with `X_scale_inv`, and the refusal of other kinds of FP8. A scale is multiplied with 128 rows
by 128 columns, whatever its name says; the last blocks of a matrix may be smaller. Knows nothing of the files' layout.

Source: the README_WEIGHTS of DeepSeek-V3, transformers (integrations/finegrained_fp8.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from freehold.errors import ModelFileError, UnsupportedError
from freehold.formats import F8_BLOCK, FORMATS, QTensor
from freehold.weights.quote import naming, quote
from freehold.weights.safetensors import SafetensorsShards

_SCALES = "_scale_inv"
_F8 = "F8_E4M3"


def is_fp8(config: Mapping[str, Any]) -> bool:
    """Whether a config says that its checkpoint has FP8 in blocks; UnsupportedError for FP8 of another kind."""
    stored = config.get("quantization_config")
    if not isinstance(stored, Mapping) or stored.get("quant_method") != "fp8":
        return False
    for key, expected in (("fmt", "e4m3"), ("weight_block_size", [F8_BLOCK, F8_BLOCK])):
        if stored.get(key, expected if key == "fmt" else None) != expected:
            raise UnsupportedError(
                f"quantization_config has {key} {stored.get(key)!r}; of FP8 Freehold reads only {key} {expected!r}, as "
                f"DeepSeek and Qwen publish it: fetch the model in bfloat16 or as GGUF instead"
            )
    return True


def holds_fp8(shards: SafetensorsShards) -> bool:
    """Whether any tensor is in FP8, whatever the config says: without its scales it would be numbers of no meaning."""
    return any(shards.span(name).dtype == _F8 for name in shards.names)


class Fp8Tensors:
    """The tensors of such a checkpoint; scales are part of what they scale."""

    def __init__(self, shards: SafetensorsShards) -> None:
        """Raises ModelFileError naming a tensor whose scales do not fit; the shards stay open, the caller's."""
        self._shards = shards
        stored = frozenset(shards.names)
        self.names: tuple[str, ...] = tuple(name for name in shards.names if not name.endswith(_SCALES))
        self.n_bytes = shards.n_bytes
        with naming(shards.directory):
            for name in self.names:
                self._check(name, stored)
            for name in stored.difference(self.names):
                if name.removesuffix(_SCALES) not in stored:
                    raise ModelFileError(f"the tensor {quote(name)} holds the scales of a tensor that is not there")

    def _check(self, name: str, stored: frozenset[str]) -> None:
        span, scales = self._shards.span(name), f"{name}{_SCALES}"
        if (span.dtype == _F8) != (scales in stored):
            found = "has no scales beside it" if span.dtype == _F8 else f"is {span.dtype} and has scales beside it"
            raise ModelFileError(f"the tensor {quote(name)} {found}; expected {_F8} and its {_SCALES[1:]}")
        if span.dtype != _F8:
            return
        if len(span.shape) != 2:
            raise ModelFileError(f"the tensor {quote(name)} is {_F8} {list(span.shape)}; expected a matrix")
        expected = tuple(-(-n // F8_BLOCK) for n in span.shape)
        scale = self._shards.span(scales)
        if scale.dtype not in ("F32", "BF16") or scale.shape != expected:
            raise ModelFileError(
                f"the tensor {quote(scales)} is {scale.dtype} {list(scale.shape)}; its matrix {list(span.shape)} calls "
                f"for F32 {list(expected)}"
            )

    def get(self, name: str) -> QTensor:
        """A view of the mapped files, with scales [rows, blocks of columns] repeated for every row."""
        span = self._shards.span(name)
        if span.dtype != _F8:
            return self._shards.get(name)
        n_rows, n_cols = span.shape
        scales = self._shards.get(f"{name}{_SCALES}").to_float32()
        data = self._shards.raw(name).reshape(n_rows, n_cols)
        return QTensor(FORMATS[_F8], span.shape, data, np.repeat(scales, F8_BLOCK, axis=0)[:n_rows])

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return self._shards.span(name).shape

    def release(self, name: str) -> None:
        """Tell the system that the pages the tensor lies in are no longer needed."""
        self._shards.release(name)

    def close(self) -> None:
        """Unmap all files; tensors already taken stay valid."""
        self._shards.close()
