"""What the models said, remembered token by token, for clients that send their conversation anew with every request.

An assistant's turn that comes back word by word gets the ids it was sampled as, so that the cached prefix holds and the
model reads itself as it was; and its reasoning, where a client left it out that the model needs to go on.
Owns the memory and its bounds. A turn is found again only after the same conversation, of the same namespace and model.
"""

from __future__ import annotations

from collections.abc import Sequence

from freehold.reply import Reply
from freehold.text.chat import Message


class Turns:
    """A bounded memory of turns."""

    def recall(self, model: str, namespace: str, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages, with ids where the turn is remembered."""
        return tuple(messages)

    def keep(self, model: str, namespace: str, messages: Sequence[Message], reply: Reply) -> None:
        """Remember what was answered to `messages`."""
