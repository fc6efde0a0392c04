"""Chat templates: a conversation to the token ids its model was trained on.

Owns ChatTemplate: rendering within a budget, errors with the template's line, and keeping content and control apart.
The template writes both into one text; to tell them apart again, control-token texts inside content are broken with a
marker before rendering, and what is still whole afterwards was written by the template itself. The sandbox is in
sandbox.py. Knows nothing of protocols, models or files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from freehold.errors import RequestError, TemplateError, UnsupportedError
from freehold.text.answer_style import AnswerStyle, style_of
from freehold.text.chat import Message
from freehold.text.metering import BUDGET, Budget, OverBudget
from freehold.text.plain_parser import PlainParser
from freehold.text.request import ChatRequest
from freehold.text.tagged_parser import TaggedParser
from freehold.text.template_grammar import tagged_grammar
from freehold.text.template_history import CallShape, call_shape, deeply_sorted, numbered, switched
from freehold.text.template_replay import SampledTurn, Span, edged, located
from freehold.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import jinja2

MAX_SOURCE_CHARS = 128 * 1024
"""Published templates stay under 50,000 characters; compiling one is the step that no budget can interrupt."""

MAX_CHARS = 4_000_000
"""About a million tokens: the longest context any model offers."""

MAX_DEPTH = 100
_RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token")
_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class ChatTemplate:
    """A ChatFormat made of a chat template; thread-safe. Raises TemplateError if `source` does not compile.

    What ends its answers is for the model's files to say. style: how they write thoughts and calls, as far as that is
    known; where nothing is, they are plain text.
    max_seconds: wall-clock limit of one rendering. max_chars: largest conversation, output or value within it.
    """

    stop_ids: frozenset[int] = frozenset()
    sampling: Mapping[str, float] = MappingProxyType({})

    def __init__(
        self, source: str, tokenizer: Tokenizer, *, max_seconds: float = 2.0, max_chars: int = MAX_CHARS
    ) -> None:
        self.source = source
        self._tokenizer = tokenizer
        self._max_seconds = max_seconds
        self._max_chars = max_chars
        # Later formats alone know the developer role; the others drop or refuse what they do not know.
        self._knows_developer = "developer" in source
        self._knows_tools = self._mentions("tools")
        self.style = style_of(source, tokenizer.special_ids)
        self._template = _compile(source)
        self._shape: CallShape | None = None  # found out when the first call is to be rendered

    def effort(self, options: Mapping[str, Any]) -> str | None:
        """The option reasoning_effort of a template that has one; what the others make of theirs is their business."""
        effort = options.get("reasoning_effort") if self._mentions("reasoning_effort") else None
        return effort if isinstance(effort, str) else None

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> list[int]:
        """The prompt's token ids. Text in messages, tools and options never becomes a control token.

        `options` are the template's own, like enable_thinking. Without control-token texts in the content, the ids are
        those of the whole rendered text; a doubled BOS at the start is made one. A turn with `ids` is replayed where
        the template writes what they say; the text stays the same. Raises TemplateError, also for what the template
        refuses, and RequestError for values that are not plain JSON, or an option it never mentions.
        """
        variables = self._variables(messages, add_generation_prompt, tools, options)
        strings: list[str] = [self.source]
        _mapped(variables, strings.append)
        unused = _unused_characters(strings)
        mark = next(unused)
        broken = self._broken(variables, mark)
        text = self._run(broken, mark)
        ids: list[int] = []
        done = 0
        for span in self._replayed(messages, broken, text, mark, unused):
            ids += [*self._encoded(text[done : span.start], mark), *span.ids]
            done = span.stop
        ids += self._encoded(text[done:], mark)
        while len(ids) > 1 and ids[0] == ids[1] == self._tokenizer.bos_id:
            del ids[0]
        return ids

    def render_text(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> str:
        """The prompt as text, for people to read: in it, content and control tokens look the same."""
        return self._run(_mapped(self._variables(messages, add_generation_prompt, tools, options), str))

    def parser(
        self, *, tools: Sequence[Mapping[str, Any]] | None = None, prompt: Sequence[int] = ()
    ) -> TaggedParser | PlainParser:
        """A parser for the answer to `prompt`; where no style of answers is known, all of it is text."""
        if self.style == AnswerStyle():
            return PlainParser(self._tokenizer)
        return TaggedParser(self._tokenizer, self.style, tools, prompt)

    def grammar(self, request: ChatRequest, prompt: Sequence[int] = ()) -> str | None:
        """The grammar of the answer, as ChatFormat says. A schema binds what comes after the thought.

        Raises UnsupportedError where tools must be called and how this model calls them is not known, and where the
        template would leave tools out without a word.
        """
        if request.tool_choice not in ("auto", "none") and self.style.calls is None:
            raise UnsupportedError(
                "tool_choice asks for a call, but how this model writes calls is not known: its answers are read as "
                "plain text; set tool_choice to 'auto' or 'none'"
            )
        if request.tools and request.tool_choice != "none" and not self._knows_tools:
            raise UnsupportedError(
                "the model's chat template has no place for tools, so the model would not see them; send none, or set "
                "tool_choice to 'none'"
            )
        return tagged_grammar(request, self.style, self._tokenizer, prompt)

    def _variables(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        options: Mapping[str, Any],
    ) -> dict[str, Any]:
        options = switched(options, self.source)
        if taken := [name for name in options if name in _RESERVED]:
            raise RequestError(f"the template option {taken[0]!r} is set by the runtime; expected another name")
        if unknown := [name for name in options if not self._mentions(name)]:
            raise RequestError(f"the model's chat template has no option {unknown[0]!r}; leave it out")
        shape = self._call_shape() if any(message.tool_calls for message in messages) else CallShape()
        shaped = [shape.shaped(message) for message in messages]
        if self.style.calls is not None and self.style.calls.numbered:
            numbered(messages, shaped)
            tools = None if tools is None else deeply_sorted(tools)
        for message in shaped:
            if message["role"] == "developer" and not self._knows_developer:
                message["role"] = "system"
        return {
            **options,
            "messages": shaped,
            "tools": None if tools is None else list(tools),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }

    def _call_shape(self) -> CallShape:
        if self._shape is None:  # two threads may both find out: they find the same
            common = {"tools": None, "documents": None, "add_generation_prompt": True}
            self._shape = call_shape(lambda messages: self._run({**common, "messages": messages}))
        return self._shape

    def _mentions(self, name: str) -> bool:
        return re.search(rf"\b{re.escape(name)}\b", self.source) is not None

    def _broken(self, variables: Mapping[str, Any], mark: str) -> dict[str, Any]:
        """The variables with every control-token text in their strings broken by `mark`."""
        break_up = self._tokenizer.controls.break_up
        broken: dict[str, Any] = _mapped(variables, lambda text: break_up(text, mark))
        for message, original in zip(broken["messages"], variables["messages"], strict=True):
            if message["role"] == "assistant" and original["content"]:
                # Templates look for <think> and the like in what the model itself wrote.
                message["content"] = break_up(original["content"], mark, self._tokenizer.tags)
        return broken

    def _encoded(self, text: str, mark: str) -> list[int]:
        ids: list[int] = []
        for piece, id in self._tokenizer.controls.split(text):
            ids += self._tokenizer.encode(piece.replace(mark, "")) if id is None else [id]
        return ids

    def _replayed(
        self, messages: Sequence[Message], broken: Mapping[str, Any], text: str, mark: str, unused: Iterator[str]
    ) -> list[Span]:
        """Where in the rendered `text` sampled turns go; a second rendering, with the turns' edges marked, tells."""
        turns: dict[str, SampledTurn] = {}
        shaped = list(broken["messages"])
        for i, message in enumerate(messages):
            turn = SampledTurn.of(message, self._tokenizer)
            if turn is not None:
                edge = next(unused)
                turns[edge] = turn
                shaped[i] = {**shaped[i], "content": edged(shaped[i]["content"], edge)}
        if not turns:
            return []
        try:
            edged_text = self._run({**broken, "messages": shaped}, mark)
        except TemplateError:  # the text alone rendered well: it is used as it is
            return []
        return located(text, edged_text, turns, mark)

    def _run(self, variables: Mapping[str, Any], mark: str = "") -> str:
        budget = Budget(self._max_seconds, self._max_chars)
        chunks: list[str] = []
        total = 0
        try:
            budget.size([*variables.values()])
        except OverBudget as error:
            raise RequestError(f"the conversation and its tools exceed {self._max_chars} characters") from error
        try:
            context = self._template.new_context({**variables, **self._special_texts(), BUDGET: budget})
            for chunk in self._template.root_render_func(context):
                budget.tick()
                total += len(chunk)
                budget.check(total)
                chunks.append(chunk)
        except Exception as error:  # whatever a template of foreign making can raise
            raise TemplateError(_explained(error, self._template).replace(mark, "")) from error
        return "".join(chunks)

    def _special_texts(self) -> dict[str, str]:
        ids = {"bos_token": self._tokenizer.bos_id, "eos_token": self._tokenizer.eos_id}
        return {name: "" if id is None else self._tokenizer.decode([id]) for name, id in ids.items()}


def _compile(source: str) -> jinja2.Template:
    # Imported here: jinja2 is slow to load, and only a model that chats needs it.
    import jinja2

    from freehold.text.sandbox import Sandbox

    if len(source) > MAX_SOURCE_CHARS:
        raise TemplateError(f"the chat template is {len(source)} characters long; expected at most {MAX_SOURCE_CHARS}")
    try:
        return Sandbox().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the chat template is broken (line {error.lineno}): {error.message}") from error
    except Exception as error:  # Python's own limits on what Jinja generates, such as the nesting of loops
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise TemplateError(f"the chat template cannot be compiled: {reason}") from error


def _explained(error: Exception, template: jinja2.Template) -> str:
    from freehold.text.sandbox import Raised

    line = _line(error.__traceback__, template)
    where = "" if line is None else f" (line {line})"
    if isinstance(error, Raised):
        return f"the chat template refuses this conversation{where}: {error}"
    if isinstance(error, OverBudget):
        return f"the chat template was stopped{where}: {error}"
    if isinstance(error, RecursionError):
        return f"the chat template was stopped{where}: it calls itself too deeply"
    return f"the chat template failed{where}: {type(error).__name__}: {str(error)[:500]}"


def _line(trace: TracebackType | None, template: jinja2.Template) -> int | None:
    """The template's line that was running, from the frames of its compiled code."""
    line = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return line


def _mapped(value: Any, text: Callable[[str], Any], depth: int = 0) -> Any:
    """A copy of plain JSON data with `text` applied to every string, keys included."""
    if isinstance(value, str):
        return text(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if depth > MAX_DEPTH:
        raise RequestError(f"a tool, option or tool call is nested more than {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        return {_mapped(key, text, depth + 1): _mapped(item, text, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(item, text, depth + 1) for item in value]
    raise RequestError(f"a tool or option holds a {type(value).__name__}; expected plain JSON values")


def _unused_characters(strings: Iterable[str]) -> Iterator[str]:
    """Private-use characters that none of `strings` holds. Raises RequestError when there are no more."""
    used = set().union(*strings)
    for chars in _PRIVATE_USE:
        for code in chars:
            if chr(code) not in used:
                yield chr(code)
    raise RequestError("the conversation holds every private-use character of Unicode; expected text")
