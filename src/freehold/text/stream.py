"""Stop strings over text that arrives in pieces.

Owns the search and what must be held back for it. The result never depends on how the text was cut into pieces.
"""

from __future__ import annotations

from collections.abc import Sequence

from freehold.errors import RequestError

MAX_STOPS = 64
MAX_STOP_CHARS = 1024


class StopStrings:
    """Passes text through until any of `stops` has appeared in it.

    The first to be completed wins, because a generation ends there; of several completed at once, the longest.
    Text is held back only while it may still become a stop string. Raises RequestError for empty, too many or too
    long stop strings. `found` is the one that was found.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if len(stops) > MAX_STOPS:
            raise RequestError(f"{len(stops)} stop strings; expected at most {MAX_STOPS}")
        for stop in stops:
            if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_CHARS:
                raise RequestError(f"stop holds {str(stop)[:40]!r}; expected text of 1 to {MAX_STOP_CHARS} characters")
        self._stops = tuple(stops)
        self._held = ""
        self._hit = False
        self.found: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is now certain, without the stop string, and whether one was found; from then on ("", True)."""
        if self._hit:
            return "", True
        text = self._held + text
        match = self._first_match(text)
        self._hit = match is not None
        keep = self._possible_start(text) if match is None else match[0]
        self.found = None if match is None else match[1]
        self._held = "" if self._hit else text[keep:]
        return text[:keep], self._hit

    def flush(self) -> str:
        """The text ends here: what was held back after all."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        """Where the stop string that ends first begins, and which it is."""
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(ends)[1:] if ends else None

    def _possible_start(self, text: str) -> int:
        """The first index from which the rest of `text` is the beginning of a stop string, else its length."""
        first = len(text)
        for stop in self._stops:
            at = text.find(stop[0], max(0, len(text) - len(stop) + 1), first)
            while at >= 0 and not stop.startswith(text[at:]):
                at = text.find(stop[0], at + 1, first)
            if at >= 0:
                first = at
        return first
