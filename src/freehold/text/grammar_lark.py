"""Regular expressions and Lark grammars of a request, which are hostile, made safe to stand in a grammar of ours.

Owns their checks, before the library sees them: size, nesting, and what of the dialect a request may use. A grammar is
read word by word and written anew, so that nothing hides between two readings of it: no control tokens (<|call|>,
<[1]>), no references to other grammars, no options, no negation, which would let control tokens through, and no brace
that ends the place it stands in. `%import` reads no files; it knows the library's own `common` names. Knows no tokens
and no chat format.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from freehold.errors import RequestError

MAX_CHARS = 100_000
"""Of one regular expression or grammar."""

MAX_NESTING = 100
"""Groups in a regular expression."""

MAX_LEVELS = 200
"""Groups in a grammar, and rules that lead to one another."""

_REGEX_PART = re.compile(r"\\.|\[\^?\]?|[()\]/]|[^\\()\[\]/]+", re.DOTALL)
_WORD = re.compile(
    r"""(?P<blank> [ \t\r\f]+ | (?:\#|//)[^\n]* )
      | (?P<newline> \n )
      | (?P<string> "(?:[^"\\\n]|\\.)*"i? )
      | (?P<regex> /(?:[^/\\\n]|\\.)+/[imsux]* )
      | (?P<import> %import [ \t]+ common \b )
      | (?P<ignore> %ignore \b )
      | (?P<name> [!?]* _? (?: [a-z][_a-z0-9-]* | [A-Z][_A-Z0-9-]* ) )
      | (?P<number> [0-9]+ )
      | (?P<repeat> ~ (?=[ \t]*[0-9]) )
      | (?P<open> [(\[] )
      | (?P<close> [)\]] )
      | (?P<times> \{ [ \t]* [0-9]* [ \t]* (?: , [ \t]* [0-9]* [ \t]* )? \} )
      | (?P<sign> -> | \.\. | [:|,.+*?] )""",
    re.VERBOSE,
)


def regex_terminal(source: str, where: str) -> str:
    """A regular expression, in the syntax of Rust's crate `regex`, as a Lark terminal. It must match a whole text.

    Raises RequestError for one too long, nested too deeply, or cut off inside an escape.
    """
    _check_size(source, where, "regular expression")
    parts = ("\\/" if part == "/" else part for part in _regex_parts(source, where))
    return f"/{''.join(parts)}/" if source else '""'


def lark_grammar(source: str, where: str) -> str:
    """A Lark grammar, written anew to stand inside another. Raises RequestError naming the line."""
    _check_size(source, where, "Lark grammar")
    words = list(_words(source, where))
    definitions = _definitions(words, where)
    if "start" not in definitions:
        raise RequestError(f"{where}: the Lark grammar has no rule named start; expected one, where texts begin")
    _check_levels(definitions, where)
    return "".join("\n" if kind == "newline" else f"{text} " for kind, text, _ in words)


def _regex_parts(source: str, where: str) -> Iterator[str]:
    """The parts of a regular expression: escapes, brackets, slashes and what is between them."""
    at, depth, in_class = 0, 0, False
    while at < len(source):
        found = _REGEX_PART.match(source, at)
        if found is None:
            raise RequestError(f"{where}: the regular expression ends in a lone backslash; expected an escape")
        at, part = found.end(), found[0]
        if part.startswith("["):
            depth, in_class = depth + 1, True
        elif part == "]":
            depth, in_class = depth - 1, False
        elif not in_class:
            depth += {"(": 1, ")": -1}.get(part, 0)
        if depth > MAX_NESTING:
            raise RequestError(
                f"{where}: the regular expression is nested more than {MAX_NESTING} deep; expected a flatter one"
            )
        yield part


def _words(source: str, where: str) -> Iterator[tuple[str, str, int]]:
    """(kind, text, line) of each word."""
    at, line = 0, 1
    while at < len(source):
        found = _WORD.match(source, at)
        if found is None:
            rest = source[at : at + 40].splitlines()[0]
            _fail(where, line, f"has {rest!r}", "strings, /regexes/, names, %ignore and %import common")
        at, kind = found.end(), found.lastgroup
        assert kind is not None
        if kind == "regex":
            deque(_regex_parts(found[0], where), maxlen=0)
        if kind != "blank":
            yield kind, found[0], line
        line += kind == "newline"


@dataclass
class _Definition:
    """A rule or terminal: the names in it, each with the number of groups it stands in."""

    names: list[tuple[str, int]] = field(default_factory=list)
    depth: int = 0  # of groups, at the most


def _definitions(words: list[tuple[str, str, int]], where: str) -> dict[str, _Definition]:
    found: dict[str, _Definition] = {}
    current, depth, previous = _Definition(), 0, "newline"
    for kind, text, line in words:
        name = text.lstrip("!?")
        if kind == "name" and previous == "newline" and depth == 0:
            current = found.setdefault(name, _Definition())
        elif kind in ("import", "ignore") and previous == "newline":
            current = _Definition()
        elif kind in ("import", "ignore"):
            _fail(where, line, f"has {text} inside a rule", "it on a line of its own")
        elif kind == "name":
            current.names.append((name, depth))
        depth += {"open": 1, "close": -1}.get(kind, 0)
        if depth < 0:
            _fail(where, line, f"has {text!r} too many", "brackets in pairs")
        current.depth = max(current.depth, depth)
        previous = kind
    return found


def _check_levels(definitions: dict[str, _Definition], where: str) -> None:
    """Refuse what the library would have to recurse into too deeply: it goes into each rule where it first meets it."""
    seen: set[str] = set()

    def descend(name: str, level: int) -> None:
        if name in seen or name not in definitions:
            return
        seen.add(name)
        definition = definitions[name]
        if level + definition.depth > MAX_LEVELS:
            raise RequestError(
                f"{where}: the Lark grammar leads through more than {MAX_LEVELS} rules and groups to {name[:80]!r}; "
                f"expected a flatter one"
            )
        for used, depth in definition.names:
            descend(used, level + depth + 1)

    for name in ("start", *definitions):
        descend(name, 0)


def _check_size(source: str, where: str, what: str) -> None:
    if len(source) > MAX_CHARS:
        raise RequestError(f"{where}: the {what} is {len(source)} characters long; expected at most {MAX_CHARS}")


def _fail(where: str, line: int, found: str, expected: str) -> NoReturn:
    raise RequestError(f"{where}: line {line} of the Lark grammar {found}; expected {expected}")
