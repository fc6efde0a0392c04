"""What packing makes of every format, as checksums: kept files of another layout must not be taken for this one's.

Where this fails because packing was changed on purpose: count `PACKED_LAYOUT` up and put the new checksums here.
"""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from freehold.errors import KernelError
from freehold.kernels import FORMATS, PACKED_LAYOUT, NativeBackend, unwrap, wrap
from kernel_programs import random_tensor

LAYOUT = 3
CHECKSUMS = {
    "F32": "9b86458d",
    "F16": "4dff8f1a",
    "BF16": "96da88ea",
    "Q8_0": "ac9ff050",
    "Q4_0": "86763fa0",
    "Q4_1": "07c802ef",
    "Q5_0": "06747cb6",
    "Q5_1": "7a1bd786",
    "Q2_K": "9e83873d",
    "Q3_K": "ce31df3e",
    "Q4_K": "bfc3fe8e",
    "Q5_K": "9a0448aa",
    "Q6_K": "14913686",
    "MXFP4": "8a214015",
    "F8_E4M3": "deb3074f",
    "BF16 as Q8_0": "2386487b",
    "BF16 as Q4_K": "7da8043c",
    "F16 as Q4_K": "175e5e03",
    "F32 as Q4_1": "72c912a0",
    "F32 as Q8_0": "f4967a49",
}


@pytest.mark.parametrize("name", [*FORMATS, *(name for name in CHECKSUMS if " as " in name)])
def test_the_layout_is_that_of_its_version(name: str) -> None:
    fmt, _, to = name.partition(" as ")
    backend = NativeBackend(1)
    matrix = backend.matrix(random_tensor(fmt, 40, 512, seed=1), to or None)
    backend.pack_waiting()
    found, data = unwrap(matrix)
    assert found == (to or fmt)
    assert (LAYOUT, f"{zlib.crc32(data.tobytes()):08x}") == (PACKED_LAYOUT, CHECKSUMS[name])


def test_a_wrapped_matrix_is_the_packed_one() -> None:
    backend = NativeBackend(1)
    matrix = backend.matrix(random_tensor("Q4_K", 40, 512, seed=1))
    backend.pack_waiting()
    fmt, data = unwrap(matrix)
    wrapped = wrap(data.copy(), fmt, 40, 512)
    assert wrapped.shape == (40, 512)
    assert wrapped.n_bytes == matrix.n_bytes
    assert np.array_equal(unwrap(wrapped)[1], data)


@pytest.mark.parametrize(("n_rows", "n_cols", "cut"), [(40, 512, 64), (56, 512, 0), (40, 500, 0), (40, 0, 0)])
def test_bytes_that_do_not_fit_are_refused(n_rows: int, n_cols: int, cut: int) -> None:
    backend = NativeBackend(1)
    matrix = backend.matrix(random_tensor("Q4_K", 40, 512, seed=1))
    backend.pack_waiting()
    fmt, data = unwrap(matrix)
    with pytest.raises(KernelError, match="no packed Q4_K matrix"):
        wrap(data[: len(data) - cut].copy(), fmt, n_rows, n_cols)
