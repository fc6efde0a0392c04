"""The control tokens of the harmony format, found in a model's own tokenizer.

Owns their texts and ids; the texts are the format's, the ids are the tokenizer's. A tokenizer that has all of them is
how a model is known to speak harmony. Knows nothing of messages, nor of what the tokens surround.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from freehold.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class HarmonyTokens:
    """One id per control token. A message is `start` header `message` body, then `end`, `call` or `return_`.

    In the header, `channel` comes before the channel's name and `constrain` before the content type. `call` ends what
    goes to a tool, `return_` the whole turn; `end` any other message, and everything that lies in the past.
    """

    start: int
    end: int
    message: int
    channel: int
    constrain: int
    return_: int
    call: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> HarmonyTokens | None:
        """The ids in `tokenizer`, or None if it lacks one of them."""
        ids = {field.name: tokenizer.special_ids.get(f"<|{field.name.rstrip('_')}|>") for field in fields(cls)}
        found = {name: id for name, id in ids.items() if id is not None}
        return cls(**found) if len(found) == len(ids) else None

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids after which the model has nothing more to say: the turn is over, or a tool must answer first."""
        return frozenset((self.return_, self.call))

    @property
    def closing(self) -> frozenset[int]:
        """The ids that end one message."""
        return frozenset((self.end, self.return_, self.call))
