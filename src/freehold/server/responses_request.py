"""Requests of the Responses API: the body, what each field means here, and the internal form of it all.

Owns what is refused and why, which conversation a request continues, and what of a request its response repeats. Input
is never cut to fit: one that is too long is refused, whatever `truncation` says. Knows no events and no tokens.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from freehold.server import openai_shapes as shapes
from freehold.server.body import ModelName, Part, refuse, text_or
from freehold.server.errors import ApiError
from freehold.server.responses_input import read_items
from freehold.server.responses_items import (
    AnyItem,
    InputItem,
    Item,
    MessageItem,
    ReferenceItem,
    text_of,
)
from freehold.server.responses_store import ResponseStore, StoredItem
from freehold.server.responses_tools import Offer, read_offer
from freehold.server.service import Ticket
from freehold.text.chat import Message
from freehold.text.request import ChatRequest

LOGPROBS = "message.output_text.logprobs"
MAX_ITEMS = 100_000

_REFUSED = {
    "background": "answers are made while the client waits; leave it out, and stream",
    "conversation": "conversations are not stored apart from responses; use previous_response_id, or send all items",
    "prompt": "prompt templates are not stored here; send instructions and input",
    "context_management": "conversations are never shortened here; leave out what the model need not see",
    "moderation": "nothing is moderated here; leave it out",
}
_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "web_search_call": "ws",
}
_NO_SUMMARY = "reasoning is not summarised: reasoning items hold the reasoning itself in their content"
_NO_VERBOSITY = "text.verbosity has no effect on local models"
_NO_TRUNCATION = "truncation is 'disabled' whatever was asked for: input is never cut"


class ReasoningConfig(Part):
    """How hard to think."""

    effort: str | None = Field(None, max_length=64, description="What the model's format knows: low to high.")
    summary: Literal["auto", "concise", "detailed", "none"] | None = Field(None, description="No summaries are made.")
    generate_summary: Literal["auto", "concise", "detailed"] | None = Field(None, description="Older name of summary.")


class TextConfig(Part):
    """What the visible answer must be."""

    format: dict[str, Any] | None = Field(
        None, description="text, json_object, json_schema, grammar (Lark) or regex; binds the answer, not reasoning."
    )
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description="Accepted, without effect.")


_Items = Annotated[list[InputItem], Field(max_length=MAX_ITEMS)]
_Input = Annotated[Annotated[str, Tag("text")] | Annotated[_Items, Tag("items")], Discriminator(text_or("items"))]


class ResponsesBody(shapes.SamplingFields):
    """What POST /v1/responses takes."""

    model: ModelName
    input: _Input | None = Field(
        None, description="What the user says, or items: messages, reasoning, calls and their outputs; text only."
    )
    instructions: str | None = Field(None, description="A system message in front; not carried over to the next one.")
    previous_response_id: str | None = Field(None, max_length=256, description="A stored response to go on from.")
    store: bool | None = Field(None, description="Keep the response in memory, for a while; true by default.")
    stream: bool | None = None
    stream_options: dict[str, Any] | None = Field(None, description="Accepted, without effect.")
    include: list[Annotated[str, Field(max_length=256)]] | None = Field(
        None, max_length=64, description=f"{LOGPROBS} has an effect here; what is not in plain text, nothing else has."
    )
    max_output_tokens: int | None = Field(None, ge=1, description="Reasoning included; cut to the room there is.")
    max_tool_calls: int | None = Field(None, ge=1, description="Of OpenAI's own tools, of which there are none here.")
    top_logprobs: int | None = Field(None, ge=0, le=shapes.MAX_TOP_LOGPROBS)
    reasoning: ReasoningConfig | None = None
    text: TextConfig | None = None
    tools: list[dict[str, Any]] | None = Field(
        None, max_length=shapes.MAX_TOOLS, description="function, custom (text, Lark, regex), or namespaces of these."
    )
    tool_choice: str | dict[str, Any] | None = Field(
        None, description="auto, none, required, or an object that names a tool or those allowed."
    )
    parallel_tool_calls: bool | None = Field(None, description="Several calls in one turn, where the format can.")
    truncation: Literal["auto", "disabled"] | None = Field(None, description="Input is never cut, whatever this says.")
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)] | None = None
    background: bool | None = Field(None, description="true is refused.")
    # Accepted because clients send them; they have no meaning on a server of one's own.
    service_tier: str | None = Field(None, max_length=64)
    user: str | None = Field(None, max_length=512)
    safety_identifier: str | None = Field(None, max_length=512)
    prompt_cache_key: str | None = Field(None, max_length=512)
    prompt_cache_retention: str | None = Field(None, max_length=64)


@dataclass(frozen=True)
class Asked:
    """A request, read. `conversation` is what it answers, as the store keeps it; empty if the answer is not kept."""

    body: ResponsesBody
    request: ChatRequest
    offer: Offer
    conversation: Sequence[StoredItem]

    @property
    def stores(self) -> bool:
        """Whether the answer is to be kept."""
        return self.body.store is not False

    def head(self, ticket: Ticket) -> dict[str, Any]:
        """The fields of the response that are known before anything is generated."""
        body, request, text = self.body, self.request, self.body.text or TextConfig()
        verbosity = {} if text.verbosity is None else {"verbosity": text.verbosity}
        return {
            "id": f"resp_{secrets.token_hex(24)}",
            "object": "response",
            "created_at": ticket.created,
            "model": ticket.model,
            "previous_response_id": body.previous_response_id,
            "instructions": body.instructions,
            "tools": self.offer.shown,
            "tool_choice": body.tool_choice or "auto",
            "parallel_tool_calls": request.parallel_calls,
            "reasoning": {"effort": ticket.effort, "summary": None},
            "text": {"format": _shown_format(text.format), **verbosity},
            "truncation": "disabled",
            "temperature": body.temperature,
            "top_p": body.top_p,
            "presence_penalty": body.presence_penalty,
            "frequency_penalty": body.frequency_penalty,
            "top_logprobs": body.top_logprobs or 0,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "metadata": body.metadata or {},
            "store": self.stores,
            "background": False,
            "service_tier": "default",
            "user": body.user,
            "safety_identifier": body.safety_identifier,
            "prompt_cache_key": body.prompt_cache_key,
        }


def find_items(body: ResponsesBody, store: ResponseStore, namespace: str) -> list[AnyItem | StoredItem]:
    """The conversation: the one that is continued, and the request's items, references resolved.

    Raises ApiError 400 for a response that is not stored, 404 for such an item.
    """
    found: list[AnyItem | StoredItem] = []
    if body.previous_response_id is not None:
        previous = store.get(namespace, body.previous_response_id)
        if previous is None:
            message = not_found("Previous response", body.previous_response_id, store)
            raise ApiError(400, message, code="previous_response_not_found", param="previous_response_id")
        found += previous.conversation
    if isinstance(body.input, str):
        return [*found, MessageItem(role="user", content=body.input)]
    for i, item in enumerate(body.input or ()):
        if isinstance(item, ReferenceItem):
            stored = store.item(namespace, item.id)
            if stored is None:
                raise ApiError(404, not_found("Item", item.id, store), param=f"input[{i}].id")
            found.append(stored)
        else:
            found.append(item)
    return found


def read_request(
    body: ResponsesBody, items: Sequence[AnyItem | StoredItem], namespace: str, warnings: list[str]
) -> Asked:
    """The internal form of a body and the items it stands for. Raises ApiError 400 for what it may not say."""
    _refuse(body)
    reasoning, text = body.reasoning or ReasoningConfig(), body.text or TextConfig()
    offer = read_offer(body.tools, body.tool_choice, warnings)
    messages = read_items((each.item if isinstance(each, StoredItem) else each for each in items), warnings)
    if body.instructions:
        messages.insert(0, Message("system", body.instructions))
    if not messages:
        raise ApiError(400, "input is empty; expected what the user says, as text or as items", param="input")
    warnings += _without_effect(body, reasoning, text)
    request = ChatRequest(
        messages=tuple(messages),
        tools=offer.tools,
        tool_choice=offer.choice,
        parallel_calls=body.parallel_tool_calls is not False,
        answer=shapes.read_response_format(text.format, "text.format"),
        reasoning_effort=reasoning.effort,
        stop=tuple(body.stop or ()),
        max_tokens=body.max_output_tokens,
        sampling=shapes.sampling(body, _n_logprobs(body)),
        namespace=namespace,
    )
    keeps = body.store is not False
    return Asked(body, request, offer, [_kept(each) for each in items] if keeps else [])


def not_found(what: str, id: str, store: ResponseStore) -> str:
    """What is said of an id that the store has not."""
    n, hours = store.limits.max_responses, store.limits.max_age / 3600
    return (
        f"{what} with id {id[:80]!r} not found. Responses are kept in memory only: the last {n} of them, for {hours:g} "
        f"hours, unless the request said store: false. Send the whole conversation as input"
    )


def _refuse(body: ResponsesBody) -> None:
    refuse(body, _REFUSED)
    if body.n not in (None, 1):
        raise ApiError(400, f"n is {body.n}; expected 1, a response holds one answer", param="n")


def _without_effect(body: ResponsesBody, reasoning: ReasoningConfig, text: TextConfig) -> Iterator[str]:
    if (reasoning.summary or reasoning.generate_summary or "none") != "none":
        yield _NO_SUMMARY
    if text.verbosity not in (None, "medium"):
        yield _NO_VERBOSITY
    if body.truncation == "auto":
        yield _NO_TRUNCATION


def _n_logprobs(body: ResponsesBody) -> int | None:
    wanted = bool(body.top_logprobs) or LOGPROBS in (body.include or ())
    return (body.top_logprobs or 0) if wanted else None


def _kept(item: AnyItem | StoredItem) -> StoredItem:
    """An item as the store keeps it and lists show it, with an id and its content in parts."""
    if isinstance(item, StoredItem):
        return item
    assert isinstance(item, Item)
    shown: dict[str, Any] = {"id": item.id or f"{_PREFIXES[item.type]}_{secrets.token_hex(16)}", "status": "completed"}
    shown |= item.model_dump(exclude_none=True, exclude={"id"})
    if isinstance(item, MessageItem) and isinstance(item.content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        shown["content"] = [{"type": kind, "text": text_of(item.content)}]
    return StoredItem.of(item, shown)


def _shown_format(given: dict[str, Any] | None) -> dict[str, Any]:
    if given is None:
        return {"type": "text"}
    return {"strict": False, "description": None, **given} if given.get("type") == "json_schema" else given
