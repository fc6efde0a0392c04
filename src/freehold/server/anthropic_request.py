"""A request to Anthropic's Messages API: its fields, and what each of them means to us.

Owns the bodies, declared, and their translation to a ChatRequest: tools, choices, the form of the answer, and how much
thinking is asked for. The conversation itself is read in `anthropic_messages`. Knows no headers and no endpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from freehold.server.anthropic_messages import AnyMessage, Texts, has_redacted, read_messages, text_of
from freehold.server.anthropic_stream import ThinkingDisplay
from freehold.server.body import Body, ModelName, Part
from freehold.server.errors import ApiError
from freehold.server.openai_shapes import read_tools
from freehold.text.chat import Message
from freehold.text.request import ChatRequest, Grammar, NamedTool, ToolChoice
from freehold.text.stream import MAX_STOPS

_EFFORTS = {"xhigh": "high", "max": "high"}  # the others are ours by name
_BUDGETS = ((4096, "low"), (16384, "medium"))  # thinking tokens below which an effort is meant; from there on, high


def _own_tool(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in (None, "custom"):
        raise PydanticCustomError(
            "tool_type",
            "its type is {kind}, which only Anthropic's own service has; expected a tool that the client runs: name, "
            "input_schema, and type 'custom' or none",
            {"kind": str(kind)[:80]},
        )
    return value


class Tool(Part):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    input_schema: dict[str, Any] = Field(description="JSON Schema of the tool's input, an object.")
    strict: bool | None = Field(default=None, description="Refuse a schema of which a keyword cannot be enforced.")
    eager_input_streaming: bool | None = Field(
        default=None, description="Send the input as it is generated; by default it is sent when it is complete."
    )
    input_examples: list[dict[str, Any]] | None = Field(default=None, description="Not shown to the model.")


class ToolChoiceBody(Part):
    """Whether tools may, must or must not be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(default=None, description="The tool that must be called, for the type tool.")
    disable_parallel_tool_use: bool | None = None


class Thinking(Part):
    """How hard to think, and what of it to show. disabled: little, and nothing is shown."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = Field(
        default=None,
        ge=1024,
        description="Taken as an effort: below 4096 low, below 16384 medium, else high. It is no limit.",
    )
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Part):
    """What the visible answer must be."""

    type: Literal["json_schema"]
    definition: dict[str, Any] = Field(alias="schema", description="JSON Schema of the answer.")


class OutputConfig(Part):
    """How hard to think, and the form of the answer."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None, description="Goes before thinking.budget_tokens; xhigh and max mean high."
    )
    format: OutputFormat | None = None


class CountBody(Body):
    """What a prompt is made of."""

    model: ModelName
    messages: list[AnyMessage] = Field(min_length=1, max_length=100_000)
    system: Texts | None = None
    tools: list[Annotated[Tool, BeforeValidator(_own_tool)]] | None = None
    tool_choice: ToolChoiceBody | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = Field(default=None, description="Older name of output_config.format.")
    cache_control: dict[str, Any] | None = Field(default=None, description="Accepted; prefixes are always cached.")
    mcp_servers: list[Any] | None = Field(default=None, max_length=0, description="Not supported.")


class MessagesBody(CountBody):
    """A request for one answer."""

    max_tokens: int = Field(ge=1, description="Of the answer, thinking included; cut to what the context has room for.")
    stop_sequences: list[str] | None = Field(default=None, max_length=MAX_STOPS)
    stream: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=2**31 - 1, description="0 is no limit.")
    metadata: dict[str, Any] | None = Field(default=None, description="Accepted, without effect.")
    service_tier: str | None = Field(default=None, description="Accepted, without effect.")
    container: None = Field(default=None, description="Not supported.")


def read_request(body: CountBody, *, system: str, namespace: str) -> ChatRequest:
    """The request in our form; `system` is what `system_of` gave, perhaps without a line of it.

    Raises ApiError and RequestError 400 for what only the fields together show to be wrong.
    """
    if body.messages[-1].role == "assistant":
        raise ApiError(
            400,
            "the last message is the assistant's; prefill is not supported: the conversation must end with a user "
            "message",
            param="messages",
        )
    messages = read_messages(body.messages)
    choice, parallel = _tool_choice(body)
    return ChatRequest(
        messages=(Message("system", system), *messages) if system else tuple(messages),
        tools=_tools(body),
        tool_choice=choice,
        parallel_calls=parallel,
        answer=_answer(body),
        default_effort=_effort(body),  # a wish, which Claude Code always has, whatever the model
        namespace=namespace,
        **(_conditions(body) if isinstance(body, MessagesBody) else {}),
    )


def system_of(body: CountBody) -> str:
    """The system prompt, its blocks joined."""
    return text_of(body.system or "")


def left_out(body: CountBody) -> list[str]:
    """What of the request the model will not see, for the client to know."""
    warnings = []
    if has_redacted(body.messages):
        warnings.append("redacted_thinking can only be read by Anthropic and was left out")
    if any(tool.input_examples for tool in body.tools or ()):
        warnings.append("input_examples are not shown to the model")
    return warnings


def thinking_display(body: CountBody) -> ThinkingDisplay:
    """What of the thinking is shown. A request that does not say gets all of it."""
    if body.thinking is None:
        return "shown"
    if body.thinking.type == "disabled":
        return "hidden"
    return "omitted" if body.thinking.display == "omitted" else "shown"


def eager_tools(body: CountBody, *, by_default: bool) -> frozenset[str]:
    """The tools whose input is to be sent as it is generated."""
    wanted = ((tool.name, tool.eager_input_streaming) for tool in body.tools or ())
    return frozenset(name for name, eager in wanted if (by_default if eager is None else eager))


def _tools(body: CountBody) -> tuple[Mapping[str, Any], ...]:
    return read_tools([_function(tool) for tool in body.tools or ()])


def _function(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema, "strict": bool(tool.strict)}
    if tool.description:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _tool_choice(body: CountBody) -> tuple[ToolChoice, bool]:
    """The choice, and whether several calls may come at once."""
    choice = body.tool_choice
    if choice is None:
        return "auto", True
    parallel, names = not choice.disable_parallel_tool_use, [tool.name for tool in body.tools or ()]
    if choice.type == "auto" or choice.type == "none":
        return choice.type, parallel
    if not names:
        raise ApiError(400, f"tool_choice.type is {choice.type!r}, but there are no tools; expected some in tools")
    if choice.type == "any":
        return "required", parallel
    if choice.name not in names:
        raise ApiError(400, f"tool_choice.name is {choice.name!r:.80}; expected the name of one of the tools")
    return NamedTool(choice.name), parallel


def _answer(body: CountBody) -> Grammar | None:
    configured = body.output_config.format if body.output_config else None
    if configured is not None and body.output_format is not None:
        raise ApiError(400, "both output_config.format and output_format are given; expected one of them")
    chosen = configured or body.output_format
    where = "output_format" if configured is None else "output_config.format"
    return None if chosen is None else Grammar("json_schema", chosen.definition, where=where)


def _effort(body: CountBody) -> str | None:
    """The effort by name, else what the thinking that is asked for amounts to; None is the model's own."""
    effort = body.output_config.effort if body.output_config else None
    if effort is not None:
        return _EFFORTS.get(effort, effort)
    thinking = body.thinking
    if thinking is not None and thinking.type == "disabled":
        return "none"
    if thinking is None or thinking.type != "enabled" or thinking.budget_tokens is None:
        return None
    budget = thinking.budget_tokens
    return next((name for limit, name in _BUDGETS if budget < limit), "high")


def _conditions(body: MessagesBody) -> dict[str, Any]:
    sampling = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k}
    return {
        "max_tokens": body.max_tokens,
        "stop": tuple(body.stop_sequences or ()),
        "sampling": {name: value for name, value in sampling.items() if value is not None},
    }
