"""The one internal form of an answer: Events, and the AnswerParser that makes them of token ids.

Owns what every protocol and the terminal show of an answer. Knows no tokenizer, no chat format and no protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from freehold.core import FinishReason


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
class CallStart:
    """The head of a tool call. `name` is as offered ("get_weather", "python", "browser.search"), without the namespace
    that a format may put before it; the other fields are as the model wrote them, None where it wrote none.
    """

    name: str
    channel: str | None = None
    content_type: str | None = None
    recipient: str | None = None


@dataclass(frozen=True)
class Event:
    """A piece of an answer: text of it, of its reasoning, of a call's arguments, or the "finish" that ends it.

    Each call's first event carries `call`; the later ones of the same `index` only more `text`. The fields from
    `finish_reason` on are set on "finish", in tokens; `n_reasoning` of the `n_generated` were spent on reasoning.
    `stop` on "finish" is the stop string that was found. `logprobs` are those of the tokens whose text ends in this
    event, where they were asked for: visible text only, without control tokens and what a stop string cut off.
    """

    kind: Literal["text", "reasoning", "tool_call", "finish"]
    text: str = ""
    call: CallStart | None = None
    index: int = 0
    finish_reason: FinishReason | None = None
    n_prompt: int = 0
    n_cached: int = 0
    n_generated: int = 0
    n_reasoning: int = 0
    stop: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class AnswerParser(Protocol):
    """Ids of one answer to events, the same whether read one by one or at once. No id sequence makes it raise."""

    def push(self, id: int) -> Sequence[Event]:
        """The "text", "reasoning" and "tool_call" events that token `id` makes certain, perhaps none."""
        ...

    def finish(self) -> Sequence[Event]:
        """The answer ended here, wherever that is: what was held back."""
        ...

    @property
    def n_recoveries(self) -> int:
        """Malformed spots that were repaired or dropped."""
        ...

    @property
    def in_text(self) -> bool:
        """Whether the last pushed id was visible text, or part of a character of it."""
        ...

    @property
    def n_reasoning(self) -> int:
        """Tokens of reasoning so far: those between a reasoning message's header and its end, control tokens out."""
        ...
