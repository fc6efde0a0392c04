"""From generated tokens to events: the stream a caller reads, and the reply it adds up to.

Owns stop strings, end-of-turn ids, log-probabilities with true bytes, and cancelling when a caller stops reading. What
the tokens say is the answer parser's matter. A reply is nothing but a stream read to its end, so the two cannot differ.
Knows nothing of files or terminals.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from freehold.core import FinishReason, Token
from freehold.engine import Generation
from freehold.text.answer import AnswerParser, CallStart, Event, TokenLogprob
from freehold.text.chat import ToolCall
from freehold.text.stream import StopStrings
from freehold.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Reply:
    """A finished answer: `text` to be shown, `reasoning` apart from it (None without any), `tool_calls` in order.

    `finish_reason` is "stop" (end of turn or a stop string), "tool_calls" (end of turn, and calls to answer), "length"
    (max_tokens or the context is full; the last call may then be cut), "cancelled" or "error". A call's arguments are
    what the model wrote, which need not be JSON.
    `n_generated` counts every token the model spent, an end-of-turn token included; `n_reasoning` of them were spent on
    reasoning: those between a reasoning message's header and its end, control tokens not counted. `n_cached` of the
    `n_prompt` prompt tokens were found in the prefix cache. `ids` are the tokens as sampled, for `Message.ids`.
    `logprobs` are those of visible text, as Event says. `n_recoveries` malformed spots of the output were repaired.
    Times are in seconds; `prefill_seconds` runs from the first step to the first token, `decode_seconds` from there to
    the last.
    """

    text: str
    finish_reason: FinishReason
    n_prompt: int
    n_cached: int
    n_generated: int
    prefill_seconds: float
    decode_seconds: float
    logprobs: tuple[TokenLogprob, ...] | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    ids: tuple[int, ...] = ()
    n_reasoning: int = 0
    n_recoveries: int = 0


class Stream(Iterator[Event]):
    """The events of one answer as they are generated, as soon as each is certain, then one "finish".

    Iterate it, or call `reply()` for the whole. One thread iterates; `close()` may come from any. Closing early,
    leaving the `with` block, or dropping the last reference cancels the generation, which ends within one step; what
    was received and held back (a possible stop string, half a character) is still delivered to whoever reads on.
    Iteration raises EngineError if the engine dies. Who must not wait calls `poll` instead, when told to.

    `stops` apply to visible text. `silent_ids` end an answer and mean nothing more; the parser sees every other id.
    """

    def __init__(
        self,
        generation: Generation,
        tokenizer: Tokenizer,
        parser: AnswerParser,
        stops: StopStrings,
        silent_ids: frozenset[int],
    ) -> None:
        self._generation = generation
        self._tokens = iter(generation)
        self._tokenizer = tokenizer
        self._parser = parser
        self._stops = stops
        self._silent_ids = silent_ids
        self._ready: deque[Event] = deque()
        self._said = _Said()
        self._ids: list[int] = []
        self._wants_logprobs = False
        self._logprobs: list[TokenLogprob] = []  # of visible tokens whose text has not all come out yet
        self._call_key = secrets.token_hex(10)
        self._finish: FinishReason | None = None
        self._closed = False
        self._ended = False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Event:
        while not self._ready and self._finish is None:
            token = None if self._closed else next(self._tokens, None)
            if token is None:
                self._end("cancelled")
            else:
                self._take(token)
        if self._ready:
            event = self._ready.popleft()
            self._said.add(event)
            return event
        if self._ended:
            raise StopIteration
        self._ended = True
        return self._finish_event()

    def poll(self) -> list[Event]:
        """The events that are certain by now, without waiting for more; the last of all is "finish"."""
        if self._finish is None:
            tokens, ended = ([], True) if self._closed else self._generation.poll()
            for token in tokens:
                if self._finish is None:
                    self._take(token)
            if ended and self._finish is None:
                self._end("cancelled")
        events = [*self._ready]
        self._ready.clear()
        for event in events:
            self._said.add(event)
        if self._finish is not None and not self._ended:
            self._ended = True
            events.append(self._finish_event())
        return events

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is being generated; events may still have to be read. Any thread may ask."""
        return self._generation.finish_reason is not None

    @property
    def n_reasoning(self) -> int:
        """Tokens spent on reasoning so far, counted as Reply says."""
        return self._parser.n_reasoning

    def close(self) -> None:
        """Stop generating. Text already received stays in `reply()`. Closing twice, or after the end, does nothing."""
        self._closed = True
        self._generation.cancel()

    def call_id(self, index: int) -> str:
        """The id of the answer's call number `index`, which no other call has."""
        return f"call_{self._call_key}{index:04x}"

    def reply(self) -> Reply:
        """Read the rest and return the whole answer; after `close()`, what had arrived until then."""
        for _ in self:
            pass
        generation, said = self._generation, self._said
        return Reply(
            text="".join(said.text),
            finish_reason=self._finish_reason(),
            n_prompt=generation.n_prompt,
            n_cached=generation.n_cached,
            n_generated=len(self._ids),
            prefill_seconds=generation.timings.prefill_seconds,
            decode_seconds=generation.timings.decode_seconds,
            logprobs=tuple(said.logprobs) if self._wants_logprobs else None,
            reasoning="".join(said.reasoning) or None,
            tool_calls=tuple(
                ToolCall(call.name, "".join(arguments), self.call_id(i))
                for i, (call, arguments) in enumerate(said.calls)
            ),
            ids=tuple(self._ids),
            n_reasoning=self._parser.n_reasoning,
            n_recoveries=self._parser.n_recoveries,
        )

    def _finish_event(self) -> Event:
        generation = self._generation
        return Event(
            kind="finish",
            finish_reason=self._finish_reason(),
            n_prompt=generation.n_prompt,
            n_cached=generation.n_cached,
            n_generated=len(self._ids),
            n_reasoning=self._parser.n_reasoning,
            stop=self._stops.found,
        )

    def _finish_reason(self) -> FinishReason:
        assert self._finish is not None
        return "tool_calls" if self._finish == "stop" and self._said.calls else self._finish

    def _take(self, token: Token) -> None:
        """Account for one token; the events it makes certain become ready."""
        self._ids.append(token.id)
        self._wants_logprobs |= token.logprob is not None
        if not (token.finish == "stop" and token.id in self._silent_ids):
            events = self._parser.push(token.id)
            if token.logprob is not None and self._parser.in_text:
                self._logprobs.append(self._with_bytes(token, token.logprob))
            self._deliver(events)
        if self._finish is not None:  # a stop string
            self._generation.cancel()
        elif token.finish is not None:
            self._end(token.finish)

    def _end(self, finish: FinishReason) -> None:
        """End the answer: what was held back can no longer become a stop string or a longer character."""
        self._deliver(self._parser.finish())
        if self._finish is None:
            self._deliver_text(self._stops.flush())
            self._finish = finish

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            if self._finish is not None:
                return  # beyond the stop string
            if event.kind == "text":
                text, hit = self._stops.push(event.text)
                self._deliver_text(text)
                self._finish = "stop" if hit else None
            else:
                self._deliver_text(self._stops.flush())  # a stop string lies within one run of text
                self._ready.append(event)

    def _deliver_text(self, text: str) -> None:
        if text:
            self._ready.append(Event(kind="text", text=text, logprobs=tuple(self._logprobs)))
            self._logprobs.clear()

    def _with_bytes(self, token: Token, logprob: float) -> TokenLogprob:
        token_bytes = self._tokenizer.token_bytes
        return TokenLogprob(
            token.id, token_bytes(token.id), logprob, tuple((i, token_bytes(i), p) for i, p in token.top)
        )


class _Said:
    """What the events read so far add up to."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.reasoning: list[str] = []
        self.calls: list[tuple[CallStart, list[str]]] = []

    def add(self, event: Event) -> None:
        if event.kind == "text":
            self.text.append(event.text)
            self.logprobs += event.logprobs
        elif event.kind == "reasoning":
            self.reasoning.append(event.text)
        elif event.kind == "tool_call":
            if event.call is not None:
                self.calls.append((event.call, []))
            self.calls[event.index][1].append(event.text)
