"""A file at a source, and whether bytes are those of it.

Owns what is known of a file before it is fetched, and the digests that are computed while it passes. Fetches nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch: `name` in the model, where its bytes are, and what is known of them.

    git_oid is the SHA-1 that git gives a file. local is a file of this machine with the same bytes, as far as known;
    url may then be empty.
    """

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None
    git_oid: str | None = None
    local: Path | None = None

    @property
    def want(self) -> str:
        """What tells these bytes from others."""
        return self.sha256 or self.git_oid or f"{self.url or self.local}#{self.size}"


class Digests:
    """What is computed of a file while it passes: SHA-256, and git's SHA-1 if the size is known beforehand."""

    def __init__(self, size: int | None) -> None:
        self._size = size
        self.restart()

    def restart(self) -> None:
        self.n_bytes = 0
        self._sha256 = hashlib.sha256()
        header = b"blob %d\0" % (self._size or 0)
        self._git = None if self._size is None else hashlib.sha1(header, usedforsecurity=False)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def update(self, chunk: bytes) -> None:
        self.n_bytes += len(chunk)
        self._sha256.update(chunk)
        if self._git is not None:
            self._git.update(chunk)

    def problem(self, file: RemoteFile) -> str | None:
        """Why these are not the bytes of `file`, or None."""
        if file.size is not None and self.n_bytes != file.size:
            return f"has {self.n_bytes} bytes instead of {file.size}"
        if file.sha256 is not None and self.sha256 != file.sha256:
            return f"has the SHA-256 {self.sha256} instead of {file.sha256}"
        if file.sha256 is None and file.git_oid is not None and self._git is not None:
            found = self._git.hexdigest()
            return None if found == file.git_oid else f"has the git hash {found} instead of {file.git_oid}"
        return None
