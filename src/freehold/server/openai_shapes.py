"""What OpenAI's protocols have in common: fields of a request to the internal form, events to the wire.

Owns sampling fields, tools and the choice among them, response formats, usage and log-probabilities. Tools, choices and
formats are read in the nested spelling of Chat Completions and in the flat one of Responses alike; the protocols of
others bring theirs into this shape. Knows no route and no message.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, NoReturn, cast

from pydantic import BeforeValidator, Field

from freehold.errors import RequestError
from freehold.server.body import Body
from freehold.server.errors import ApiError, error_body
from freehold.server.service import MAX_ANSWERS
from freehold.server.sse import framed
from freehold.text.answer import Event, TokenLogprob
from freehold.text.request import Grammar, NamedTool, ToolChoice
from freehold.text.stream import MAX_STOP_CHARS, MAX_STOPS
from freehold.text.tools import read_functions

MAX_TOOLS = 256
MAX_BIASES = 300
MAX_TOP_LOGPROBS = 20

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON lacks."""

_TOOL_KINDS = ("function", "custom")
_TOKEN_ID = re.compile(r"\d{1,9}", re.ASCII)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
_Stops = Annotated[list[_Stop], Field(max_length=MAX_STOPS)]
StopList = Annotated[_Stops, BeforeValidator(_listed, json_schema_input_type=_Stop | _Stops)]
"""One stop string or a list of them; a list once it is read."""


class SamplingFields(Body):
    """How tokens are chosen, in the words that OpenAI's APIs and the common additions to them use."""

    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False, description="0 is greedy.")
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False, description="1 is off; 0 keeps one token.")
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1, description="0 and -1 are off.")
    min_p: float | None = Field(None, ge=0, lt=1, allow_inf_nan=False, description="0 is off.")
    repetition_penalty: float | None = Field(None, gt=0, le=100, allow_inf_nan=False, description="1 is off.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), le=2**64 - 1, description="The same seed gives the same answer.")
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] | None = Field(
        None,
        max_length=MAX_BIASES,
        description="Token ids, as text, and what is added to their logits.",
        json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,9}$"}},
    )
    n: int | None = Field(None, ge=1, le=MAX_ANSWERS, description="Answers to the same request.")
    stop: StopList | None = Field(None, description="Texts that end the answer, and are not part of it.")


class StreamOptions(Body):
    """include_usage: one more chunk at the end, without choices."""

    include_usage: bool | None = None


def wants_usage(options: StreamOptions | None) -> bool:
    """Whether a stream is to end with the numbers."""
    return options is not None and bool(options.include_usage)


_PLAIN = ("temperature", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "seed")
_SMALLEST = 1e-9  # of top_p: keeps the likeliest token and no other, as 0 asks for


def sampling(body: SamplingFields, n_logprobs: int | None = None) -> dict[str, Any]:
    """The fields of core.SamplingParams that a request sets; absent ones are the model's own. Raises ApiError 400."""
    chosen = {name: value for name in _PLAIN if (value := getattr(body, name)) is not None}
    if body.top_p is not None:
        chosen["top_p"] = max(body.top_p, _SMALLEST)
    if body.top_k is not None:
        chosen["top_k"] = max(body.top_k, 0)
    if body.logit_bias:
        chosen["logit_bias"] = {_token_id(key): value for key, value in body.logit_bias.items()}
    if n_logprobs is not None:
        chosen["n_logprobs"] = n_logprobs
    return chosen


def n_logprobs(logprobs: bool | None, top: int | None) -> int | None:
    """SamplingParams.n_logprobs of the two fields. Raises ApiError 400 for alternatives without the rest."""
    if top and not logprobs:
        _fail("top_logprobs", "top_logprobs is set without logprobs", "logprobs true")
    return top or 0 if logprobs else None


def _token_id(key: str) -> int:
    if not _TOKEN_ID.fullmatch(key):
        _fail("logit_bias", f"logit_bias has the key {key[:40]!r}", "token ids, written as text")
    return int(key)


def read_tools(tools: Sequence[Mapping[str, Any]] | None) -> tuple[dict[str, Any], ...]:
    """The tools of a request as ChatRequest holds them, each with a name of its own. Raises ApiError 400."""
    if tools is not None and len(tools) > MAX_TOOLS:
        _fail("tools", f"tools holds {len(tools)} tools", f"at most {MAX_TOOLS}")
    named = (_nested(tool, _TOOL_KINDS, f"tools[{i}]") for i, tool in enumerate(tools or ()))
    read = tuple({"type": kind, kind: _without_nulls(spec)} for kind, spec in named)
    try:
        names = [function.name for function in read_functions(read)]
    except RequestError as error:
        raise ApiError(400, str(error), param="tools") from None
    for i, name in enumerate(names):
        if name in names[:i]:
            _fail("tools", f"tools[{i}] is a second tool named {name[:80]!r}", "one of each name")
    return read


def tool_name(tool: Mapping[str, Any]) -> str:
    """The name of a tool that `read_tools` gave."""
    return cast(str, tool[tool["type"]]["name"])


def custom_names(tools: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The tools whose calls are plain text, not JSON."""
    return frozenset(tool_name(tool) for tool in tools if tool["type"] == "custom")


def read_tool_choice(value: Any) -> ToolChoice:
    """A `tool_choice`; of "allowed_tools" its mode, see `read_offer`. None means "auto". Raises ApiError 400."""
    if value is None or value in ("auto", "none", "required"):
        return cast(ToolChoice, value or "auto")
    if not isinstance(value, Mapping):
        expected = "'auto', 'none', 'required' or an object that names a tool"
        _fail("tool_choice", f"tool_choice is {value!r:.80}", expected)
    kind, spec = _nested(value, (*_TOOL_KINDS, "allowed_tools"), "tool_choice")
    if kind == "allowed_tools":
        if spec.get("mode") not in ("auto", "required"):
            _fail("tool_choice", f"tool_choice has the mode {spec.get('mode')!r:.80}", "'auto' or 'required'")
        return cast(ToolChoice, spec["mode"])
    return NamedTool(_named(spec, "tool_choice"))


def read_offer(tools: Sequence[Mapping[str, Any]] | None, choice: Any) -> tuple[tuple[dict[str, Any], ...], ToolChoice]:
    """The tools a model may call and the choice among them. Raises ApiError 400, also for a choice of none offered."""
    offered, chosen = read_tools(tools), read_tool_choice(choice)
    names = {tool_name(tool) for tool in offered}
    if isinstance(choice, Mapping) and choice["type"] == "allowed_tools":
        allowed = _allowed_names(choice)
        for name in allowed:
            _must_be_offered(name, names)
        offered = tuple(tool for tool in offered if tool_name(tool) in allowed)
    if isinstance(chosen, NamedTool):
        _must_be_offered(chosen.name, names)
    elif chosen == "required" and not offered:
        _fail("tool_choice", "tool_choice is 'required', but there are no tools", "some under `tools`")
    return offered, chosen


def _allowed_names(choice: Mapping[str, Any]) -> set[str]:
    _, spec = _nested(choice, ("allowed_tools",), "tool_choice")
    tools = spec.get("tools")
    if not isinstance(tools, list) or not tools:
        _fail("tool_choice", "tool_choice allows no tools", "a list of tools by name")
    wheres = (f"tool_choice.tools[{i}]" for i in range(len(tools)))
    return {_named(_nested(tool, _TOOL_KINDS, where)[1], where) for tool, where in zip(tools, wheres, strict=True)}


def _must_be_offered(name: str, offered: set[str]) -> None:
    if name not in offered:
        near = difflib.get_close_matches(name, offered, n=1)
        expected = f"a name under `tools`, like {near[0]!r}" if near else "a name under `tools`"
        _fail("tool_choice", f"tool_choice names {name[:80]!r}, which is not among the tools", expected)


def read_response_format(data: Mapping[str, Any] | None, where: str = "response_format") -> Grammar | None:
    """What the visible answer must be; None where it is free. Raises ApiError 400 naming the place.

    Beside OpenAI's text, json_object, json_schema and grammar (Lark) there is {"type": "regex", "regex": "..."}.
    """
    if data is None:
        return None
    kind = data.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Grammar("json", where=where)
    if kind == "json_schema":
        return _read_json_schema(data, where)
    if kind in ("grammar", "regex"):
        if not isinstance(data.get(kind), str):
            _fail(where, f"{where}.{kind} is missing", "the source, as text")
        return Grammar("lark" if kind == "grammar" else "regex", data[kind], where=where)
    expected = "'text', 'json_object', 'json_schema', 'grammar' or 'regex'"
    _fail(f"{where}.type", f"{where}.type is {kind!r:.80}", expected)


def _read_json_schema(data: Mapping[str, Any], where: str) -> Grammar:
    _, spec = _nested(data, ("json_schema",), where)
    schema = spec.get("schema")
    if not isinstance(schema, (dict, bool)):
        _fail(where, f"{where} has no schema", "a JSON schema under 'schema'")
    strict = spec.get("strict")
    if not isinstance(strict, (bool, type(None))):
        _fail(where, f"{where} is strict: {strict!r:.80}", "true or false")
    return Grammar("json_schema", schema, strict=bool(strict), where=f"{where}.schema")


def usage(finish: Event | Sequence[Event]) -> dict[str, Any]:
    """The tokens of one answer, or of all answers to one prompt, which counts once; of their "finish" events."""
    finishes = [finish] if isinstance(finish, Event) else finish
    return _usage(
        finishes[0].n_prompt,
        min(event.n_cached for event in finishes),
        sum(event.n_generated for event in finishes),
        sum(event.n_reasoning for event in finishes),
    )


def summed(usages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The usage of several prompts."""
    return _usage(
        sum(each["prompt_tokens"] for each in usages),
        sum(each["prompt_tokens_details"]["cached_tokens"] for each in usages),
        sum(each["completion_tokens"] for each in usages),
        sum(each["completion_tokens_details"]["reasoning_tokens"] for each in usages),
    )


def _usage(n_prompt: int, n_cached: int, n_generated: int, n_reasoning: int) -> dict[str, Any]:
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_generated,
        "total_tokens": n_prompt + n_generated,
        "prompt_tokens_details": {"cached_tokens": n_cached},
        "completion_tokens_details": {"reasoning_tokens": n_reasoning},
    }


def logprob_items(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Tokens as Chat Completions and Responses show them. `bytes` are exact where `token` cannot be."""
    return [
        {**_token(each.raw, each.logprob), "top_logprobs": [_token(raw, logprob) for _, raw, logprob in each.top]}
        for each in logprobs
    ]


def _token(raw: bytes, logprob: float) -> dict[str, Any]:
    return {"token": raw.decode("utf-8", "replace"), "logprob": max(logprob, LOWEST_LOGPROB), "bytes": list(raw)}


def failure(request_id: str, error: ApiError) -> bytes:
    """What a stream says when it breaks off."""
    return framed(error_body(error, "openai", request_id))


@cache
def fingerprint(model: str) -> str:
    """The same as long as model and version are."""
    from importlib.metadata import PackageNotFoundError, version  # slow, and needed once

    try:
        ours = version("freehold")
    except PackageNotFoundError:  # run from its sources
        ours = ""
    return f"fp_{hashlib.sha256(f'{ours}/{model}'.encode()).hexdigest()[:10]}"


def _nested(data: Any, kinds: Sequence[str], where: str) -> tuple[str, Mapping[str, Any]]:
    """The type of an object and what it says of it: under the type's name, or beside "type"."""
    if not isinstance(data, Mapping):
        _fail(where, f"{where} is {data!r:.80}", "an object")
    kind = data.get("type")
    if not isinstance(kind, str) or kind not in kinds:
        _fail(f"{where}.type", f"{where}.type is {kind!r:.80}", " or ".join(map(repr, kinds)))
    spec = data.get(kind, {key: value for key, value in data.items() if key != "type"})
    if not isinstance(spec, Mapping):
        _fail(f"{where}.{kind}", f"{where}.{kind} is {spec!r:.80}", "an object")
    return kind, spec


def _without_nulls(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if value is not None}


def _named(spec: Mapping[str, Any], where: str) -> str:
    name = spec.get("name")
    if not isinstance(name, str):
        _fail(where, f"{where} names no tool", "its name, as text")
    return name


def _fail(param: str, found: str, expected: str) -> NoReturn:
    raise ApiError(400, f"{found}; expected {expected}", param=param)
