"""Text to token ids and back over HTTP: /tokenize and /detokenize.

Owns the fields that llama.cpp's server and vLLM have for this, and which of the two is followed where they differ: a
text under `content` is read as llama.cpp reads it, one under `prompt` as vLLM does. Answers carry the names of both.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pydantic import Field

from freehold.errors import UnsupportedError
from freehold.runtime import LocalModel
from freehold.server.body import Body, ModelName
from freehold.server.endpoint import Call, Endpoint, Json
from freehold.server.errors import ApiError
from freehold.server.openai_shapes import read_tools
from freehold.server.resident import Lease
from freehold.text.chat import Message
from freehold.text.templates import MAX_CHARS

MAX_IDS = 1_000_000

_MODEL = Field(None, description="May be left out where only one model is served.")


class TokenizeBody(Body):
    """What POST /tokenize takes: one of `content`, `prompt` and `messages`."""

    model: ModelName | None = _MODEL
    content: str | None = Field(None, max_length=MAX_CHARS, description="A text; no BOS is added unless asked for.")
    prompt: str | None = Field(
        None, max_length=MAX_CHARS, description="A text; a BOS is added where the model wants it."
    )
    messages: list[dict[str, Any]] | None = Field(
        None, min_length=1, description="A conversation, as for chat completions: the ids of the whole prompt."
    )
    add_special: bool | None = Field(None, description="Whether a text begins with the model's BOS, if it wants one.")
    add_special_tokens: bool | None = Field(None, description="Another name of add_special.")
    parse_special: bool = Field(
        True, description='Whether "<|im_end|>" in a text is one control token. In messages it never is.'
    )
    with_pieces: bool = Field(False, description="Each token as an object with its id and its text, or its bytes.")
    tools: list[dict[str, Any]] | None = Field(None, description="Offered along with messages.")
    add_generation_prompt: bool = Field(
        True, description="Whether the prompt ends where the answer to messages begins."
    )
    reasoning_effort: str | None = Field(None, max_length=64)
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Options of the model's chat format.")


class DetokenizeBody(Body):
    """What POST /detokenize takes."""

    model: ModelName | None = _MODEL
    tokens: list[int] = Field(max_length=MAX_IDS)


async def tokenize(call: Call) -> Json:
    """{"tokens", "count", "max_model_len"}: the ids, how many they are, and how many the model's context holds.

    With `with_pieces` a token is {"id", "piece"}; the piece is its text, or its bytes where they are part of a
    character. Messages give what a chat completion would be prompted with.
    """
    body: TokenizeBody = call.body
    given = [name for name in ("content", "prompt", "messages") if getattr(body, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise ApiError(400, f"expected one of content, prompt and messages; found {found}")
    async with leased(call, body.model) as lease:
        if body.messages is not None:
            ids = await asyncio.to_thread(_of_messages, call, lease, body)
        else:
            ids = await asyncio.to_thread(_of_text, lease.model, body)
        tokens: Sequence[Any] = ids
        if body.with_pieces:
            tokens = [{"id": id, "piece": _piece(lease.model.tokenizer.token_bytes(id))} for id in ids]
        return Json({"tokens": tokens, "count": len(ids), "max_model_len": lease.model.max_context})


async def detokenize(call: Call) -> Json:
    """{"content", "prompt"}, both the text of the tokens; bytes that form no character are U+FFFD."""
    body: DetokenizeBody = call.body
    async with leased(call, body.model) as lease:
        text = await asyncio.to_thread(lease.model.detokenize, body.tokens) if body.tokens else ""
    return Json({"content": text, "prompt": text})


@asynccontextmanager
async def leased(call: Call, model: str | None) -> AsyncIterator[Lease]:
    """The use of a model, or of the only one. Raises ApiError 400 if none is named and there are several."""
    if model is None:
        names = [card.name for card in call.service.pool.cards()]
        if len(names) != 1:
            raise ApiError(400, f"model is missing; expected one of {', '.join(sorted(names))[:500]}", param="model")
        model = names[0]
    lease = await call.service.pool.lease(model)
    try:
        yield lease
    finally:
        lease.release()


def encoded(model: LocalModel, text: str, *, add_bos: bool, special: bool) -> list[int]:
    """Ids of a text, with the BOS that the model wants before a prompt unless the text has it."""
    tokenizer = model.tokenizer
    ids = model.tokenize(text, special=special)
    bos = tokenizer.bos_id if add_bos and tokenizer.add_bos else None
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def _of_text(model: LocalModel, body: TokenizeBody) -> list[int]:
    asked = [value for value in (body.add_special, body.add_special_tokens) if value is not None]
    add_bos = asked[0] if asked else body.prompt is not None
    text = body.content if body.content is not None else body.prompt
    assert text is not None
    return encoded(model, text, add_bos=add_bos, special=body.parse_special)


def _of_messages(call: Call, lease: Lease, body: TokenizeBody) -> list[int]:
    chat_format = lease.model.chat_format
    if chat_format is None:
        raise UnsupportedError(f"{lease.name} carries no chat template; expected `content` or `prompt`, a text")
    messages = [Message.from_dict(message, f"messages[{i}]") for i, message in enumerate(body.messages or ())]
    options = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        options["reasoning_effort"] = body.reasoning_effort
    if taken := options.keys() & {"messages", "add_generation_prompt", "tools"}:
        raise ApiError(400, f"chat_template_kwargs holds {min(taken)!r}, which has a field of its own")
    return chat_format.render(
        call.service.turns.recall(lease.name, call.namespace, messages),
        add_generation_prompt=body.add_generation_prompt,
        tools=read_tools(body.tools) or None,
        **options,
    )


def _piece(raw: bytes) -> str | list[int]:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        "POST",
        "/tokenize",
        tokenize,
        "Token ids of a text or conversation",
        "Tokens",
        body=TokenizeBody,
        statuses=(404, 503),
    ),
    Endpoint(
        "POST",
        "/detokenize",
        detokenize,
        "The text of token ids",
        "Tokens",
        body=DetokenizeBody,
        statuses=(404, 503),
    ),
)
