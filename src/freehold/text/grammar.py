"""Stub."""

from __future__ import annotations

from freehold.core import Constraint
from freehold.text.tokenizer import Tokenizer


class Grammars:
    """Stub."""

    def __init__(self, tokenizer: Tokenizer, end_ids: frozenset[int], vocab_size: int) -> None: ...

    def compile(self, source: str) -> Constraint:
        raise NotImplementedError
