"""What the models said, remembered token by token, for clients that send their conversation anew with every request.

An assistant's turn that comes back word by word gets the ids it was sampled as, so that the cached prefix holds and the
model reads itself as it was; and its reasoning, where a client left it out that the model needs to go on.
Owns the memory and its bounds. A turn is found again only after the same conversation, of the same namespace and model.
"""

from __future__ import annotations

import json
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from freehold.reply import Reply
from freehold.text.chat import Message, ToolCall

MAX_ENTRIES = 16_384
MAX_BYTES = 64 * 2**20

_KEY_BYTES = 32
_ENTRY_BYTES = 400  # what Python spends on one entry besides its contents


@dataclass(frozen=True)
class _Turn:
    ids: array[int]
    reasoning: str
    called: bool

    @property
    def n_bytes(self) -> int:
        return _ENTRY_BYTES + len(self.ids) * self.ids.itemsize + 4 * len(self.reasoning)


class Turns:
    """A bounded memory of turns; thread-safe. The least recently used are forgotten first.

    A turn's key is a hash of the model, the namespace and every message up to the turn's end. Two messages are the same
    if role, name, text and calls are; so a client that edits one finds no turn from there on. Left out is what clients
    drop or make anew: reasoning, the ids of calls, blanks around what the assistant said, and how the JSON of a call's
    arguments is written (blanks, order of keys, 1.0 for 1).
    """

    def __init__(self, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._turns: OrderedDict[bytes, _Turn] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._turns)

    def recall(self, model: str, namespace: str, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages, with ids where the turn is remembered, and with its reasoning where it ended in calls.

        Reasoning that the client sent along stays as it is; if it is not the turn's own, the turn gets no ids.
        """
        if not self._turns:
            return tuple(messages)
        keys = _keys(model, namespace, messages)
        return tuple(
            self._recalled(key, message) if message.role == "assistant" else message
            for key, message in zip(keys, messages, strict=True)
        )

    def keep(self, model: str, namespace: str, messages: Sequence[Message], reply: Reply) -> None:
        """Remember what was answered to `messages`. A turn too large for the memory is not kept."""
        said = Message("assistant", reply.text, tool_calls=reply.tool_calls)
        *_, key = _keys(model, namespace, [*messages, said])
        turn = _Turn(array("i", reply.ids), reply.reasoning or "", bool(reply.tool_calls))
        if turn.n_bytes > self._max_bytes:
            return
        with self._lock:
            self._drop(key)
            self._turns[key] = turn
            self._n_bytes += turn.n_bytes
            while len(self._turns) > self._max_entries or self._n_bytes > self._max_bytes:
                self._drop(next(iter(self._turns)))

    def _recalled(self, key: bytes, message: Message) -> Message:
        with self._lock:
            turn = self._turns.get(key)
            if turn is None:
                return message
            self._turns.move_to_end(key)
        if message.reasoning and message.reasoning.strip() != turn.reasoning.strip():
            return message
        reasoning = message.reasoning or (turn.reasoning if turn.called else "") or None
        return Message(
            "assistant", message.content, reasoning, message.tool_calls, name=message.name, ids=tuple(turn.ids)
        )

    def _drop(self, key: bytes) -> None:
        turn = self._turns.pop(key, None)
        if turn is not None:
            self._n_bytes -= turn.n_bytes


def _keys(model: str, namespace: str, messages: Sequence[Message]) -> Iterator[bytes]:
    """Per message the key of the conversation that ends with it. Cryptographic, since a collision would show one
    client what another was told.
    """
    key = _hashed((model, namespace), b"freehold-turns")
    for message in messages:
        key = _hashed(_fields(message), key)
        yield key


def _hashed(fields: Sequence[str], parent: bytes) -> bytes:
    state = blake2b(parent, digest_size=_KEY_BYTES, person=b"freehold-turn")
    for field in fields:
        data = field.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little"))  # so that no two lists of fields read the same
        state.update(data)
    return state.digest()


def _fields(message: Message) -> list[str]:
    content = message.content.strip() if message.role == "assistant" else message.content
    calls = (field for call in message.tool_calls for field in (call.name, _arguments(call)))
    return [message.role, message.name or "", content, *calls]


def _arguments(call: ToolCall) -> str:
    text = call.arguments.strip()
    try:
        value = json.loads(text or "{}", parse_float=_number)
        return json.dumps(value, sort_keys=True)
    except (ValueError, RecursionError):
        return text


def _number(text: str) -> Any:
    value = float(text)
    return int(value) if value.is_integer() else value
