"""Walks through a grammar: what a model may say under a mask, token by token, chosen at random or by a preference."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from llguidance import LLMatcher

from freehold.core import Constraint
from freehold.text.grammar import Grammars
from freehold.text.tokenizer import Tokenizer
from scripted_model import CALL, EOS, RETURN, VOCAB, HarmonyByteTokenizer

BYTES = cast(Tokenizer, HarmonyByteTokenizer())
ENDS = frozenset((EOS, RETURN, CALL))
GRAMMARS = Grammars(BYTES, ENDS, VOCAB)

Choice = Callable[[list[int]], int]
"""From the ids that are allowed to the one that is said."""

CLOSERS = tuple(b'}]"')
CONTROL = frozenset(HarmonyByteTokenizer.special_ids.values())


def allowed(constraint: Constraint, vocab_size: int = VOCAB) -> list[int]:
    """The ids that may come next."""
    logits = np.zeros(vocab_size, np.float32)
    constraint.mask(logits)
    assert set(np.unique(logits)) <= {0.0, -np.inf}
    return np.flatnonzero(logits == 0).tolist()


def at_random(seed: int, haste: float = 0.3) -> Choice:
    """Any allowed id, but now and then, and ever more often, one that comes closer to the end."""
    source = random.Random(seed)
    n_chosen = 0

    def choose(ids: list[int]) -> int:
        nonlocal n_chosen
        n_chosen += 1
        ending = [id for id in ids if id in CONTROL] or [id for id in ids if id in CLOSERS]
        return source.choice(ending if ending and source.random() < haste + n_chosen / 400 else ids)

    return choose


def preferring(*texts: str) -> Choice:
    """The first of these characters that is allowed, else whatever comes closer to the end, else the lowest id."""
    wanted = (*map(ord, texts), *CLOSERS)

    def choose(ids: list[int]) -> int:
        return next((id for id in wanted if id in ids), ids[0])

    return choose


def unforced(source: str, grammars: Grammars = GRAMMARS) -> LLMatcher:
    """The library's own state at the beginning of a grammar, which takes every token one by one."""
    grammars.compile(source)
    return grammars._compiled[source].deep_copy()


def follows(source: str | None, ids: Sequence[int], grammars: Grammars = GRAMMARS) -> bool:
    """Whether a model may say exactly this, and perhaps more."""
    assert source is not None
    return unforced(source, grammars).consume_tokens(list(ids))


def walk(
    source: str, choose: Choice, *, grammars: Grammars = GRAMMARS, ends: frozenset[int] = ENDS, limit: int = 4000
) -> list[int]:
    """What is said until an end id, that one included. Fails if none comes, or if a forced id was not allowed."""
    constraint, alone = grammars.compile(source), unforced(source, grammars)
    said: list[int] = []
    while len(said) < limit:
        id = choose(allowed(constraint))
        forced = constraint.accept(id)
        said += [id, *forced]
        if said[-1] in ends:
            return said
        assert alone.consume_tokens([id, *forced])
    raise AssertionError(f"no end after {limit} tokens: {text_of(said[-80:])!r}")


def text_of(ids: Sequence[int], tokenizer: Tokenizer = BYTES) -> str:
    """The text of a walk without the id that ended it."""
    return tokenizer.decode(ids[:-1] if ids and ids[-1] in ENDS else ids)
