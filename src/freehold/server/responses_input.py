"""Items of the Responses API as a conversation in our own form.

Owns what becomes of each item, and where one turn of the assistant ends: items are finer than our Messages, so
reasoning, text and calls of one turn are put together again. Items of a request, of a stored conversation and of our
own output are the same, and all are read here. Knows no events and no endpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from freehold.server.errors import ApiError
from freehold.server.responses_items import (
    AnyItem,
    CallOutputItem,
    CustomCallItem,
    FunctionCallItem,
    ImagePart,
    Item,
    MessageItem,
    ReasoningItem,
    WebSearchItem,
    text_of,
    turn_of,
)
from freehold.server.responses_tools import flat_name
from freehold.text.chat import Message, ToolCall

_BETWEEN = "\n\n"  # two texts of one turn, as the parsers of answers write it
_UNSEEN_IMAGE = "images in the output of tools were left out, which the model is told: it reads text only"
_FOREIGN_REASONING = "reasoning that another service encrypted was left out: nobody else can read it"
_FOREIGN_SEARCH = "web_search_call items were left out: they hold nothing of what was found"


def read_items(items: Iterable[AnyItem], warnings: list[str]) -> list[Message]:
    """Items as a conversation; what had to be left out is added to `warnings`.

    Reasoning, text and calls that follow each other are one Message, as the model said them in one turn. Items of our
    own answers say by their ids which turn they belong to; others go together as long as they come in that order.
    References must have been resolved. Raises ApiError 400 for the output of a call that is not there.
    """
    reader = _Reader(warnings)
    for item in items:
        reader.add(item)
    return reader.read()


_REASONING, _TEXT, _CALL = range(3)  # the order in which a turn says them


@dataclass
class _Turn:
    """A turn of the assistant in the making. `key` is what the ids of its items have in common, where it is known."""

    key: str | None
    rank: int
    reasoning: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)

    def takes(self, key: str | None, rank: int) -> bool:
        """Whether the next item is of this turn."""
        if key is not None and self.key is not None:
            return key == self.key
        return rank > self.rank or (rank == self.rank and rank != _TEXT)

    def message(self) -> Message:
        return Message("assistant", _joined(self.texts), _joined(self.reasoning) or None, tuple(self.calls))


class _Reader:
    """Reads one conversation, item by item."""

    def __init__(self, warnings: list[str]) -> None:
        self._warnings = warnings
        self._messages: list[Message] = []
        self._turn: _Turn | None = None
        self._called: set[str] = set()

    def add(self, item: AnyItem) -> None:
        if isinstance(item, MessageItem):
            self._add_message(item)
        elif isinstance(item, ReasoningItem):
            self._add_reasoning(item)
        elif isinstance(item, FunctionCallItem):
            self._add_call(item, item.arguments)
        elif isinstance(item, CustomCallItem):
            self._add_call(item, item.input)
        elif isinstance(item, CallOutputItem):
            self._add_output(item)
        elif isinstance(item, WebSearchItem):
            self._warn(_FOREIGN_SEARCH)
        else:
            raise AssertionError("a reference that was not resolved")

    def read(self) -> list[Message]:
        self._end_turn()
        return self._messages

    def _add_message(self, item: MessageItem) -> None:
        if item.role == "assistant":
            self._in_turn(item, _TEXT).texts.append(text_of(item.content))
        else:
            self._end_turn()
            self._messages.append(Message(item.role, text_of(item.content)))

    def _add_reasoning(self, item: ReasoningItem) -> None:
        content = "".join(part.text for part in item.content or ())
        text = content or _BETWEEN.join(part.text for part in item.summary)
        if text:
            self._in_turn(item, _REASONING).reasoning.append(text)
        elif item.encrypted_content:
            self._warn(_FOREIGN_REASONING)

    def _add_call(self, item: FunctionCallItem | CustomCallItem, arguments: str) -> None:
        name, is_custom = flat_name(item.namespace, item.name), isinstance(item, CustomCallItem)
        call = ToolCall(name, arguments, item.call_id, is_custom)
        self._in_turn(item, _CALL).calls.append(call)
        self._called.add(item.call_id)

    def _add_output(self, item: CallOutputItem) -> None:
        if item.call_id not in self._called:
            raise ApiError(
                400,
                f"input holds the output of the call {item.call_id[:80]!r}, which is not in the conversation; expected "
                f"the item with the call before it, or the response that made it as previous_response_id",
                param="input",
            )
        if not isinstance(item.output, str) and any(isinstance(part, ImagePart) for part in item.output):
            self._warn(_UNSEEN_IMAGE)
        self._end_turn()
        self._messages.append(Message("tool", text_of(item.output), tool_call_id=item.call_id))

    def _in_turn(self, item: Item, rank: int) -> _Turn:
        """The turn that an item of the assistant belongs to."""
        key = turn_of(item.id)
        if self._turn is None or not self._turn.takes(key, rank):
            self._end_turn()
            self._turn = _Turn(key, rank)
        self._turn.rank = rank
        return self._turn

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._messages.append(self._turn.message())
            self._turn = None

    def _warn(self, warning: str) -> None:
        if warning not in self._warnings:
            self._warnings.append(warning)


def _joined(texts: Sequence[str]) -> str:
    """Texts of one turn as one. Our own answers' second text begins with what stands between them."""
    joined = ""
    for text in filter(None, texts):
        joined += text if not joined or text.startswith(_BETWEEN) else _BETWEEN + text
    return joined
