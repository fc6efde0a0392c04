"""Ollama's /api/chat and /api/generate: their fields to a ChatRequest.

Owns what the fields mean here and which are refused. As everywhere in this server nothing is cut to fit: a client whose
`num_ctx` is larger than the loaded context is told so in a header, as it is of options that have no meaning here.
Answers are made in ollama_answer.py, lists of models in ollama_models.py.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from freehold.errors import RequestError
from freehold.prepared import RawRequest
from freehold.server import ollama_models
from freehold.server.arguments import as_text
from freehold.server.body import Body, ModelName, refuse
from freehold.server.endpoint import Call, Endpoint, Json
from freehold.server.errors import ApiError, error_body
from freehold.server.ollama_answer import RAW_ARGUMENTS, Answer, timestamp
from freehold.server.ollama_models import way_to_think
from freehold.server.openai_shapes import MAX_TOP_LOGPROBS, StopList, n_logprobs, read_tools
from freehold.server.sse import EventStream, dumps
from freehold.server.tokens import encoded, leased
from freehold.text.chat import Message
from freehold.text.request import ChatRequest, Grammar

LEVELS = ("low", "medium", "high")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_MAX_KEEP_ALIVE = 1e9  # seconds; beyond, there are no dates
_DURATION = re.compile(r"-?(\d{1,9}(\.\d{1,9})?(ns|us|µs|ms|s|m|h))+|-?\d{1,9}", re.ASCII)
_PART = re.compile(r"([\d.]+)(ns|us|µs|ms|s|m|h)", re.ASCII)


def _whole(value: Any) -> Any:
    """Clients in JavaScript and Home Assistant write 8192.0 for 8192."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Level = Annotated[str, Field(json_schema_extra={"enum": list(LEVELS)})]
_Format = Annotated[str, Field(json_schema_extra={"enum": ["", "json"]})]
_Duration = Annotated[str, Field(json_schema_extra={"pattern": f"^({_DURATION.pattern})$"})]
_WHOLE = BeforeValidator(_whole)


class Options(Body):
    """How tokens are chosen. What Ollama has besides, hardware settings above all, is ignored and named in a header."""

    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False, description="0 is greedy.")
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1), _WHOLE] | None = Field(None, description="0 and -1 are off.")
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False, description="1 is off.")
    min_p: float | None = Field(None, ge=0, lt=1, allow_inf_nan=False, description="0 is off.")
    repeat_penalty: float | None = Field(None, gt=0, le=100, allow_inf_nan=False, description="1 is off.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    seed: Annotated[int, Field(ge=-(2**63), le=2**64 - 1), _WHOLE] | None = Field(
        None, description="-1 is another one every time."
    )
    num_predict: Annotated[int, Field(ge=-2), _WHOLE] | None = Field(
        None, description="Tokens at most; 0 and below: what the context holds."
    )
    num_ctx: Annotated[int, Field(ge=1), _WHOLE] | None = Field(
        None, description="A request cannot change the context that is loaded."
    )
    stop: StopList | None = Field(None, description="Texts that end the answer, and are not part of it.")


class _Asking(Body):
    """What both endpoints take."""

    model: ModelName
    stream: bool | None = Field(None, description="Lines of JSON as they come, which is the default, or one object.")
    format: _Format | dict[str, Any] | None = Field(None, description='"json", or a JSON schema; binds the answer.')
    options: Options | None = None
    think: bool | _Level | None = Field(None, description="true, false, low, medium or high.")
    keep_alive: Annotated[float, Field(ge=-1e9, le=1e9)] | _Duration | None = Field(
        None, description='How long the model stays once it is idle: seconds, or text like "5m"; negative is for ever.'
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    @property
    def chosen(self) -> Options:
        """The options, all of them unset where there are none."""
        return self.options or Options.model_validate({})


class ChatBody(_Asking):
    """What POST /api/chat takes. Without messages it loads the model."""

    messages: list[dict[str, Any]] | None = Field(
        None, description="The conversation, oldest message first; text only."
    )
    tools: list[dict[str, Any]] | None = None


class GenerateBody(_Asking):
    """What POST /api/generate takes. Without a prompt it loads the model."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = Field(None, description="The prompt is all there is: no template, control tokens by name.")
    images: list[Any] | None = Field(None, description="Refused: text is all this runtime reads.")
    suffix: str | None = Field(None, description="Refused.")
    template: str | None = Field(None, description="Refused: templates come with the model only.")
    context: list[int] | None = Field(None, description="Refused: /api/chat takes a conversation.")


_REFUSED = {
    "images": "text is all this runtime reads",
    "suffix": "filling in the middle is not supported; leave it out",
    "template": "templates are programs and come with the model only; use raw to write the whole prompt",
    "context": "the ids of a conversation are not taken back; send its messages to /api/chat",
}


async def chat(call: Call) -> Json | EventStream:
    """Answer a conversation."""
    body: ChatBody = call.body
    began = time.perf_counter_ns()
    if not body.messages:
        return await _load(call, {"message": {"role": "assistant", "content": ""}})
    messages = tuple(_message(message, f"messages[{i}]") for i, message in enumerate(body.messages))
    tools = read_tools([{"type": "function", **tool} for tool in body.tools or ()])
    return await _answered(call, "chat", await _request(call, messages, tools), began)


async def generate(call: Call) -> Json | EventStream:
    """Answer a prompt, through the model's chat template or, with `raw`, as it stands."""
    body: GenerateBody = call.body
    began = time.perf_counter_ns()
    refuse(body, _REFUSED)
    if not body.prompt:
        return await _load(call, {"response": ""})
    if body.raw:
        return await _answered(call, "generate", await _raw_request(call, body.prompt), began)
    system = (Message("system", body.system),) if body.system else ()
    request = await _request(call, (*system, Message("user", body.prompt)))
    return await _answered(call, "generate", request, began)


async def _answered(
    call: Call, kind: Literal["chat", "generate"], request: ChatRequest | RawRequest, began: int
) -> Json | EventStream:
    body: _Asking = call.body
    seconds = _keep_alive(body.keep_alive)
    ticket = await call.accept(body.model, request)
    answer = Answer(kind, body.model, ticket, began)
    if seconds is not None:
        call.service.pool.keep(ticket.model, seconds)
    _warn(call, ticket.model)
    if body.stream is False:
        return Json(await answer.whole())
    failure = partial(_failure, call.request_id)
    # A blank before the next line is nothing to a reader of JSON, and life to a connection that waits.
    return EventStream(answer.pieces(), failure, media_type="application/x-ndjson", keep_alive=b" ")


async def _load(call: Call, said: Mapping[str, Any]) -> Json:
    """A request that says nothing loads the model, or unloads it if it is to be kept for no time."""
    body: _Asking = call.body
    pool = call.service.pool
    seconds = _keep_alive(body.keep_alive)
    if seconds == 0:
        pool.keep(body.model, 0)
        card = pool.card(body.model)
        if card.loaded and card.expires is None:
            raise ApiError(403, f"{card.name} is kept in memory by the server's own settings", param="keep_alive")
    else:
        async with leased(call, body.model) as lease:
            if seconds is not None:
                pool.keep(lease.name, seconds)
            _warn(call, lease.name)
    head = {"model": body.model, "created_at": timestamp(time.time())}
    return Json({**head, **said, "done": True, "done_reason": "unload" if seconds == 0 else "load"})


async def _request(call: Call, messages: tuple[Message, ...], tools: tuple[Mapping[str, Any], ...] = ()) -> ChatRequest:
    body: _Asking = call.body
    effort, template_options = await _thinking(call)
    options = body.chosen
    return ChatRequest(
        messages=messages,
        tools=tools,
        answer=_grammar(body.format),
        reasoning_effort=effort,
        template_options=template_options,
        stop=tuple(options.stop or ()),
        max_tokens=_max_tokens(options),
        sampling=_sampling(body),
        namespace=call.namespace,
    )


async def _raw_request(call: Call, prompt: str) -> RawRequest:
    """A prompt that the client has put through a template itself: control tokens by name are control tokens."""
    body: GenerateBody = call.body
    for field in ("system", "think", "format"):
        if getattr(body, field):
            raise ApiError(400, f"{field} is set beside raw, which leaves out the chat format it needs", param=field)
    options = body.chosen
    async with leased(call, body.model) as lease:
        ids = await asyncio.to_thread(encoded, lease.model, prompt, add_bos=True, special=True)
    return RawRequest(ids, tuple(options.stop or ()), _max_tokens(options), _sampling(body), namespace=call.namespace)


def _message(data: Mapping[str, Any], where: str) -> Message:
    """One message in Ollama's shape. Raises RequestError naming the place."""
    message = {"content": "", **data}  # clients leave an empty one out
    if message.pop("images", None):
        raise RequestError(f"{where} has images; text is all this runtime reads")
    tool_name = message.pop("tool_name", None)
    if tool_name is not None:
        message["name"] = tool_name
    if isinstance(calls := message.get("tool_calls"), list):
        message["tool_calls"] = [_call(call) for call in calls]
    return Message.from_dict(message, where)


def _call(data: Any) -> Any:
    """A call in the shape of all others. What is not one is left for Message to refuse."""
    if not isinstance(data, Mapping) or not isinstance(function := data.get("function"), Mapping):
        return data
    function = {key: value for key, value in function.items() if key != "index"}
    arguments = function.get("arguments", {})
    if isinstance(arguments, dict):
        arguments = as_text(arguments, RAW_ARGUMENTS)
    return {**data, "function": {**function, "arguments": arguments}}


async def _thinking(call: Call) -> tuple[str | None, dict[str, Any]]:
    """The reasoning effort and the template's options that `think` asks for.

    A format with levels takes true as its own, and is told "none" for false, which gpt-oss takes as low: it cannot be
    told not to think. One with a switch takes a level as true. Asking a model to think that cannot is refused.
    """
    body: _Asking = call.body
    think = body.think
    if isinstance(think, str) and think not in LEVELS:
        raise ApiError(400, f"think is {think[:80]!r}; expected true, false, {', '.join(LEVELS)}", param="think")
    if think is None:
        return None, {}
    async with leased(call, body.model) as lease:
        name, chat_format = lease.name, lease.model.chat_format
    way = None if chat_format is None else await asyncio.to_thread(way_to_think, chat_format)
    if way == "levels":
        return think if isinstance(think, str) else None if think else "none", {}
    if way == "switch":
        return None, {"enable_thinking": bool(think)}
    if think:
        raise ApiError(400, f"{name} does not support thinking; leave think out", param="think")
    return None, {}


def _keep_alive(value: float | str | None) -> float | None:
    """Seconds, negative for ever; at most those of 30 years. Raises ApiError 400 for text that is no duration."""
    if not isinstance(value, str):
        return value
    if not _DURATION.fullmatch(value):
        raise ApiError(400, f"keep_alive is {value[:40]!r}; expected seconds, or text like '5m'", param="keep_alive")
    parts = _PART.findall(value)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts) if parts else float(value.lstrip("-"))
    return -seconds if value.startswith("-") else min(seconds, _MAX_KEEP_ALIVE)


def _grammar(format: str | dict[str, Any] | None) -> Grammar | None:
    if not format and not isinstance(format, dict):
        return None
    if isinstance(format, dict):
        return Grammar("json_schema", format, where="format")
    if format != "json":
        raise ApiError(
            400, f"format is {format[:80]!r}; expected 'json' or a JSON schema, as an object", param="format"
        )
    return Grammar("json", where="format")


def _max_tokens(options: Options) -> int | None:
    return options.num_predict if options.num_predict is not None and options.num_predict > 0 else None


def _sampling(body: _Asking) -> dict[str, Any]:
    options = body.chosen
    chosen: dict[str, Any] = {
        "temperature": options.temperature,
        "top_k": None if options.top_k is None else max(options.top_k, 0),
        "top_p": options.top_p,
        "min_p": options.min_p,
        "repetition_penalty": options.repeat_penalty,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "seed": None if options.seed == -1 else options.seed,
        "n_logprobs": n_logprobs(body.logprobs, body.top_logprobs),
    }
    return {key: value for key, value in chosen.items() if value is not None}


def _warn(call: Call, name: str) -> None:
    """Tell the client, in a header, what its request said in vain."""
    options = call.body.chosen
    if options.ignored:
        call.warnings.append(f"options ignored: {', '.join(options.ignored)}")
    context = call.service.pool.card(name).context
    if options.num_ctx is not None and context is not None and options.num_ctx > context:
        call.warnings.append(f"num_ctx is {options.num_ctx}, but {context} tokens is the context that is loaded")


def _failure(request_id: str, error: ApiError) -> bytes:
    return dumps(error_body(error, "ollama", request_id)) + b"\n"


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        "POST",
        "/api/chat",
        chat,
        "Answer a conversation",
        "Ollama",
        body=ChatBody,
        answers=("application/x-ndjson", "application/json"),
        statuses=(403, 404, 429, 503, 504),
    ),
    Endpoint(
        "POST",
        "/api/generate",
        generate,
        "Answer a prompt",
        "Ollama",
        body=GenerateBody,
        answers=("application/x-ndjson", "application/json"),
        statuses=(403, 404, 429, 503, 504),
    ),
    *ollama_models.ENDPOINTS,
)
