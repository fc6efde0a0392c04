"""OpenAI's Chat Completions: a request's body to a ChatRequest.

Owns the fields of the protocol, what of them is refused and why, and the reading of messages. What becomes of the
answers is openai_chat_answer's matter. Knows no tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from pydantic import Field

from freehold.errors import RequestError
from freehold.server import openai_shapes as shapes
from freehold.server.body import ModelName, refuse
from freehold.server.endpoint import Call, Endpoint, Json
from freehold.server.errors import ApiError
from freehold.server.openai_chat_answer import Completion
from freehold.server.service import whole
from freehold.server.sse import EventStream
from freehold.text.chat import Message
from freehold.text.request import ChatRequest

_JSON_ONLY = "use response_format, which takes json_schema, grammar and regex"
_REFUSED = {
    "audio": "answers are text; leave it out",
    "prediction": "predicted outputs are not supported; leave it out",
    "web_search_options": "this server searches nothing; offer a search of your own under `tools`",
    "functions": "use `tools`",
    "function_call": "use `tool_choice`",
    "chat_template": "templates are programs and come with the model only; chat_template_kwargs sets its options",
    "documents": "put documents into a message, or offer a tool that finds them",
    "continue_final_message": "an answer always begins a turn of its own; leave it out",
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar", "grammar"), _JSON_ONLY),
    **dict.fromkeys(("structured_outputs", "json_schema"), _JSON_ONLY),
}


class ChatBody(shapes.SamplingFields):
    """What POST /v1/chat/completions takes."""

    model: ModelName
    messages: list[dict[str, Any]] = Field(
        min_length=1, description="The conversation, oldest message first; text only."
    )
    max_completion_tokens: int | None = Field(None, ge=1, description="Reasoning included; cut to the room there is.")
    max_tokens: int | None = Field(None, ge=1, description="The older name of max_completion_tokens.")
    reasoning_effort: str | None = Field(None, max_length=64, description="What the model's format knows: low to high.")
    logprobs: bool | None = Field(None, description="Of the visible answer's tokens; reasoning and calls have none.")
    top_logprobs: int | None = Field(None, ge=0, le=shapes.MAX_TOP_LOGPROBS)
    stream: bool | None = None
    stream_options: shapes.StreamOptions | None = None
    response_format: dict[str, Any] | None = Field(
        None,
        description="text, json_object, json_schema, grammar (Lark) or regex; binds the answer, not reasoning.",
    )
    tools: list[dict[str, Any]] | None = Field(None, max_length=shapes.MAX_TOOLS)
    tool_choice: str | dict[str, Any] | None = Field(
        None, description="auto, none, required, or an object that names a tool or those allowed."
    )
    parallel_tool_calls: bool | None = Field(None, description="Several calls in one turn, where the format can.")
    enforce_tools: bool | None = Field(None, description="false leaves the form of calls to the model.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Options of the model's chat format.")
    modalities: list[Literal["text"]] | None = None
    # Accepted because every client sends them; they have no meaning on a server of one's own.
    service_tier: Literal["auto", "default"] | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


async def create(call: Call) -> Json | EventStream:
    """Answer a conversation."""
    body: ChatBody = call.body
    request = read_request(body, call.namespace)
    n = body.n or 1
    ticket = await call.accept(body.model, request)
    answer = Completion(ticket, request.tools, n)
    if not body.stream:
        return Json(answer.whole(await whole(ticket, n)))
    return EventStream(answer.pieces(shapes.wants_usage(body.stream_options)), partial(shapes.failure, call.request_id))


def read_request(body: ChatBody, namespace: str) -> ChatRequest:
    """The internal form of a body. Raises ApiError 400 for what it may not say."""
    refuse(body, _REFUSED)
    limits = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(limits) > 1:
        found = f"max_tokens is {body.max_tokens} and max_completion_tokens {body.max_completion_tokens}"
        raise ApiError(400, f"{found}; expected one of them, the latter", param="max_tokens")
    tools, choice = shapes.read_offer(body.tools, body.tool_choice)
    return ChatRequest(
        messages=tuple(read_message(message, f"messages[{i}]") for i, message in enumerate(body.messages)),
        tools=tools,
        tool_choice=choice,
        parallel_calls=body.parallel_tool_calls is not False,
        answer=shapes.read_response_format(body.response_format),
        enforce=body.enforce_tools is not False,
        reasoning_effort=body.reasoning_effort,
        template_options=body.chat_template_kwargs or {},
        stop=tuple(body.stop or ()),
        max_tokens=next(iter(limits), None),
        sampling=shapes.sampling(body, shapes.n_logprobs(body.logprobs, body.top_logprobs)),
        namespace=namespace,
    )


def read_message(data: Mapping[str, Any], where: str) -> Message:
    """One message, whoever wrote it. Raises ApiError 400 naming the place."""
    if data.get("role") == "function":
        raise ApiError(
            400,
            f"{where}.role is 'function'; expected 'tool', with the tool_call_id of the call it answers",
            param=where,
        )
    message = dict(data)
    if isinstance(parts := message.get("content"), list):
        message["content"] = [_plain_part(part) for part in parts]
    if isinstance(refusal := message.get("refusal"), str) and not message.get("content"):
        message["content"], message["refusal"] = refusal, None  # what was said in place of an answer
    try:
        return Message.from_dict(message, where)
    except RequestError as error:
        raise ApiError(400, str(error), param=where) from None


def _plain_part(part: Any) -> Any:
    """A content part without the hints to caches that we don't have, a refusal as text."""
    if not isinstance(part, Mapping):
        return part
    plain = {key: value for key, value in part.items() if key not in ("cache_control", "prompt_cache_breakpoint")}
    return {"type": "text", "text": plain.get("refusal")} if plain.get("type") == "refusal" else plain


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        "POST",
        "/v1/chat/completions",
        create,
        "Answer a conversation",
        "OpenAI",
        body=ChatBody,
        answers=("application/json", "text/event-stream"),
        statuses=(404, 429, 503, 504),
    ),
)
