"""Kernels: the operations models are written in, and the backends that run them.

The seam to the hardware. Models record operations (`Ops`); a backend packs weights, compiles a recording and runs it.
`NativeBackend` is C++ for this processor, `ReferenceBackend` is numpy, the oracle. Both have the same three methods.
"""

from freehold.kernels.native import (
    FORMATS,
    PACKED_LAYOUT,
    ROUNDED_FROM,
    ROUNDED_TO,
    NativeBackend,
    available_isas,
    explain_isa,
    isa,
    measure_bandwidth,
    packed_bytes,
    unwrap,
    wrap,
)
from freehold.kernels.ops import Clamp, Gating, LatentHeads, Matrix, Norm, Ops, Rope, Routing, Value
from freehold.kernels.reference import ReferenceBackend

__all__ = [
    "FORMATS",
    "PACKED_LAYOUT",
    "ROUNDED_FROM",
    "ROUNDED_TO",
    "Clamp",
    "Gating",
    "LatentHeads",
    "Matrix",
    "NativeBackend",
    "Norm",
    "Ops",
    "ReferenceBackend",
    "Rope",
    "Routing",
    "Value",
    "available_isas",
    "explain_isa",
    "isa",
    "measure_bandwidth",
    "packed_bytes",
    "unwrap",
    "wrap",
]
