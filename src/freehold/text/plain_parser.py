"""The parser of answers that have no inner structure: every token is text of the answer.

Owns nothing but the joining of characters whose bytes are spread over tokens. It serves raw generation, and the chat
formats whose answers are read as they stand.
"""

from __future__ import annotations

from freehold.text.answer import Event
from freehold.text.tokenizer import IncrementalDecoder, Tokenizer


class PlainParser:
    """An AnswerParser that gives text events only. At most 3 bytes are held back."""

    n_recoveries = 0
    n_reasoning = 0

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.in_text = False
        self._token_bytes = tokenizer.token_bytes
        self._decoder = IncrementalDecoder(tokenizer)

    def push(self, id: int) -> list[Event]:
        self.in_text = bool(self._token_bytes(id))  # control tokens with a text are shown too
        return _text(self._decoder.push(id))

    def finish(self) -> list[Event]:
        return _text(self._decoder.flush())


def _text(text: str) -> list[Event]:
    return [Event(kind="text", text=text)] if text else []
