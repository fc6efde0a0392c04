"""Generation: the consumer's end of one sequence, an iterator of tokens with its counts and timings.

Owns nothing but a queue to read and a way to ask for cancellation. The engine's thread keeps no reference to it, so a
generation that nobody can read any more is collected, and thereby cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty

from freehold.core import FinishReason, Token
from freehold.engine.sequence import Sequence


@dataclass(frozen=True)
class Timings:
    """Where the time of one generation went, so far. The first token ends prefill; decode covers those after it."""

    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    n_generated: int


class Generation:
    """Tokens of one prompt as they come. Iterate once; leaving the loop early, or dropping the object, cancels.

    Iterating raises EngineError if the generation or the engine failed. A cancelled generation just ends.
    """

    def __init__(self, sequence: Sequence, send: Callable[[Sequence], None]) -> None:
        self._sequence = sequence
        self._send = send

    def __iter__(self) -> Iterator[Token]:
        sink = self._sequence.sink
        try:
            while True:
                item = sink.get()
                if isinstance(item, Token):
                    yield item
                    continue
                sink.put(item)  # a second iteration ends the same way instead of waiting for ever
                if item is not None:
                    raise item
                return
        finally:
            self.cancel()

    def poll(self) -> tuple[list[Token], bool]:
        """The tokens that can be read without waiting, and whether the generation has ended.

        Raises like iterating. Tokens that came before the error are returned first, and `on_ready` is called again.
        """
        tokens: list[Token] = []
        sink = self._sequence.sink
        while True:
            try:
                item = sink.get_nowait()
            except Empty:
                return tokens, False
            if isinstance(item, Token):
                tokens.append(item)
                continue
            sink.put(item)
            if item is None:
                return tokens, True
            if not tokens:
                raise item
            if self._sequence.on_ready is not None:
                self._sequence.on_ready()
            return tokens, False

    def __del__(self) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Stop within one step, also in the middle of a prompt. Tokens already sampled can still be read."""
        sequence = self._sequence
        if sequence.finish is None and not sequence.cancelled:
            sequence.cancelled = True
            self._send(sequence)

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompt."""
        return self._sequence.n_prompt

    @property
    def n_cached(self) -> int:
        """Prompt tokens whose KV was found in the prefix cache; final with the first token."""
        return self._sequence.n_cached

    @property
    def n_generated(self) -> int:
        """Tokens sampled so far, read or not."""
        return len(self._sequence.generated)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended, or None while it runs."""
        return self._sequence.finish

    @property
    def timings(self) -> Timings:
        """Seconds spent queueing, in prefill and in decode. A stage not reached yet counts 0."""
        sequence = self._sequence
        queue = sequence.admitted_at - sequence.submitted_at
        prefill = sequence.first_token_at - sequence.admitted_at
        decode = sequence.last_token_at - sequence.first_token_at
        return Timings(max(queue, 0.0), max(prefill, 0.0), max(decode, 0.0), self.n_generated)
