"""The grammar of an answer whose thoughts and calls stand between marks: what the model may say after the prompt.

    answer: a thought, where the prompt opened one or the model may, then words, calls, or what the request binds

Owns the same states as tagged_parser, as rules: thinking is free, the answer's schema begins where the answer does, and
a call goes to an offered tool or nowhere. Control tokens stand in the rules by id; a mark that the tokenizer has no
token for is spelled out, and then no free text holds it. Knows no models and no templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from freehold.errors import RequestError
from freehold.text.answer_style import AnswerStyle, CallStyle, Thinking
from freehold.text.grammar_source import rule_body
from freehold.text.pairs_grammar import pair_rules, quoted
from freehold.text.request import ChatRequest, Grammar, NamedTool
from freehold.text.tokenizer import Tokenizer
from freehold.text.tools import Function, read_functions


def tagged_grammar(request: ChatRequest, style: AnswerStyle, tokenizer: Tokenizer, prompt: Sequence[int]) -> str | None:
    """The Lark grammar of the answer to `request`; None where anything goes. `prompt` says where its thought stands.

    Raises RequestError for a tool choice that no offered tool meets, and for what cannot be enforced.
    """
    functions = read_functions(request.tools)
    calls = style.calls
    called = [] if calls is None else _chosen(request, functions)
    must_call = request.tool_choice not in ("auto", "none")
    is_free = request.tool_choice == "auto" and not (functions and request.enforce)
    if request.answer is None and not must_call and (is_free or not functions or calls is None):
        return None
    writer = _Writer(tokenizer, style)
    thought = writer.thought(style.thinking, prompt)
    ends = []
    if called:
        assert calls is not None
        words = request.tool_choice == "auto" and request.answer is None
        ends.append(writer.calls(calls, called, request, words))
    if not must_call:
        ends.append(writer.words() if request.answer is None else rule_body(request.answer))
    return writer.grammar(f"{thought} answer", ends)


def _chosen(request: ChatRequest, functions: Sequence[Function]) -> list[Function]:
    """The tools that may be called."""
    choice = request.tool_choice
    if choice == "none":
        return []
    if isinstance(choice, NamedTool):
        named = [function for function in functions if function.name == choice.name]
        if not named:
            names = ", ".join(function.name for function in functions) or "none at all"
            raise RequestError(f"tool_choice names {choice.name!r:.80}; expected a tool that is offered: {names:.400}")
        return named
    if choice == "required" and not functions:
        raise RequestError("tool_choice is 'required', but no tools are offered; expected at least one")
    return list(functions)


class _Writer:
    """Writes the rules."""

    def __init__(self, tokenizer: Tokenizer, style: AnswerStyle) -> None:
        self._tokenizer = tokenizer
        self._style = style
        self._rules: list[str] = []

    def grammar(self, start: str, ends: Sequence[str]) -> str:
        answer = " | ".join(f"end_{i}" for i in range(len(ends)))
        rules = [f"end_{i}: {end}" for i, end in enumerate(ends)]
        return "\n".join([f"start: {start}", f"answer: {answer}", *rules, *self._rules, "TEXT: /(?s:.*)/"])

    def thought(self, thinking: Thinking | None, prompt: Sequence[int]) -> str:
        """The thought in front of an answer: the rest of one, a whole one or none, or nothing where it is over."""
        is_open = None if thinking is None else thinking.is_open_in(prompt, self._tokenizer)
        if thinking is None or is_open is False:
            return ""
        self._rules.append(f"thinking{self.up_to(thinking.close)}")
        gap = f"/\\n{{0,{thinking.n_behind}}}/" if thinking.n_behind else ""
        if is_open:
            return f"thinking {gap}"
        self._rules.append(rf"thought: /\n?/ {self.literal(thinking.open)} thinking {gap}")
        return "thought?"

    def words(self) -> str:
        """Free text that is no call and no thought."""
        calls, thinking = self._style.calls, self._style.thinking
        marks = [] if calls is None else [calls.open, *filter(None, calls.section)]
        marks += [] if thinking is None else [thinking.open]
        excluded = [f"(?s:.*){_escaped(mark)}(?s:.*)" for mark in marks if mark not in self._tokenizer.special_ids]
        if calls is not None and calls.is_bare:
            excluded.append(r'\s*\{\s*"(name|type)"(?s:.*)')
        self._rules.append(f"WORDS: {' & '.join(['/(?s:.*)/', *(f'~/{pattern}/' for pattern in excluded)])}")
        return "WORDS"

    def calls(self, style: CallStyle, called: Sequence[Function], request: ChatRequest, words: bool) -> str:
        """One call or more. `words`: the model may say something first, where calls have a mark to begin with."""
        for i, function in enumerate(called):
            self._rules.append(f"call_{i}: {self._call(style, function, f'call_{i}', request.enforce)}")
        self._rules.append(f"call: {' | '.join(f'call_{i}' for i in range(len(called)))}")
        if style.is_bare:
            return "call"
        begin, end = style.section
        if words:
            self._rules.append(f"lead{self.up_to(begin or style.open)}")
        lead = "lead" if words else self.literal(begin or style.open)
        mark = self.literal(style.open)
        more = f"({self.literal(style.joint)} {mark} call)*" if request.parallel_calls else ""
        return f"{lead} {mark if begin else ''} call {more} {self.literal(end)}"

    def _call(self, style: CallStyle, function: Function, rule: str, enforce: bool) -> str:
        """A call from behind its opening mark on."""
        name = json.dumps(function.name)[1:-1] if "{" in style.before else function.name
        head = f"{self.literal(style.before.removeprefix(style.open))} {quoted(name)}"
        number = '":" /[0-9]{1,4}/' if style.numbered else ""
        bound = function.arguments if enforce and not function.is_custom else None
        if style.form == "pairs":
            arguments = pair_rules(self, style, rule, None if bound is None else function)
        else:
            arguments = rule_body(bound or Grammar("json"))
        self._rules.append(f"{rule}_arguments: {arguments}")
        return f"{head} {number} {self.literal(style.between)} {rule}_arguments {self.literal(style.behind)}"

    def add(self, rule: str) -> None:
        self._rules.append(rule)

    def up_to(self, mark: str) -> str:
        """What makes a rule's head the rule of any text up to `mark` and of that."""
        id = self._tokenizer.special_ids.get(mark)
        return rf"[lazy]: /(?s:.*){_escaped(mark)}/" if id is None else f": TEXT <[{id}]>"

    def literal(self, text: str) -> str:
        """The text as the template writes it, control tokens by id."""
        pieces = self._tokenizer.controls.split(text)
        return " ".join(quoted(piece) if id is None else f"<[{id}]>" for piece, id in pieces)


def _escaped(text: str) -> str:
    """`text` in a regular expression of Lark, where a slash would end it."""
    return re.escape(text).replace("/", "\\/").replace("\n", "n")
