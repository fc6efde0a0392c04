"""The tools of a request, in OpenAI's objects: checked, and what the arguments of a call must be.

Owns the reading of those objects, which are hostile until checked: sizes, depth, names, plain values. How a tool is
shown to a model is the chat formats' matter, how a grammar is enforced that of grammar_source. Knows no tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from freehold.errors import RequestError
from freehold.text.request import Grammar

MAX_CHARS = 1_000_000
"""Of all tools of a request together, indentation included: twice the longest context of any harmony model."""

MAX_DEPTH = 100
"""Of JSON inside a tool; openai-harmony stops at 127."""

_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
_NAME = re.compile(r"[^\s<|>]{1,256}")


@dataclass(frozen=True)
class Function:
    """A tool that can be called. `parameters` is a JSON schema of plain values, or None if there are none.

    is_custom: the argument is text, which `grammar` may bind, and not JSON. strict: as in Grammar. where: its place in
    the request, as in "tools[0] (get_weather)".
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False
    is_custom: bool = False
    grammar: Grammar | None = None
    where: str = ""

    @property
    def arguments(self) -> Grammar | None:
        """What the arguments of a call must be; None where any text will do.

        Parameters that do not say which type they are describe an object all the same: nothing else can be arguments.
        """
        if self.is_custom:
            return self.grammar
        schema = _NO_ARGUMENTS if self.parameters is None else self.parameters
        if not schema.keys() & {"type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"}:
            schema = {"type": "object", **schema}
        return Grammar("json_schema", schema, self.strict, f"{self.where}.parameters")


def read_functions(tools: Sequence[Mapping[str, Any]] | None) -> tuple[Function, ...]:
    """Check OpenAI tools: {"type": "function", "function": {"name", "description", "parameters", "strict"}}, and
    {"type": "custom", "custom": {"name", "description", "format"}}, whose format is {"type": "text"} or
    {"type": "grammar", "grammar": {"syntax": "lark" or "regex", "definition"}}.

    Raises RequestError naming the place, also for schemas too deep or too large to be shown to a model.
    """
    budget = _Budget()
    return tuple(_read_tool(tool, f"tools[{i}]", budget) for i, tool in enumerate(tools or ()))


def _read_tool(data: Any, where: str, budget: _Budget) -> Function:
    kind = data.get("type", "function") if isinstance(data, Mapping) else None
    if kind not in ("function", "custom"):
        found = f"of type {kind!r:.80}" if isinstance(data, Mapping) else f"a {type(data).__name__}"
        _fail(f"{where} is {found}", 'an object of type "function" or "custom"')
    tool = data.get(kind)
    if not isinstance(tool, Mapping):
        _fail(f"{where}.{kind} is a {type(tool).__name__}", "an object with a name")
    name, description = tool.get("name"), tool.get("description")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        _fail(f"{where}.{kind}.name is {name!r:.80}", "1 to 256 characters without blanks, <, | and >")
    if not isinstance(description, (str, type(None))):
        _fail(f"{where}.{kind}.description is a {type(description).__name__}", "text")
    budget.spend(len(name) + len(description or ""), where)
    read = _read_custom if kind == "custom" else _read_function
    return read(tool, Function(name, description or "", where=f"{where} ({name:.64})"), f"{where}.{kind}", budget)


def _read_function(tool: Mapping[str, Any], named: Function, where: str, budget: _Budget) -> Function:
    parameters, strict = tool.get("parameters"), tool.get("strict")
    if not isinstance(parameters, (Mapping, type(None))):
        _fail(f"{where}.parameters is a {type(parameters).__name__}", "a JSON schema, which is an object")
    if not isinstance(strict, (bool, type(None))):
        _fail(f"{where}.strict is {strict!r:.80}", "true or false")
    return replace(named, parameters=budget.plain(parameters, f"{where}.parameters"), strict=bool(strict))


def _read_custom(tool: Mapping[str, Any], named: Function, where: str, budget: _Budget) -> Function:
    grammar = _read_format(tool.get("format"), f"{where}.format", named.where)
    if grammar is not None:
        budget.spend(len(str(grammar.definition)), where)
    return replace(named, is_custom=True, grammar=grammar)


def _read_format(data: Any, where: str, named: str) -> Grammar | None:
    """The format of a custom tool; `syntax` and `definition` may stand in it directly, as in the Responses API."""
    if data is None:
        return None
    kind = data.get("type") if isinstance(data, Mapping) else None
    if kind == "text":
        return None
    if kind != "grammar":
        _fail(f"{where} is {data!r:.80}", 'an object of type "text" or "grammar"')
    grammar = data.get("grammar", data)
    if not isinstance(grammar, Mapping):
        _fail(f"{where}.grammar is a {type(grammar).__name__}", "an object with syntax and definition")
    syntax, definition = grammar.get("syntax"), grammar.get("definition")
    if not isinstance(definition, str):
        _fail(f"{where}.grammar.definition is a {type(definition).__name__}", "text")
    if syntax not in ("lark", "regex"):
        _fail(f"{where}.grammar.syntax is {syntax!r:.80}", "'lark' or 'regex'")
    return Grammar("lark" if syntax == "lark" else "regex", definition, where=f"{named}.format")


class _Budget:
    """Counts the characters that tools will take in a prompt, before any is written."""

    def __init__(self) -> None:
        self._left = MAX_CHARS

    def spend(self, n_chars: int, where: str) -> None:
        self._left -= n_chars
        if self._left < 0:
            _fail(f"the tools are too large (from {where} on)", f"at most {MAX_CHARS} characters in all")

    def plain(self, value: Any, where: str, depth: int = 0) -> Any:
        """A copy of `value` as dicts, lists and scalars. Raises RequestError for anything else, for NaN, for depth."""
        if depth > MAX_DEPTH:
            _fail(f"{where} is nested more than {MAX_DEPTH} deep", "a flatter schema")
        # A value is at worst a line of its own, four columns further in at each level.
        self.spend((len(value) if isinstance(value, str) else 8) + 4 * depth, where)
        if isinstance(value, Mapping):
            return {self._key(key, where): self.plain(item, where, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.plain(item, where, depth + 1) for item in value]
        if isinstance(value, (float, int)) and not _is_finite(value):
            _fail(f"{where} holds a number that JSON lacks or no program reads", "finite numbers")
        if not isinstance(value, (str, float, int, type(None))):
            _fail(f"{where} holds a {type(value).__name__}", "plain JSON values")
        return value

    def _key(self, key: Any, where: str) -> str:
        if not isinstance(key, str):
            _fail(f"{where} has the key {key!r:.80}", "text as keys")
        self.spend(len(key), where)
        return key


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _fail(found: str, expected: str) -> NoReturn:
    raise RequestError(f"{found}; expected {expected}")
