"""Anthropic's conversation in ours: content blocks to Messages, and the two forms of a call's id.

Owns the blocks a client may send, declared, and what becomes of each: blocks are finer than our messages, so texts are
joined, tool results become messages of their own, and what cannot be read is refused. Knows no events and no endpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from freehold.errors import RequestError
from freehold.server.arguments import as_text
from freehold.server.body import Part, text_only, text_or
from freehold.text.chat import Message, ToolCall

INVALID_JSON = "INVALID_JSON"
"""The only key of a tool's input where the model wrote no JSON object; its value is what the model wrote. The word is
Anthropic's own, from its advice on sending such a call back."""

_BETWEEN_BLOCKS = "\n\n"  # the parts of an assistant's turn are joined without: they are one text, cut at calls


_TextOnly = BeforeValidator(text_only)
_TextOrBlocks = Discriminator(text_or("blocks"))


class TextBlock(Part):
    """Text."""

    type: Literal["text"]
    text: str


_Text = Annotated[str, Tag("text")]
_TextBlock = Annotated[TextBlock, _TextOnly]
Texts = Annotated[_Text | Annotated[list[_TextBlock], Tag("blocks")], _TextOrBlocks]
"""A text, or blocks of text."""


class PlainTextSource(Part):
    """A document that is plain text."""

    type: Literal["text"]
    data: str


class ContentSource(Part):
    """A document made of blocks."""

    type: Literal["content"]
    content: Texts


class DocumentBlock(Part):
    """A document of plain text; the model reads its title, its context and the text."""

    type: Literal["document"]
    source: Annotated[PlainTextSource | ContentSource, Field(discriminator="type"), _TextOnly]
    title: str | None = None
    context: str | None = None


class SearchResultBlock(Part):
    """What a search found; the model reads title, source and text."""

    type: Literal["search_result"]
    source: str
    title: str
    content: list[_TextBlock]


class ToolReferenceBlock(Part):
    """A tool that a client's tool search found. All tools are shown from the start, so it is only a mention."""

    type: Literal["tool_reference"]
    tool_name: str


_ResultBlock = Annotated[
    TextBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock, Field(discriminator="type"), _TextOnly
]


class ToolResultBlock(Part):
    """What a tool answered to the call `tool_use_id`."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Annotated[_Text | Annotated[list[_ResultBlock], Tag("blocks")], _TextOrBlocks] | None = None
    is_error: bool | None = None


class ThinkingBlock(Part):
    """Earlier reasoning. Its signature proves nothing here and is not looked at."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Part):
    """Earlier reasoning, encrypted by Anthropic: nobody else can read it, so it is left out."""

    type: Literal["redacted_thinking"]
    data: str = ""


class ToolUseBlock(Part):
    """A call the assistant made. Input that is a text, which only a broken client has, is taken as it is."""

    type: Literal["tool_use"]
    id: str = Field(min_length=1, max_length=256)
    name: str = Field(min_length=1, max_length=256)
    input: dict[str, Any] | str


_UserBlock = Annotated[
    TextBlock | ToolResultBlock | DocumentBlock | SearchResultBlock, Field(discriminator="type"), _TextOnly
]
_AssistantBlock = Annotated[
    TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock, Field(discriminator="type"), _TextOnly
]


class UserMessage(Part):
    """What the user says, and the results of tools."""

    role: Literal["user"]
    content: Annotated[_Text | Annotated[list[_UserBlock], Tag("blocks")], _TextOrBlocks]


class AssistantMessage(Part):
    """What the model said."""

    role: Literal["assistant"]
    content: Annotated[_Text | Annotated[list[_AssistantBlock], Tag("blocks")], _TextOrBlocks]


class SystemMessage(Part):
    """Instructions that come during the conversation."""

    role: Literal["system"]
    content: Texts


AnyMessage = Annotated[UserMessage | AssistantMessage | SystemMessage, Field(discriminator="role")]


def read_messages(messages: Sequence[UserMessage | AssistantMessage | SystemMessage]) -> list[Message]:
    """The conversation in our form. Neighbours of one role are one turn, as Anthropic has it; instructions that come
    later stay where they are.

    Raises RequestError for the result of a call that was not made before it.
    """
    read: list[Message] = []
    tools: dict[str, str] = {}  # what each call so far was to, by its id
    for role, turn in groupby(messages, key=lambda message: message.role):
        blocks = [block for message in turn for block in _blocks(message.content)]
        if role == "system":
            read.append(Message("system", _joined(blocks)))
        elif role == "assistant":
            read.append(_assistant(blocks))
            tools.update((block.id, block.name) for block in blocks if isinstance(block, ToolUseBlock))
        else:
            read += _user(blocks, tools)
    return read


def has_redacted(messages: Iterable[UserMessage | AssistantMessage | SystemMessage]) -> bool:
    """Whether some reasoning cannot be read."""
    return any(isinstance(block, RedactedThinkingBlock) for message in messages for block in _blocks(message.content))


def text_of(texts: str | Sequence[TextBlock]) -> str:
    """A text, or blocks of text, as one."""
    return _joined(_blocks(texts))


def call_id(tool_use_id: str) -> str:
    """The id of a call among our messages."""
    return f"call_{tool_use_id[6:]}" if tool_use_id.startswith("toolu_") else tool_use_id


def tool_use_id(call_id: str) -> str:
    """The id of one of our calls as Anthropic's clients expect it."""
    return f"toolu_{call_id.removeprefix('call_')}"


def _blocks(content: Any) -> list[Any]:
    return [TextBlock(type="text", text=content)] if isinstance(content, str) else list(content)


def _user(blocks: Sequence[Any], tools: dict[str, str]) -> list[Message]:
    """Results first, each a message; then all that is said beside them."""
    results = [_result(block, tools) for block in blocks if isinstance(block, ToolResultBlock)]
    said = [block for block in blocks if not isinstance(block, ToolResultBlock)]
    return [*results, Message("user", _joined(said))] if said or not results else results


def _result(block: ToolResultBlock, tools: dict[str, str]) -> Message:
    name = tools.get(block.tool_use_id)
    if name is None:
        raise RequestError(
            f"a tool_result has the tool_use_id {block.tool_use_id[:80]!r}; expected the id of a tool_use in an "
            f"assistant message before it"
        )
    text = _joined(_blocks(block.content or ""))
    if block.is_error:
        text = f"Error: {text}" if text else "Error"
    return Message("tool", text, tool_call_id=call_id(block.tool_use_id), name=name)


def _assistant(blocks: Sequence[Any]) -> Message:
    return Message(
        "assistant",
        "".join(block.text for block in blocks if isinstance(block, TextBlock)),
        reasoning="".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock)) or None,
        tool_calls=tuple(
            ToolCall(block.name, _arguments(block.input), call_id(block.id))
            for block in blocks
            if isinstance(block, ToolUseBlock)
        ),
    )


def _arguments(tool_input: dict[str, Any] | str) -> str:
    return tool_input if isinstance(tool_input, str) else as_text(tool_input, INVALID_JSON)


def _joined(blocks: Iterable[Any]) -> str:
    return _BETWEEN_BLOCKS.join(filter(None, map(_text, blocks)))


def _text(block: TextBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock) -> str:
    if isinstance(block, TextBlock):
        return block.text
    if isinstance(block, ToolReferenceBlock):
        return f"The tool {block.tool_name} is available."
    if isinstance(block, SearchResultBlock):
        return _BETWEEN_BLOCKS.join([block.title, block.source, *(part.text for part in block.content)])
    source = block.source
    text = source.data if isinstance(source, PlainTextSource) else text_of(source.content)
    return _BETWEEN_BLOCKS.join(filter(None, (block.title, block.context, text)))
