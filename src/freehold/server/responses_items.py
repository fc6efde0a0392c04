"""The items of the Responses API, declared: what clients send, and what stored conversations and answers are made of.

Owns which items and parts there are, what is said of those that there are not, and the ids of our own. What becomes of
items is responses_input's matter. Knows no events and no endpoints.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from freehold.server.body import Part, text_only, text_or

_OWN_ID = re.compile(r"[a-z]+_([0-9a-f]{24})[0-9a-f]{4}")
_IMAGE = "[an image, left out: this model reads text only]"
_NO_ITEM = (
    "its type is {kind}, which this server cannot read; expected message, reasoning, function_call, "
    "function_call_output, custom_tool_call, custom_tool_call_output, web_search_call or item_reference"
)


def _text_or_image_only(value: Any) -> Any:
    is_image = isinstance(value, dict) and value.get("type") == "input_image"
    return value if is_image else text_only(value)


class TextPart(Part):
    """Text, whoever wrote it."""

    type: Literal["input_text", "output_text"]
    text: str


class RefusalPart(Part):
    """What the assistant said in place of an answer."""

    type: Literal["refusal"]
    refusal: str


class ImagePart(Part):
    """An image that a tool gave. The model asked for it and cannot see it; it is told so, and can go on."""

    type: Literal["input_image"]


_TextOrParts = Discriminator(text_or("parts"))
_ContentPart = Annotated[TextPart | RefusalPart, Field(discriminator="type"), BeforeValidator(text_only)]
Content = Annotated[Annotated[str, Tag("text")] | Annotated[list[_ContentPart], Tag("parts")], _TextOrParts]
"""A text, or parts that are joined without anything between them."""

_OutputPart = Annotated[
    TextPart | RefusalPart | ImagePart, Field(discriminator="type"), BeforeValidator(_text_or_image_only)
]
CallOutput = Annotated[Annotated[str, Tag("text")] | Annotated[list[_OutputPart], Tag("parts")], _TextOrParts]
"""What a tool said, likewise."""


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
    summary: list[SummaryPart] = Field(default_factory=list)
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
    output: CallOutput


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


def text_of(content: str | Sequence[TextPart | RefusalPart | ImagePart]) -> str:
    """All text of a content."""
    return content if isinstance(content, str) else "".join(map(_part_text, content))


def _part_text(part: TextPart | RefusalPart | ImagePart) -> str:
    if isinstance(part, ImagePart):
        return _IMAGE
    return part.text if isinstance(part, TextPart) else part.refusal


def new_turn() -> str:
    """What the ids of one answer's items have in common, and no other's have."""
    return secrets.token_hex(12)


def item_id(kind: str, turn: str, index: int) -> str:
    """The id of item number `index` of an answer. `kind` is the prefix that OpenAI's ids have: msg, rs, fc, ctc."""
    return f"{kind}_{turn}{index:04x}"


def turn_of(id: str | None) -> str | None:
    """What an id of one of our items has in common with those of the same answer; None for any other id."""
    match = _OWN_ID.fullmatch(id or "")
    return match[1] if match else None
