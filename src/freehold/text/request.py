"""What is asked of a model that chats: the one internal form of every protocol's request, and the seam to tokens.

Owns ChatRequest with its limits, and the ChatFormat protocol: a format renders a request to ids, says which grammar
binds the answer, and makes the parser of what the model answers. Knows no protocol and no tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from freehold.text.answer import AnswerParser
from freehold.text.chat import Message

GrammarKind = Literal["json", "json_schema", "regex", "lark"]


@dataclass(frozen=True)
class Grammar:
    """What a text must be: any JSON object, JSON of a schema, or a text of a regular expression or Lark grammar.

    definition: the schema, or the source text; None for "json". strict: a JSON Schema keyword that cannot be enforced
    is refused; otherwise it is left to the model. where: how errors name the grammar, as in "tools[0] (get_weather)".
    """

    kind: GrammarKind
    definition: Mapping[str, Any] | bool | str | None = None
    strict: bool = True
    where: str = "answer"


@dataclass(frozen=True)
class NamedTool:
    """A tool choice: this tool and no other must be called."""

    name: str


ToolChoice = Literal["auto", "none", "required"] | NamedTool


@dataclass(frozen=True)
class ChatRequest:
    """A conversation to be answered, oldest message first, and the conditions.

    tools: OpenAI tool objects, {"type": "function", "function": {"name", "description", "parameters", "strict"}}, or
    {"type": "custom", "custom": {"name", "description", "format"}} for a tool whose call is plain text. Whether the
    model may, must or must not call them is `tool_choice`; `parallel_calls` allows several calls in one turn, where the
    format can. `answer` binds the visible answer, never the reasoning. `enforce` False leaves the form of calls to the
    model; a choice and an answer's grammar hold all the same. reasoning_effort None means `default_effort` for a format
    that knows efforts, then what template_options say. stop strings end the answer and are not part of it. max_tokens
    None means as many as the context holds; more than it holds is cut to it. sampling: fields of core.SamplingParams by
    name; absent ones take the model's own. namespace: only requests of one namespace share cached prefixes and
    remembered turns.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: ToolChoice = "auto"
    parallel_calls: bool = True
    answer: Grammar | None = None
    enforce: bool = True
    reasoning_effort: str | None = None
    default_effort: str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    namespace: str = ""


class ChatFormat(Protocol):
    """How one family of models writes conversations. `tools` are OpenAI tool objects; `options` are the format's own.

    Rendering raises RequestError for an option the format lacks, and TemplateError where it cannot render.
    """

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer whatever the model's files say."""
        ...

    @property
    def sampling(self) -> Mapping[str, float]:
        """SamplingParams by name, where its publisher recommends the same for every model that speaks it."""
        ...

    def effort(self, options: Mapping[str, Any]) -> str | None:
        """How hard a rendering with these options tells the model to think; None for a format that does not say.

        Raises RequestError for an effort that the format does not know.
        """
        ...

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> list[int]:
        """The prompt's token ids."""
        ...

    def render_text(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> str:
        """The prompt as text, control tokens by name."""
        ...

    def parser(self, *, tools: Sequence[Mapping[str, Any]] | None = None, prompt: Sequence[int] = ()) -> AnswerParser:
        """A parser for the answer to `prompt`, the end of which is the generation prompt and may open a thought."""
        ...

    def grammar(self, request: ChatRequest, prompt: Sequence[int] = ()) -> str | None:
        """The Lark grammar, in llguidance's dialect, of everything the model may say to `request`, from the first token
        after `prompt`, which is the request rendered, to the token that ends the answer; None where anything goes.

        Raises RequestError for a grammar or tool choice that cannot be enforced, naming tool, path and keyword.
        """
        ...
