"""The grammar of a harmony turn: what the model may say from right after `<|start|>assistant` to the turn's end.

    turn: reasoning and words to the user, as much as it likes, then a call or the answer

Owns which messages a request allows and what binds their bodies; docs/harmony.md describes the messages. The grammar
follows the parser's states: reasoning is free, the answer's schema begins where the answer does, and a call goes to an
offered tool or nowhere. Both places of a recipient are allowed, since models are trained on both. Knows no models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from freehold.errors import RequestError
from freehold.text.grammar_source import rule_body
from freehold.text.harmony_builtins import BUILTINS
from freehold.text.harmony_system import SystemOptions
from freehold.text.harmony_tokens import HarmonyTokens
from freehold.text.request import ChatRequest, Grammar, NamedTool, ToolChoice
from freehold.text.tools import Function, read_functions


@dataclass(frozen=True)
class _Callee:
    """A tool as a header addresses it; `types` are the content types its calls may have, none being always allowed."""

    name: str
    recipient: str
    types: tuple[str, ...]
    arguments: Grammar | None


def turn_grammar(request: ChatRequest, tokens: HarmonyTokens) -> str | None:
    """The Lark grammar of the turn that answers `request`; None where anything goes.

    Raises RequestError for a tool choice that no offered tool meets, and for what cannot be enforced.
    """
    offered = _offered(request)
    called = _chosen(request.tool_choice, offered)
    must_call = request.tool_choice not in ("auto", "none")
    any_call = request.tool_choice == "auto" and not (offered and request.enforce)
    if request.answer is None and not must_call and (any_call or not offered):
        return None
    answer = None if must_call else _body(request.answer)
    bodies = [_body(callee.arguments if request.enforce else None) for callee in called]
    return _Writer(tokens).turn(called, bodies, answer, request.answer is not None)


def _offered(request: ChatRequest) -> list[_Callee]:
    functions = [_function(function) for function in read_functions(request.tools)]
    taken = {callee.name for callee in functions}
    builtins = SystemOptions.of(request.template_options).builtin_tools
    return functions + [callee for callee in _builtins(builtins) if callee.name not in taken]


def _function(function: Function) -> _Callee:
    types = () if function.is_custom else ("json", "code")
    return _Callee(function.name, f"functions.{function.name}", types, function.arguments)


def _builtins(names: Sequence[str]) -> list[_Callee]:
    found = []
    for namespace in (BUILTINS[name] for name in sorted(set(names))):
        if not namespace.functions:
            found.append(_Callee(namespace.name, namespace.name, ("code",), None))
        for function in namespace.functions:
            name = f"{namespace.name}.{function.name}"
            found.append(_Callee(name, name, ("code", "json"), function.arguments))
    return found


def _chosen(choice: ToolChoice, offered: Sequence[_Callee]) -> list[_Callee]:
    """The tools that may be called."""
    if choice == "none":
        return []
    if isinstance(choice, NamedTool):
        named = [callee for callee in offered if callee.name == choice.name]
        if not named:
            names = ", ".join(callee.name for callee in offered) or "none at all"
            raise RequestError(f"tool_choice names {choice.name!r:.80}; expected a tool that is offered: {names:.400}")
        return named
    if choice == "required" and not offered:
        raise RequestError("tool_choice is 'required', but no tools are offered; expected at least one")
    return list(offered)


def _body(grammar: Grammar | None) -> str:
    return "TEXT" if grammar is None else rule_body(grammar)


class _Writer:
    """Writes the rules. Control tokens stand in them by id, so no name and no text can be taken for one."""

    def __init__(self, tokens: HarmonyTokens) -> None:
        self._channel, self._message, self._constrain = (
            f"<[{id}]>" for id in (tokens.channel, tokens.message, tokens.constrain)
        )
        self._return, self._call = f"<[{tokens.return_}]>", f"<[{tokens.call}]>"
        self._next = f'<[{tokens.end}]> <[{tokens.start}]> "assistant"'

    def turn(self, called: Sequence[_Callee], bodies: Sequence[str], answer: str | None, is_bound: bool) -> str:
        """`answer` None: the turn must end in a call. Words before calls are visible, so a bound answer rules them out;
        and where a call must come, a model that would rather answer could go on in words or thoughts for ever."""
        before = "thought?" if answer is None else "thought*" if is_bound else "(thought | words)*"
        ends = [*(["call"] if called else []), *([] if answer is None else ["answer"])]
        rules = [
            f"start: {before} ({' | '.join(ends)})",
            f'thought: {self._channel} "analysis" {self._message} TEXT {self._next}',
            f'words: {self._channel} "commentary" {self._message} TEXT {self._next}',
            "TEXT: /(?s:.*)/",
        ]
        if answer is not None:
            # Models mark an answer in JSON like a call's arguments.
            header = f'{self._channel} "final" {self._type(["json"] if is_bound else [])} {self._message}'
            rules += [f"answer: {header} answer_body {self._return}", f"answer_body: {answer}"]
        if called:
            rules.append(f"call: {' | '.join(f'call_{i}' for i in range(len(called)))}")
        for i, (callee, body) in enumerate(zip(called, bodies, strict=True)):
            rules += [*self._calls(callee, f"call_{i}"), f"call_{i}_body: {body}"]
        return "\n".join(rules)

    def _calls(self, callee: _Callee, name: str) -> list[str]:
        """The recipient may stand in the role, before the channel, or after it. The channel is commentary for functions
        and analysis for built-in tools, but models mix them up: a call that could not be made there would end up as
        reasoning."""
        channel = f'{self._channel} ("commentary" | "analysis")'
        rest = f"{self._type(callee.types)} {self._message} {name}_body {self._call}"
        return [
            f"{name}: {name}_to {channel} {rest} | {channel} {name}_to {rest}",
            f"{name}_to: {_literal(f' to={callee.recipient}')}",
        ]

    def _type(self, types: Sequence[str]) -> str:
        """The content type, marked or not, which a model may leave out."""
        forms = [form for type in types for form in (f'" "? {self._constrain} "{type}"', f'" {type}"')]
        return f"({' | '.join(forms)})?" if forms else ""


def _literal(text: str) -> str:
    """A Lark string: as in JSON, but without DEL."""
    return json.dumps(text).replace("\x7f", "\\u007f")
