"""An assistant's turn as it was sampled, put back into a rendered template in place of its text.

A model need not cut its words as the tokenizer does, and a prompt that cuts them otherwise finds nothing of the turn in
the prefix cache. Owns where in the rendered text a turn lies, and whether its ids may stand there: only where they
decode to the very text that they replace. Knows no templates; never raises on any ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from freehold.text.chat import Message
from freehold.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Span:
    """text[start:stop] of a rendering, as `ids`."""

    start: int
    stop: int
    ids: Sequence[int]


@dataclass(frozen=True)
class SampledTurn:
    """What was sampled, without the ids that ended the turn: those are for the template to write."""

    ids: Sequence[int]
    text: str

    @classmethod
    def of(cls, message: Message, tokenizer: Tokenizer) -> SampledTurn | None:
        """The turn of a message that has one and says something. A control token in its middle is no text, and half a
        character at its edge could grow whole beside another: such turns are rendered from their text.
        """
        ids = message.ids or ()
        if not message.content.strip() or not all(0 <= id < tokenizer.vocab_size for id in ids):
            return None
        control = {id for text, id in tokenizer.special_ids.items() if text not in tokenizer.tags}
        n_kept = len(ids)
        while n_kept and ids[n_kept - 1] in control:
            n_kept -= 1
        kept = ids[:n_kept]
        text = tokenizer.decode(kept)
        if not text or not control.isdisjoint(kept) or "\ufffd" in (text[0], text[-1]):
            return None
        return cls(kept, text)

    def placed(self, text: str, start: int, stop: int, mark: str) -> Span | None:
        """The turn in a rendering whose text[start:stop] is its content, blanks at the edges aside and `mark` in it;
        None if the rendering does not hold all of what was sampled there.
        """
        content = text[start:stop].replace(mark, "")
        at = self.text.rfind(content)
        before, after = self.text[:at], self.text[at + len(content) :]
        if at < 0 or not text.endswith(before, 0, start) or not text.startswith(after, stop):
            return None
        return Span(start - len(before), stop + len(after), self.ids)


def edged(content: str, edge: str) -> str:
    """`content` between two `edge` characters; blanks stay outside, where a template can still trim them."""
    core = content.strip()
    at = content.index(core)
    return f"{content[:at]}{edge}{core}{edge}{content[at + len(core) :]}"


def located(text: str, edged_text: str, turns: Mapping[str, SampledTurn], mark: str) -> list[Span]:
    """Where the turns lie in `text`, in order, not overlapping. `edged_text` is the same rendering with the content of
    each turn between two of the characters that `turns` has it under.

    A turn whose edges did not both come through, once each, is left out: the template changed it. All are, if the edges
    themselves changed what the template wrote.
    """
    pieces = re.split(f"([{re.escape(''.join(turns))}])", edged_text)
    if "".join(pieces[::2]) != text:
        return []
    places: dict[str, list[int]] = {edge: [] for edge in turns}
    at = 0
    for piece, edge in zip(pieces[::2], pieces[1::2], strict=False):
        at += len(piece)
        places[edge].append(at)
    found = [turns[edge].placed(text, place[0], place[1], mark) for edge, place in places.items() if len(place) == 2]
    spans: list[Span] = []
    for span in sorted((span for span in found if span is not None), key=lambda span: span.start):
        if not spans or span.start >= spans[-1].stop:
            spans.append(span)
    return spans
