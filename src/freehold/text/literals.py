"""Finding the texts of control tokens inside other text, and taking them apart where they are content.

Owns that search, leftmost and longest first, as fast for a thousand literals as for two. Knows no templates and no BPE.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping


class Literals:
    """Texts that stand for one token each. `ids` maps a text (not empty) to its token id."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = dict(ids)
        self._lengths = sorted({len(text) for text in ids}, reverse=True)
        self._folded = {text.casefold() for text in ids}
        self._firsts = {text[0] for text in self._folded}
        # Two characters tell a possible literal from ordinary text well enough; the set look-up decides.
        starts = sorted({text[:2] for text in ids}, key=len, reverse=True)
        self._start = re.compile("|".join(map(re.escape, starts)) or r"(?!)", re.IGNORECASE)

    def split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Cut `text` at its literals: (literal, id) for each, (text, None) for what lies between, never empty."""
        done = at = 0
        while match := self._start.search(text, at):
            start = match.start()
            length = next((n for n in self._lengths if text[start : start + n] in self.ids), None)
            at = start + (length or 1)
            if length:
                if start > done:
                    yield text[done:start], None
                yield text[start:at], self.ids[text[start:at]]
                done = at
        if done < len(text):
            yield text[done:], None

    def break_up(self, text: str, mark: str, keep: Collection[str] = ()) -> str:
        """`text` with `mark` inside every literal but those in `keep`, in any letter case: no literal is left whole.

        A literal's beginning at the end of the text, blanks aside, is marked too: what a template puts behind it could
        complete it.
        """
        pieces: list[str] = []
        done = at = 0
        while match := self._start.search(text, at):
            at = match.start() + 1
            found = self._folded_at(text, match.start())
            if found and found not in keep:
                pieces += text[done:at], mark
                done = at
        tail = self._unfinished(text.rstrip())
        if tail is not None:
            pieces += text[done:tail], mark
            done = tail
        return "".join(pieces) + text[done:] if pieces else text

    def _folded_at(self, text: str, start: int) -> str | None:
        spans = (text[start : start + n] for n in self._lengths)
        return next((span for span in spans if span.casefold() in self._folded), None)

    def _unfinished(self, text: str) -> int | None:
        """The length of `text` if it ends inside what may become a literal."""
        longest = self._lengths[0] if self._lengths else 0
        for start in range(max(0, len(text) - longest + 1), len(text)):
            tail = text[start:].casefold()
            if tail[0] in self._firsts and any(whole.startswith(tail) and whole != tail for whole in self._folded):
                return len(text)
        return None
