"""What a hostile chat template may spend: time, memory, and the size of any one value.

Owns the counting. The size that counts is the tree a value unfolds to, so that a list holding itself a thousand times
over is known for what printing, comparing or hashing it would cost. Knows of Jinja only where the
budget of a rendering is kept: in its context, under a name that no template can write.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from jinja2.runtime import Context

_Value = TypeVar("_Value")
_Tree = (list, tuple, dict)

BYTES_PER_CHAR = 64
"""Memory a render may allocate in all, per character it may produce: chats copy each text a handful of times."""

MAX_INT_BITS = 4096

MAX_DEPTH = 200
"""Of nested containers: hashing and freeing them recurse on the C stack, some without a check of their own."""

_MEASURED_BYTES = 256
"""What remembering one container's size costs, its own memory apart."""

BUDGET = "the budget"


class OverBudget(Exception):
    """A template spent more than it may. The message says what and how much."""


class Budget:
    """One rendering's allowance: `max_seconds` of wall-clock from now, values and output of `max_chars`."""

    def __init__(self, max_seconds: float, max_chars: int) -> None:
        self.max_chars = max_chars
        self._max_seconds = max_seconds
        self._deadline = time.monotonic() + max_seconds
        self._bytes_left = max_chars * BYTES_PER_CHAR
        # Containers cannot change inside the sandbox, so each is measured once; holding it keeps its id its own.
        self._measured: dict[int, tuple[object, int, int]] = {}  # id -> (itself, size, depth)

    def tick(self) -> None:
        """Called at every step that a template can repeat."""
        if time.monotonic() > self._deadline:
            raise OverBudget(f"it ran for more than {self._max_seconds:g} seconds")

    def charge(self, n_bytes: int) -> None:
        """Account for memory a template made us allocate, given back or not."""
        self._bytes_left -= n_bytes
        if self._bytes_left < 0:
            raise OverBudget(f"it made more than {self.max_chars * BYTES_PER_CHAR >> 20} MiB of intermediate values")

    def check(self, size: int) -> None:
        """Refuse a value of `size` characters or items before it is made."""
        if size > self.max_chars:
            raise OverBudget(f"it makes a value of more than {self.max_chars} characters")

    def admit(self, value: _Value) -> _Value:
        """Account for a value a template made, and return it."""
        if isinstance(value, str):
            self.check(len(value))
            self.charge(sys.getsizeof(value))
        elif isinstance(value, int):
            self.check_bits(value.bit_length())
        elif isinstance(value, _Tree):
            self.check(self.size(value))
            self.charge(sys.getsizeof(value) + _MEASURED_BYTES)
        return value

    def check_bits(self, n_bits: int) -> None:
        """Refuse an integer of `n_bits` before it is made."""
        if n_bits > MAX_INT_BITS:
            raise OverBudget(f"it makes a number of more than {MAX_INT_BITS} bits")

    def size(self, value: object) -> int:
        """Characters and items in the tree of `value`: about the length of its text."""
        return self._measure(value)[0]

    def _measure(self, value: object) -> tuple[int, int]:
        """The tree's size and depth."""
        if isinstance(value, str):
            return len(value), 0
        if not isinstance(value, _Tree):
            return 1, 0
        known = self._measured.get(id(value))
        if known is not None:
            return known[1:]
        self.tick()
        size, depth = 2, 0
        for item in value if not isinstance(value, dict) else [part for pair in value.items() for part in pair]:
            item_size, item_depth = self._measure(item)
            size += 2 + item_size
            depth = max(depth, item_depth + 1)
            self.check(size)
        if depth > MAX_DEPTH:
            raise OverBudget(f"it nests values more than {MAX_DEPTH} deep")
        self._measured[id(value)] = (value, size, depth)
        return size, depth


def budget_of(context: Context) -> Budget:
    """The budget of the rendering that `context` belongs to."""
    budget = context.parent[BUDGET]
    assert isinstance(budget, Budget)
    return budget
