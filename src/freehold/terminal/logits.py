"""Token ids in, logits out, as .npy files: the exchange behind `freehold logits`.

Owns the checks of a foreign .npy file and the atomic writing of a large one in bounded memory.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from freehold.errors import NotFoundError, RequestError, ResourceError
from freehold.runtime import LocalModel

MAX_IDS_BYTES = 256 * 2**20


def read_ids(path: Path) -> list[int]:
    """The ids of a .npy file: one dimension, any integer type, at least one. Pickles are never opened."""
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}; expected a .npy file of token ids")
    if path.stat().st_size > MAX_IDS_BYTES:
        raise RequestError(f"{path} is over {MAX_IDS_BYTES // 2**20} MiB; expected the token ids of one sequence")
    try:
        # Mapped, so that a header claiming a huge array is checked against the file instead of allocated.
        ids = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError, SyntaxError, OverflowError) as error:
        raise RequestError(f"{path} is not a .npy file of numbers: {str(error)[:200]}") from error
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not ids.size:
        raise RequestError(
            f"{path} holds {ids.dtype} of shape {list(ids.shape)}; expected one dimension of integers, not empty"
        )
    return [int(token) for token in ids]


def write_logits(model: LocalModel, ids: list[int], out: Path) -> None:
    """Compute and write float32 [tokens, vocab] chunk by chunk; `out` appears only once it is complete."""
    chunks = model.iter_logits(ids)  # checks the ids before anything is written
    n_bytes = 4 * len(ids) * model.vocab_size
    try:
        free = shutil.disk_usage(out.parent).free
        if free < n_bytes:
            raise ResourceError(f"{out} needs {n_bytes / 1e6:.1f} MB of disk, but {free / 1e6:.1f} MB are free")
        handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.", suffix=".part")
    except OSError as error:
        raise RequestError(f"cannot write to {out.parent}: {error.strerror or error}") from error
    try:
        with open(handle, "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(ids), model.vocab_size)}
            np.lib.format.write_array_header_1_0(file, header)
            for rows in chunks:
                file.write(np.ascontiguousarray(rows, "<f4").data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, out)
    except OSError as error:
        raise RequestError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    """The process's file mode mask; mkstemp ignores it, and can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
