"""From generated tokens to text: the stream a caller reads, and the reply it adds up to.

Owns stop strings, end-of-turn ids, log-probabilities with true bytes, and cancelling when a caller stops reading.
A reply is nothing but a stream read to its end, so the two cannot differ. Knows nothing of files or terminals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from freehold.core import FinishReason, Token
from freehold.engine import Generation
from freehold.text.chat import Event
from freehold.text.stream import StopStrings
from freehold.text.tokenizer import IncrementalDecoder, Tokenizer


@dataclass(frozen=True)
class TokenLogprob:
    """One generated token's bytes and log-probability (nats), with the likeliest alternatives, best first.

    `raw` is exact even where a token holds part of a character; `top` holds (id, bytes, log-probability).
    """

    id: int
    raw: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True)
class Reply:
    """A finished answer. `n_generated` counts every token the model spent on it, an end-of-turn token included.

    `finish_reason` is "stop" (end of turn or a stop string), "length" (max_tokens or the context is full), "cancelled"
    or "error". `n_cached` of the `n_prompt` prompt tokens were found in the prefix cache. Times are in seconds;
    `prefill_seconds` runs from the first step to the first token, `decode_seconds` from there to the last.
    """

    text: str
    finish_reason: FinishReason
    n_prompt: int
    n_cached: int
    n_generated: int
    prefill_seconds: float
    decode_seconds: float
    logprobs: tuple[TokenLogprob, ...] | None = None


class Stream(Iterator[Event]):
    """The events of one answer as they are generated: "text" as it becomes certain, then one "finish".

    Iterate it, or call `reply()` for the whole. One thread iterates; `close()` may come from any. Closing early,
    leaving the `with` block, or dropping the last reference cancels the generation, which ends within one step; what
    was received and held back (a possible stop string, half a character) is still delivered to whoever reads on.
    Iteration raises EngineError if the engine dies.
    """

    def __init__(
        self, generation: Generation, tokenizer: Tokenizer, stops: StopStrings, stop_ids: frozenset[int]
    ) -> None:
        self._generation = generation
        self._tokens = iter(generation)
        self._tokenizer = tokenizer
        self._decoder = IncrementalDecoder(tokenizer)
        self._stops = stops
        self._stop_ids = stop_ids
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._n_generated = 0
        self._finish: FinishReason | None = None
        self._closed = False
        self._ended = False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Event:
        while self._finish is None:
            token = None if self._closed else next(self._tokens, None)
            text = self._flush("cancelled") if token is None else self._take(token)
            if text:
                self._pieces.append(text)
                return Event(kind="text", text=text)
        if self._ended:
            raise StopIteration
        self._ended = True
        return self._finish_event(self._finish)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop generating. Text already received stays in `reply()`. Closing twice, or after the end, does nothing."""
        self._closed = True
        self._generation.cancel()

    def reply(self) -> Reply:
        """Read the rest and return the whole answer; after `close()`, what had arrived until then."""
        for _ in self:
            pass
        assert self._finish is not None
        generation = self._generation
        return Reply(
            text="".join(self._pieces),
            finish_reason=self._finish,
            n_prompt=generation.n_prompt,
            n_cached=generation.n_cached,
            n_generated=self._n_generated,
            prefill_seconds=generation.timings.prefill_seconds,
            decode_seconds=generation.timings.decode_seconds,
            logprobs=tuple(self._logprobs) if self._logprobs else None,
        )

    def _finish_event(self, finish: FinishReason) -> Event:
        generation = self._generation
        return Event(
            kind="finish",
            finish_reason=finish,
            n_prompt=generation.n_prompt,
            n_cached=generation.n_cached,
            n_generated=self._n_generated,
        )

    def _take(self, token: Token) -> str:
        """Account for one token and return the text it makes certain."""
        self._n_generated += 1
        if token.logprob is not None:
            self._logprobs.append(self._with_bytes(token, token.logprob))
        ended = token.id in self._stop_ids and token.finish == "stop"
        text, hit = ("", False) if ended else self._stops.push(self._decoder.push(token.id))
        if hit:
            self._finish = "stop"
            self._generation.cancel()
            return text
        return text + self._flush(token.finish) if token.finish else text

    def _flush(self, finish: FinishReason) -> str:
        """End the answer: the held-back text can no longer become a stop string or a longer character."""
        self._finish = finish
        text, hit = self._stops.push(self._decoder.flush())
        if hit:
            self._finish = "stop"
            return text
        return text + self._stops.flush()

    def _with_bytes(self, token: Token, logprob: float) -> TokenLogprob:
        token_bytes = self._tokenizer.token_bytes
        return TokenLogprob(
            token.id, token_bytes(token.id), logprob, tuple((i, token_bytes(i), p) for i, p in token.top)
        )
