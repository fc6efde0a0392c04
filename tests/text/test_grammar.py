"""Grammars as masks: what is allowed, what is forced, how an answer ends, and what does not compile."""

from __future__ import annotations

import threading
from collections import deque
from typing import cast

import numpy as np
import pytest

from freehold.errors import RequestError
from freehold.text.grammar import MAX_COMPILED, MAX_SOURCE_CHARS, GrammarError, Grammars, flaw_of
from freehold.text.tokenizer import Tokenizer
from grammar_walks import BYTES, ENDS, GRAMMARS, allowed, at_random, text_of, unforced, walk
from scripted_model import CALL, EOS, RETURN, SPLIT, USER, VOCAB, ByteTokenizer


def test_only_what_fits_is_allowed() -> None:
    assert allowed(GRAMMARS.compile('start: "a" | "b" "c"')) == [ord("a"), ord("b")]


def test_what_must_follow_comes_without_being_asked_for() -> None:
    constraint = GRAMMARS.compile('start: "a" | "bcd" ("e" | "f")')
    assert constraint.accept(ord("b")) == list(b"cd")
    assert allowed(constraint) == list(b"ef")


def test_a_complete_grammar_allows_the_end_ids_and_nothing_else() -> None:
    constraint = GRAMMARS.compile('start: "ab"')
    assert constraint.accept(ord("a")) == [ord("b")]
    assert frozenset(allowed(constraint)) == ENDS
    assert list(constraint.accept(EOS)) == []
    assert frozenset(allowed(constraint)) == ENDS


def test_the_end_is_allowed_beside_more_where_the_grammar_may_go_on() -> None:
    constraint = GRAMMARS.compile("start: /a+/")
    assert constraint.accept(ord("a")) == []
    assert frozenset(allowed(constraint)) == ENDS | {ord("a")}


def test_a_grammar_may_name_an_end_id() -> None:
    constraint = GRAMMARS.compile(f'start: "a" <[{CALL}]>')
    assert constraint.accept(ord("a")) == [CALL]
    other = GRAMMARS.compile(f'start: /a+/ <[{CALL}]> | "a"')
    other.accept(ord("a"))
    assert frozenset(allowed(other)) == ENDS | {ord("a")}
    other.accept(RETURN)  # the end of the second way
    assert frozenset(allowed(other)) == ENDS


def test_free_text_is_every_character_and_no_control_token() -> None:
    constraint = GRAMMARS.compile("start: /(?s:.*)/")
    ids = frozenset(allowed(constraint))
    assert ids - ENDS <= {*range(256), SPLIT}
    assert {*range(128), SPLIT} <= ids  # the first bytes of characters too, whole or not
    assert 0xFF not in ids
    assert USER not in ids  # it has no text
    constraint.accept(SPLIT)
    assert allowed(constraint) == list(range(0x80, 0xC0))  # a character begun is ended


def test_ids_beyond_the_tokenizer_are_forbidden() -> None:
    grammars = Grammars(BYTES, ENDS | {VOCAB + 1, VOCAB + 99}, VOCAB + 3)
    constraint = grammars.compile("start: /a*/")
    assert allowed(constraint, VOCAB + 3) == sorted({ord("a"), VOCAB + 1, *ENDS})


def test_logits_of_what_is_allowed_stay() -> None:
    logits = np.arange(VOCAB, dtype=np.float32)
    GRAMMARS.compile('start: "a" | "b"').mask(logits)
    assert logits[ord("a")] == ord("a")
    assert np.isneginf(np.delete(logits, [ord("a"), ord("b")])).all()


def test_a_tokenizer_with_several_names_for_the_end() -> None:
    class Ended(ByteTokenizer):
        """Its end has a text like any other token's, and is not marked as special."""

        def token_bytes(self, token_id: int) -> bytes:
            return b"</s>" if token_id == USER else super().token_bytes(token_id)

    grammars = Grammars(cast(Tokenizer, Ended()), frozenset((USER,)), VOCAB)
    constraint = grammars.compile("start: /(?s:.+)/")
    assert USER not in allowed(constraint)
    constraint.accept(ord("x"))
    assert USER in allowed(constraint)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("start: /[/", "unclosed character class"),
        ("start: nowhere", "nowhere"),
        ("start: start", "no text matches it"),
        ('start: ""', "no text matches it"),
        ("start: <[999999]>", "999999"),
        ('start: "\ud800"', "surrogate"),
        (f'start: "{"a" * MAX_SOURCE_CHARS}"', "characters long"),
    ],
)
def test_what_cannot_be_a_grammar_is_refused(source: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        GRAMMARS.compile(source)
    assert len(str(refused.value)) < 500


def test_parts_are_checked_without_a_tokenizer() -> None:
    assert flaw_of('start: "a"') is None
    assert flaw_of("start: /(a/") == "unclosed group"
    assert flaw_of('start: %json {"not": {}}') == 'Unimplemented keys: ["not"]'


def test_a_dead_end_ends_the_generation_with_a_clear_error() -> None:
    constraint = GRAMMARS.compile('start: /[ab]{6}/ /[cd]/ dead\ndead: "y" dead')
    for _ in range(6):
        constraint.accept(ord("a"))
    with pytest.raises(GrammarError, match="can no longer be followed"):
        constraint.accept(ord("c"))


def test_a_dead_end_after_a_few_tokens_is_found_before_anything_is_generated() -> None:
    with pytest.raises(RequestError, match="cannot be enforced"):
        GRAMMARS.compile('start: /[ab]/ /[cd]/ dead\ndead: "y" dead')


def test_an_id_that_the_mask_forbids_is_an_error_and_stays_one() -> None:
    constraint = GRAMMARS.compile('start: "a" "b" | "ac"')
    with pytest.raises(GrammarError, match="simplify the schema"):
        constraint.accept(ord("z"))
    with pytest.raises(GrammarError, match="simplify the schema"):
        allowed(constraint)


def test_a_grammar_too_ambiguous_to_follow_ends_the_generation() -> None:
    constraint = GRAMMARS.compile('start: item+\nitem: b+\nb: "a" | "aa" | item')
    with pytest.raises(GrammarError, match="too complex"):
        deque((constraint.accept(ord("a")) for _ in range(5000)), maxlen=0)


def test_answers_to_one_grammar_do_not_disturb_each_other() -> None:
    first, second = GRAMMARS.compile('start: "ab" | "cd"'), GRAMMARS.compile('start: "ab" | "cd"')
    first.accept(ord("a"))
    assert allowed(second) == [ord("a"), ord("c")]


def test_only_so_many_grammars_are_kept() -> None:
    grammars = Grammars(BYTES, ENDS, VOCAB)
    for i in range(MAX_COMPILED + 5):
        grammars.compile(f'start: "{i}"')
    assert len(grammars._compiled) == MAX_COMPILED
    assert 'start: "0"' not in grammars._compiled


def test_many_threads_compile_at_once() -> None:
    grammars = Grammars(BYTES, ENDS, VOCAB)
    said: list[str] = []

    def work(number: int) -> None:
        source = f'start: "n" "{number % 3}" /[a-z]{{3}}/'
        said.append(text_of(walk(source, at_random(number), grammars=grammars)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(text[:2] for text in said) == sorted(f"n{number % 3}" for number in range(12))
    assert threading.stack_size() == 0  # the size for compiling is not left behind


def test_forced_tokens_are_those_that_sampling_would_give(small_harmony_tokenizer: Tokenizer) -> None:
    """With a real vocabulary: whatever is sampled token by token, the text begins with what is forced."""
    n_ids, ends = small_harmony_tokenizer.vocab_size, small_harmony_tokenizer.eos_ids
    grammars = Grammars(small_harmony_tokenizer, ends, n_ids)
    source = 'start: %json {"const": {"city": "Paris", "weather": ["sunny", 21]}} | "never" "mind"'
    n_forced = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        constraint, alone = grammars.compile(source), unforced(source, grammars)
        said: list[int] = []
        while not said or said[-1] not in ends:
            id = int(rng.choice(allowed(constraint, n_ids)))
            forced = constraint.accept(id)
            said += [id, *forced]
            if id in ends:
                break
            alone.consume_token(id)
            expected = small_harmony_tokenizer.decode(forced).encode()
            got, other = b"", alone.deep_copy()
            while len(got) < len(expected):
                bits = np.unpackbits(np.frombuffer(other.compute_bitmask(), np.uint8), bitorder="little")
                next_id = int(rng.choice(np.flatnonzero(bits)))
                got += small_harmony_tokenizer.token_bytes(next_id)
                other.consume_token(next_id)
            assert got.startswith(expected)
            alone.consume_tokens(list(forced))
            n_forced += len(forced)
    assert n_forced > 20
