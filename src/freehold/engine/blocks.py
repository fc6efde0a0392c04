"""Block pool: which KV blocks are in use, which hold a reusable prefix, which may be overwritten.

Owns block ids, their reference counts and the prefix index. Knows no sequences, no scheduling and not the storage
behind the ids. A block is either referenced, or on the free list; a free block may still hold a cached prefix until it
is allocated again. The free list is kept in order of release: the least recently used prefix is overwritten first.

Only full blocks are published to the prefix index and a published block is never written, so sharing one is safe.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

_KEY_BYTES = 32


def root_key(namespace: str) -> bytes:
    """Parent key of the first block of every sequence of `namespace`; other namespaces share no key with it."""
    return blake2b(namespace.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES, person=b"freehold-root").digest()


def block_key(parent: bytes, tokens: bytes) -> bytes:
    """Key of a full block: its KV_BLOCK token ids as int32 and, through `parent`, everything before them.

    The hash is cryptographic because a collision would show one user the cache of another.
    """
    return blake2b(parent + tokens, digest_size=_KEY_BYTES, person=b"freehold-block").digest()


class BlockPool:
    """Allocates the block ids 0 .. n_blocks - 1. Not thread-safe: it belongs to the engine's thread."""

    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        self._n_refs = [0] * n_blocks
        self._keys: list[bytes | None] = [None] * n_blocks
        self._index: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(n_blocks))

    @property
    def n_free(self) -> int:
        """Blocks that `allocate` can hand out, those with an unreferenced cached prefix included."""
        return len(self._free)

    def allocate(self) -> int:
        """A block for the caller alone to write; overwrites the least recently used cached prefix if it must."""
        block, _ = self._free.popitem(last=False)
        self.forget(block)
        self._n_refs[block] = 1
        return block

    def lookup(self, key: bytes) -> int | None:
        """The block published under `key`, if it is still cached. Call `acquire` before relying on it."""
        return self._index.get(key)

    def acquire(self, block: int) -> None:
        """Add a reader to a published block."""
        assert self._keys[block] is not None, "only published blocks may be shared"
        if self._n_refs[block] == 0:
            del self._free[block]
        self._n_refs[block] += 1

    def release(self, block: int) -> None:
        """Drop one reference. Release the last block of a sequence first: a prefix outlives what builds on it."""
        assert self._n_refs[block] > 0, "released more often than acquired"
        self._n_refs[block] -= 1
        if self._n_refs[block] == 0:
            self._free[block] = None
            if self._keys[block] is None:  # nothing to reuse: overwrite it before any cached prefix
                self._free.move_to_end(block, last=False)

    def publish(self, block: int, key: bytes) -> None:
        """Offer a full block for reuse; its owner must not write it again. An equal block published earlier stays."""
        assert self._n_refs[block] > 0, "only its owner may publish a block"
        assert self._keys[block] is None, "published twice"
        if key not in self._index:
            self._index[key] = block
            self._keys[block] = key

    def forget(self, block: int) -> None:
        """Take a block out of the prefix index. Its readers keep it."""
        key = self._keys[block]
        if key is not None:
            del self._index[key]
            self._keys[block] = None

    def check(self) -> None:
        """Assert every invariant; for tests."""
        assert len(self._n_refs) == len(self._keys) == self.n_blocks
        assert all(n >= 0 for n in self._n_refs)
        assert set(self._free) == {block for block, n in enumerate(self._n_refs) if n == 0}
        assert self._index == {key: block for block, key in enumerate(self._keys) if key is not None}
