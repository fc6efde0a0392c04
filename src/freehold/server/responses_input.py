"""The items of the Responses API: declared, and a list of them as a conversation in our own form.

Owns which items a client may send, what becomes of each, and where one turn of the assistant ends: items are finer than
our Messages, so reasoning, text and calls of one turn are put together again. Items of a request, of a stored
conversation and of our own output are the same, and all are read here. Knows no events and no endpoints.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from freehold.server.errors import ApiError
from freehold.server.responses_tools import flat_name
from freehold.text.chat import Message, ToolCall

_BETWEEN = "\n\n"  # two texts of one turn, as the parsers of answers write it
_OWN_ID = re.compile(r"[a-z]+_([0-9a-f]{24})[0-9a-f]{4}")

_TEXT_ONLY = "its type is {kind}; text is all this runtime reads, no images, audio or files"
_NO_ITEM = (
    "its type is {kind}, which this server cannot read; expected message, reasoning, function_call, "
    "function_call_output, custom_tool_call, custom_tool_call_output, web_search_call or item_reference"
)


_FOREIGN_REASONING = "reasoning that another service encrypted was left out: nobody else can read it"
_FOREIGN_SEARCH = "web_search_call items were left out: they hold nothing of what was found"


class Part(BaseModel):
    """Base of what a body holds. Keys that no model reads (annotations, logprobs, status) are passed over."""

    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)


def _text_only(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and any(word in kind for word in ("image", "audio", "video", "file", "screenshot")):
        raise PydanticCustomError("text_only", _TEXT_ONLY, {"kind": kind[:80]})
    return value


class TextPart(Part):
    """Text, whoever wrote it."""

    type: Literal["input_text", "output_text"]
    text: str


class RefusalPart(Part):
    """What the assistant said in place of an answer."""

    type: Literal["refusal"]
    refusal: str


def text_or(otherwise: str) -> Callable[[Any], str]:
    """Tells text from a list, so that what is wrong with one is not said of the other."""
    return lambda value: "text" if isinstance(value, str) else otherwise


_ContentPart = Annotated[TextPart | RefusalPart, Field(discriminator="type"), BeforeValidator(_text_only)]
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[_ContentPart], Tag("parts")], Discriminator(text_or("parts"))
]
"""A text, or parts that are joined without anything between them."""


class Item(Part):
    """Base of the items. `id` names it in the store; one that was sent without gets one there."""

    id: str | None = Field(None, max_length=256)


class MessageItem(Item):
    """What somebody said."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class SummaryPart(Part):
    """A piece of a summary of reasoning."""

    type: Literal["summary_text"]
    text: str


class ReasoningPart(Part):
    """A piece of reasoning."""

    type: Literal["reasoning_text", "text"]
    text: str


class ReasoningItem(Item):
    """What the assistant thought. Without content its summary is what is known of it."""

    type: Literal["reasoning"]
    summary: list[SummaryPart] = []
    content: list[ReasoningPart] | None = None
    encrypted_content: str | None = Field(None, description="Of another service. Nobody else can read it.")


_CallId = Annotated[str, Field(min_length=1, max_length=256)]
_ToolName = Annotated[str, Field(min_length=1, max_length=256)]


class FunctionCallItem(Item):
    """A call the assistant made, its arguments as it wrote them."""

    type: Literal["function_call"]
    call_id: _CallId
    name: _ToolName
    namespace: _ToolName | None = None
    arguments: str


class CustomCallItem(Item):
    """A call of a custom tool, which takes plain text."""

    type: Literal["custom_tool_call"]
    call_id: _CallId
    name: _ToolName
    namespace: _ToolName | None = None
    input: str


class CallOutputItem(Item):
    """What a tool answered to a call."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: _CallId
    output: Content


class WebSearchItem(Item):
    """That another service searched the web. It holds nothing of what was found, so a model learns nothing from it."""

    type: Literal["web_search_call"]


class ReferenceItem(Part):
    """An item that is stored, by its id."""

    type: Literal["item_reference"] | None = None
    id: str = Field(min_length=1, max_length=256)


def _kind(value: Any) -> str:
    """The tag of an item: its type, which messages and references may leave out."""
    if isinstance(value, BaseModel):
        value = {"type": getattr(value, "type", None), "role": getattr(value, "role", None)}
    if not isinstance(value, dict):
        return "message"
    kind = value.get("type")
    if kind is None:
        return "message" if "role" in value or "id" not in value else "item_reference"
    return kind if isinstance(kind, str) else "message"


def _known(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in _KINDS:
        raise PydanticCustomError("item_type", _NO_ITEM, {"kind": kind[:80]})
    return value


_KINDS = (
    "message",
    "reasoning",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
    "web_search_call",
    "item_reference",
)

AnyItem = (
    MessageItem | ReasoningItem | FunctionCallItem | CustomCallItem | CallOutputItem | WebSearchItem | ReferenceItem
)
InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[CustomCallItem, Tag("custom_tool_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")]
    | Annotated[CallOutputItem, Tag("custom_tool_call_output")]
    | Annotated[WebSearchItem, Tag("web_search_call")]
    | Annotated[ReferenceItem, Tag("item_reference")],
    Discriminator(_kind),
    BeforeValidator(_known),
]


def new_turn() -> str:
    """What the ids of one answer's items have in common, and no other's have."""
    return secrets.token_hex(12)


def item_id(kind: str, turn: str, index: int) -> str:
    """The id of item number `index` of an answer. `kind` is the prefix that OpenAI's ids have: msg, rs, fc, ctc."""
    return f"{kind}_{turn}{index:04x}"


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
        self._end_turn()
        self._messages.append(Message("tool", text_of(item.output), tool_call_id=item.call_id))

    def _in_turn(self, item: Item, rank: int) -> _Turn:
        """The turn that an item of the assistant belongs to."""
        match = _OWN_ID.fullmatch(item.id or "")
        key = match[1] if match else None
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


def text_of(content: str | Sequence[TextPart | RefusalPart]) -> str:
    """All text of a content."""
    if isinstance(content, str):
        return content
    return "".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)


def _joined(texts: Sequence[str]) -> str:
    """Texts of one turn as one. Our own answers' second text begins with what stands between them."""
    joined = ""
    for text in filter(None, texts):
        joined += text if not joined or text.startswith(_BETWEEN) else _BETWEEN + text
    return joined
