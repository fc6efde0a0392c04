"""An assistant's turn as it was sampled, cut into its messages so that it can go back into a prompt unchanged.

Rendering a turn again from its parts may place them otherwise than the model did, which changes what the model reads of
itself and makes the cached prefix useless. Owns the cutting, and the decision that a turn is well-formed enough for it;
one that is not is rendered from what the parser made of it. Never raises on any ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from freehold.text.harmony_builtins import BUILTIN_RECIPIENTS
from freehold.text.harmony_tokens import HarmonyTokens
from freehold.text.tokenizer import Tokenizer

_HEADER = re.compile(
    r"(?: to=(?P<role_to>[^\s<]+))?"
    r"(?:<\|channel\|>(?P<channel>analysis|commentary|final)(?: to=(?P<channel_to>[^\s<]+))?)?"
    r"(?: ?<\|constrain\|>\w+| \w+)?"
)
"""What may stand between the role and the body; a recipient in either of two places, the content type marked or not."""


@dataclass(frozen=True)
class Rendered:
    """One message of a prompt, from its start token to its end token, and what of its header decides over it."""

    ids: list[int]
    channel: str | None = None
    recipient: str | None = None
    by_assistant: bool = True

    @property
    def is_reasoning(self) -> bool:
        """On the analysis channel, which built-in tools share. A function's call is none, wherever the model put it."""
        calls_function = self.by_assistant and self.recipient is not None and self.recipient not in BUILTIN_RECIPIENTS
        return self.channel == "analysis" and not calls_function


class Replay:
    """Cuts sampled turns; thread-safe."""

    def __init__(self, tokenizer: Tokenizer, tokens: HarmonyTokens) -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._role = tokenizer.encode("assistant")
        self._control = frozenset(tokenizer.special_ids.values())

    def split(self, ids: Sequence[int]) -> list[Rendered] | None:
        """The messages of a turn sampled after `<|start|>assistant`, all of them closed; None if it is not well-formed.

        A final <|return|> becomes <|end|>, as in every past message; an end token that is missing is added, so that a
        turn cut off inside a body can be replayed too.
        """
        if not ids or not all(0 <= id < self._tokenizer.vocab_size for id in ids):
            return None
        if ids[-1] in self._tokenizer.eos_ids and ids[-1] not in self._tokens.closing:
            ids = ids[:-1]  # the end of a text, not of a message
        messages = [self._message(part) for part in self._parts([self._tokens.start, *self._role, *ids])]
        whole = [message for message in messages if message is not None]
        return whole if len(whole) == len(messages) else None

    def _parts(self, ids: Sequence[int]) -> Iterator[Sequence[int]]:
        first = 0
        for at, id in enumerate(ids):
            if id in self._tokens.closing:
                yield ids[first : at + 1]
                first = at + 1
        if first < len(ids):
            yield ids[first:]

    def _message(self, ids: Sequence[int]) -> Rendered | None:
        tokens = self._tokens
        head = [tokens.start, *self._role]
        if list(ids[: len(head)]) != head or tokens.message not in ids:
            return None
        body_at = ids.index(tokens.message) + 1
        header, body = ids[len(head) : body_at - 1], ids[body_at:]
        match = _HEADER.fullmatch(self._tokenizer.decode(header))
        end = body[-1] if body and body[-1] in tokens.closing else None
        if end is not None:
            ids, body = ids[:-1], body[:-1]
        if match is None or not self._control.isdisjoint(body):
            return None
        recipient = match["role_to"] or match["channel_to"]
        if end != tokens.end:
            end = tokens.call if recipient else tokens.end
        return Rendered([*ids, end], match["channel"], recipient)
