"""A read-only memory map of one model file, and the tensors that lie in it.

Owns opening, closing and the advice to the operating system about pages. Knows nothing of file formats: a reader tells
it where a tensor lies, after checking that it lies inside the file.

A file that another process shortens while it is mapped kills this one (SIGBUS) when the lost part is read. Nothing can
check for that, so the model store replaces files by renaming and never writes into them.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from freehold.errors import ModelFileError, NotFoundError
from freehold.formats import Format, QTensor, UInt8Array

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class TensorSpan:
    """Where a tensor lies: `start` and `n_bytes` are bytes of the file, `dtype` is the container's spelling."""

    dtype: str
    shape: tuple[int, ...]  # row-major, the last axis contiguous
    start: int
    n_bytes: int

    @property
    def stop(self) -> int:
        return self.start + self.n_bytes


class MappedFile:
    """The bytes of a file, mapped when opened. Arrays taken from it stay valid after `close`."""

    def __init__(self, path: Path) -> None:
        """Raises NotFoundError when there is no such file, ModelFileError when it is empty or cannot be mapped."""
        self.path = path
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # asked first: opening a pipe would wait for its writer
                raise ModelFileError(f"{path} is not a regular file")
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size == 0:
                    raise ModelFileError(f"{path} is empty; the download or copy did not finish, so fetch it again")
                self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise NotFoundError(f"{path} does not exist") from None
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path} cannot be read: {error}") from error
        self.n_bytes = len(self.bytes)
        if self.bytes[: len(_LFS_POINTER)] == _LFS_POINTER:
            raise ModelFileError(f"{path} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")

    def array(self, start: int, n_bytes: int) -> UInt8Array:
        """A read-only view of bytes that lie inside the file."""
        assert 0 <= start <= start + n_bytes <= self.n_bytes
        if n_bytes == 0:
            return np.empty(0, np.uint8)  # frombuffer refuses empty ranges
        return np.frombuffer(self.bytes, np.uint8, n_bytes, start)

    def tensor(self, fmt: Format, span: TensorSpan) -> QTensor:
        """The tensor at `span`, without copying or touching its pages."""
        rows, n_cols = math.prod(span.shape[:-1]), span.shape[-1] if span.shape else 1
        data = self.array(span.start, span.n_bytes)
        return QTensor(fmt, span.shape, data.reshape(rows, fmt.row_bytes(n_cols)))

    def release(self, span: TensorSpan) -> None:
        """Tell the system that the span's whole pages are no longer needed; reading them again still works."""
        advice = getattr(mmap, "MADV_DONTNEED", None)  # not on Windows
        start = -(-span.start // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = span.stop // mmap.PAGESIZE * mmap.PAGESIZE
        if advice is not None and start < stop:
            self.bytes.madvise(advice, start, stop - start)

    def close(self) -> None:
        """Unmap the file, or leave that to the last array taken from it."""
        with contextlib.suppress(BufferError):  # arrays still refer to the map; it goes with the last of them
            self.bytes.close()
