"""Grammars as masks over the next token: llguidance behind core.Constraint.

Owns the library: its table of our tokens, its limits, the compiled grammars that are kept. What a grammar says is for
grammar_source and the chat formats to write, in the library's Lark dialect. Control tokens are apart from all text, so
free text in a grammar never becomes one; the ids that end an answer are allowed wherever the grammar may end. Compiling
recurses as deep as a grammar is nested, so it runs on threads whose stacks are large enough for whatever passes the
checks in front of it. Knows no chat format and no JSON Schema.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from freehold.core import Constraint, Float32Array
from freehold.errors import RequestError
from freehold.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

MAX_SOURCE_CHARS = 2_000_000
"""Of one grammar as the library gets it, with the schemas of all tools."""

MAX_COMPILED = 64
"""Grammars that stay compiled."""

MAX_LEXER_STATES = 50_000
"""Of one grammar, each up to 2 KB; the library's own limit is five times as many."""

MAX_ROW_ITEMS = 1000
"""Ways to read the text so far that are followed at once. The time for a token grows with their square, and everybody
waits for it: at the library's own limit of 2000 an ambiguous grammar takes 75 ms."""

MAX_COMPILE_SECONDS = 20.0
"""What takes longer is refused; the library cannot be stopped, so its thread goes on until its own limits end it."""

_STACK_BYTES = 64 * 2**20  # of address space; no more of it is used than a grammar is deep
_LOST = (
    "the answer's grammar can no longer be followed: it is too complex, or has come to where nothing may follow; "
    "simplify the schema, the regular expression or the Lark grammar"
)
_TRIED_TOKENS = 4  # some grammars are only found to be too complex once they are followed
_NOT_UNICODE = 0xFF  # the library's mark of control tokens, and a byte that no text has

_starting_thread = threading.Lock()
_compiling = threading.BoundedSemaphore(2)
"""At once in the process, those that were given up included: grammars made to take long must not take every core."""

_Result = TypeVar("_Result")


class Grammars:
    """Compiles grammars for one tokenizer; thread-safe.

    end_ids: every id that ends an answer. vocab_size: the model's, which may exceed the tokenizer's; ids that the
    tokenizer has no text for are never allowed.
    """

    def __init__(self, tokenizer: Tokenizer, end_ids: frozenset[int], vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._n_ids = min(tokenizer.vocab_size, vocab_size)
        self._end_ids = frozenset(id for id in end_ids if id < vocab_size)
        self._table: llguidance.LLTokenizer | None = None  # made when first needed: it takes a second
        self._compiled: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, source: str) -> Constraint:
        """A constraint for one answer. What was compiled lately is there at once; else it takes milliseconds.

        source: a Lark grammar in llguidance's dialect. Raises RequestError for one that is malformed, too large or
        allows nothing.
        """
        with self._lock:
            compiled = self._compiled.get(source)
            if compiled is not None:
                self._compiled.move_to_end(source)
        if compiled is None:
            compiled = _on_deep_stack(lambda: self._build(source))
            with self._lock:
                self._compiled[source] = compiled
                while len(self._compiled) > MAX_COMPILED:
                    self._compiled.popitem(last=False)
        return _Followed(compiled.deep_copy(), self._n_ids, self._end_ids)

    def _build(self, source: str) -> llguidance.LLMatcher:
        with self._lock:
            if self._table is None:
                self._table = _table(self._tokenizer, self._n_ids, self._end_ids)
            table = self._table
        matcher = _matcher(table, source)
        if flaw := _flaw_of(matcher, self._n_ids):
            raise RequestError(f"the grammar of this answer cannot be enforced: {flaw}")
        return matcher


class GrammarError(RequestError):
    """A grammar that compiled, but cannot be followed any further: a flaw of the grammar, found late."""


class _Followed:
    """Where one answer is in its grammar.

    The library's own end token is one beyond all ids: its place in a mask says whether the grammar may end here.
    """

    def __init__(self, matcher: llguidance.LLMatcher, n_ids: int, end_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._n_ids = n_ids
        self._end_ids = end_ids
        self._ends = np.array(sorted(end_ids), np.intp)
        self._ended = False

    def mask(self, logits: Float32Array) -> None:
        allowed = np.zeros(self._n_ids + 1, np.bool_) if self._ended else _mask(self._matcher, self._n_ids)
        may_end = (self._ended or bool(allowed[-1])) and len(self._ends) > 0
        if self._matcher.is_error() or not (may_end or allowed[:-1].any()):
            raise GrammarError(_LOST)
        kept = logits[self._ends] if may_end else None
        np.copyto(logits[: self._n_ids], -np.inf, where=~allowed[:-1])
        logits[self._n_ids :] = -np.inf
        if kept is not None:
            logits[self._ends] = kept

    def accept(self, id: int) -> Sequence[int]:
        matcher = self._matcher
        # A grammar may name an end id itself, as harmony's do; any other end id stands for the end of the grammar.
        if self._ended or (id in self._end_ids and (matcher.is_stopped() or not matcher.validate_tokens([id]))):
            self._ended = True
            return ()
        if not matcher.consume_token(id):
            raise GrammarError(_LOST)
        if matcher.is_stopped():
            return ()
        forced = matcher.compute_ff_tokens()
        if forced and not matcher.consume_tokens(forced):
            raise GrammarError(_LOST)
        return forced


def flaw_of(source: str) -> str | None:
    """Why a grammar cannot be enforced, whatever the tokenizer; None if it can. For parts, so that errors name them."""
    return _on_deep_stack(lambda: _flaw_of(_matcher(_byte_table(), source), n_ids=256))


def _flaw_of(matcher: llguidance.LLMatcher, n_ids: int) -> str | None:
    """Why the first tokens cannot be had under a grammar that compiled, or did not."""
    trial = matcher.deep_copy()
    for n_taken in range(_TRIED_TOKENS):
        next_ids = np.flatnonzero(_mask(trial, n_ids)[:-1])
        if trial.is_error():
            return _reason(trial.get_error())
        if not len(next_ids):
            return None if n_taken else "no text matches it"
        if not trial.consume_token(int(next_ids[0])):
            return _reason(trial.get_error())
        if trial.is_stopped():
            return None
    return None


def _mask(matcher: llguidance.LLMatcher, n_ids: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether each id may come next, and last whether the grammar may end."""
    bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    return np.unpackbits(bits, count=n_ids + 1, bitorder="little").view(np.bool_)


def _matcher(table: llguidance.LLTokenizer, source: str) -> llguidance.LLMatcher:
    # Imported here: most requests have no grammar.
    from llguidance import LLMatcher, LLParserLimits

    try:
        source.encode()
    except UnicodeEncodeError as error:
        raise RequestError("a grammar holds a lone surrogate; expected text") from error
    if len(source) > MAX_SOURCE_CHARS:
        raise RequestError(
            f"the grammar of this answer is {len(source)} characters long; expected at most {MAX_SOURCE_CHARS}: fewer "
            f"tools, or smaller schemas"
        )
    limits = LLParserLimits(max_lexer_states=MAX_LEXER_STATES, max_items_in_row=MAX_ROW_ITEMS, verbose_errors=False)
    return LLMatcher(table, source, log_level=0, limits=limits)


def _table(tokenizer: Tokenizer, n_ids: int, end_ids: frozenset[int]) -> llguidance.LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer, n_ids, end_ids)))


@cache
def _byte_table() -> llguidance.LLTokenizer:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


class _Vocabulary:
    """A tokenizer as the library wants it: the bytes of each token, and one more token, which is the end."""

    def __init__(self, tokenizer: Tokenizer, n_ids: int, end_ids: frozenset[int]) -> None:
        texts = [tokenizer.token_bytes(id) for id in range(n_ids)]
        self.tokens = [b"" if _NOT_UNICODE in text else text for text in texts] + [b"<end>"]
        control = {*tokenizer.special_ids.values(), *end_ids, n_ids}
        self.special_token_ids = sorted(id for id in control if id <= n_ids and self.tokens[id])
        self.eos_token_id = n_ids
        self.bos_token_id = None
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


def _on_deep_stack(work: Callable[[], _Result]) -> _Result:
    """What `work` returns or raises, run on a thread with a large stack. Raises RequestError if it takes too long."""
    future: Future[_Result] = Future()
    deadline = time.monotonic() + MAX_COMPILE_SECONDS
    if not _compiling.acquire(timeout=MAX_COMPILE_SECONDS):
        raise RequestError("other grammars have been compiling for too long; try again later")

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)
        except BaseException as error:  # how the library's panics arrive
            future.set_exception(RequestError(f"a grammar cannot be enforced: {_reason(str(error))}"))
        finally:
            _compiling.release()

    # The size is the process's, for all threads started from now on: nobody else loses by a larger one.
    with _starting_thread:
        before = threading.stack_size(_STACK_BYTES)
        try:
            threading.Thread(target=run, name="freehold-grammar", daemon=True).start()
        finally:
            threading.stack_size(before)
    try:
        return future.result(max(0.0, deadline - time.monotonic()))
    except FutureTimeout:
        raise RequestError(
            f"a grammar takes longer than {MAX_COMPILE_SECONDS:g} seconds to compile; simplify the schema, the regular "
            f"expression or the Lark grammar"
        ) from None


def _reason(error: str) -> str:
    """The gist of the library's message, which quotes the grammar and our part in it."""
    lines = error.strip().splitlines() or [""]
    gist = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    gist = re.sub(r"^(at )?\d+\(\d+\): ", "", gist.strip())
    if gist.startswith("NoExtension"):
        return "no text matches it"
    return gist.removeprefix("failed to compile JSON schema: ").removeprefix("Unsatisfiable schema: ")[:300]
