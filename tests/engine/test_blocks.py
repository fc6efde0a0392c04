"""The block pool keeps its invariants under any order of operations, and its keys separate what must be separate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from freehold.core import KV_BLOCK
from freehold.engine.blocks import BlockPool, block_key, root_key

N_BLOCKS = 6


class PoolMachine(RuleBasedStateMachine):
    """Owners write blocks they allocated; readers share published ones. `content` is what each block holds."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(N_BLOCKS)
        self.held: list[int] = []  # one entry per reference
        self.private: set[int] = set()  # allocated and not published: its owner may write it
        self.content: dict[int, bytes] = {}

    @precondition(lambda self: self.pool.n_free)
    @rule()
    def allocate(self) -> None:
        block = self.pool.allocate()
        assert block not in self.held, "handed out a block in use"
        self.held.append(block)
        self.private.add(block)
        self.content.pop(block, None)

    @precondition(lambda self: self.private)
    @rule(data=st.data(), key=st.integers(0, 7))
    def publish(self, data: st.DataObject, key: int) -> None:
        block = data.draw(st.sampled_from(sorted(self.private)))
        name = bytes([key])
        taken = self.pool.lookup(name)
        self.pool.publish(block, name)
        self.private.discard(block)
        if taken is None:
            self.content[block] = name
            assert self.pool.lookup(name) == block
        else:
            assert self.pool.lookup(name) == taken

    @rule(key=st.integers(0, 7))
    def share(self, key: int) -> None:
        block = self.pool.lookup(bytes([key]))
        if block is not None:
            assert self.content[block] == bytes([key])
            assert block not in self.private
            self.pool.acquire(block)
            self.held.append(block)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.held)))
        self.held.remove(block)
        self.private.discard(block)
        self.pool.release(block)

    @rule(block=st.integers(0, N_BLOCKS - 1))
    def forget(self, block: int) -> None:
        name = self.content.pop(block, None)
        self.pool.forget(block)
        assert name is None or self.pool.lookup(name) is None

    @invariant()
    def consistent(self) -> None:
        self.pool.check()
        assert self.pool.n_free == N_BLOCKS - len(set(self.held))


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_empty_blocks_go_first_then_the_least_recently_released() -> None:
    pool = BlockPool(4)
    a, b, c = (pool.allocate() for _ in range(3))
    for block, name in ((a, b"a"), (b, b"b")):
        pool.publish(block, name)
    for block in (b, a, c):
        pool.release(block)
    order = [pool.allocate() for _ in range(4)]
    assert order[0] == c
    assert order[2:] == [b, a]
    assert pool.lookup(b"a") is None


def test_a_use_makes_a_cached_prefix_recent() -> None:
    pool = BlockPool(2)
    a, b = pool.allocate(), pool.allocate()
    pool.publish(a, b"a")
    pool.publish(b, b"b")
    pool.release(a)
    pool.release(b)
    pool.acquire(a)
    pool.release(a)
    assert pool.allocate() == b


def test_misuse_is_asserted() -> None:
    pool = BlockPool(1)
    block = pool.allocate()
    with pytest.raises(AssertionError, match="only published"):
        pool.acquire(block)
    pool.release(block)
    with pytest.raises(AssertionError, match="more often"):
        pool.release(block)


def test_keys_depend_on_namespace_and_on_everything_before() -> None:
    one = np.arange(KV_BLOCK, dtype=np.int32).tobytes()
    two = np.arange(1, KV_BLOCK + 1, dtype=np.int32).tobytes()
    roots = [root_key(name) for name in ("", "a", "b", "\ud800")]
    keys = [*roots, *(block_key(root, block) for root in roots for block in (one, two))]
    keys.append(block_key(block_key(roots[0], one), two))
    keys.append(block_key(block_key(roots[0], two), one))
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {32}
    assert block_key(roots[0], one) == block_key(root_key(""), one)
