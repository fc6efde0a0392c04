"""From a Grammar of a request to the text of a grammar: what stands right of the colon in a Lark rule of ours.

Owns that one translation for every kind of grammar, checked by itself so that errors name what was asked for, and the
list of what of a request's schemas is not enforced. Knows no tokens and no chat format.
"""

from __future__ import annotations

from functools import lru_cache

from freehold.errors import RequestError
from freehold.text.grammar import flaw_of
from freehold.text.grammar_lark import lark_grammar, regex_terminal
from freehold.text.grammar_schema import Enforceable, enforceable
from freehold.text.request import ChatRequest, Grammar
from freehold.text.tools import read_functions

_ANY_OBJECT = {"type": "object"}


def rule_body(grammar: Grammar) -> str:
    """The right side of the rule for texts of `grammar`. Raises RequestError for what cannot be enforced, saying where
    and why.
    """
    if grammar.kind in ("json", "json_schema"):
        return f"%json {_schema(grammar).text}"
    definition = grammar.definition
    if not isinstance(definition, str):
        raise RequestError(f"{grammar.where}: a {grammar.kind} grammar is a {type(definition).__name__}; expected text")
    return _text_body(definition, grammar.kind == "regex", grammar.where)


@lru_cache(128)  # the same tools come with every request of a conversation
def _text_body(definition: str, is_regex: bool, where: str) -> str:
    if is_regex:
        what, body = "regular expression", regex_terminal(definition, where)
    else:
        what, body = "Lark grammar", f"%lark {{\n{lark_grammar(definition, where)}\n}}"
    if flaw := flaw_of(f"start: {body}"):
        raise RequestError(f"{where}: the {what} cannot be enforced: {flaw}")
    return body


def unenforced(grammar: Grammar) -> list[str]:
    """The paths of the keywords of `grammar` that are left to the model; empty where all of it is enforced.

    Raises what `rule_body` raises.
    """
    return list(_schema(grammar).unenforced) if grammar.kind == "json_schema" else []


def unenforced_in(request: ChatRequest) -> list[str]:
    """The same for all that a request wants enforced: its answer, and the arguments of its tools."""
    functions = read_functions(request.tools) if request.enforce and request.tool_choice != "none" else ()
    grammars = [request.answer, *(function.arguments for function in functions)]
    return [path for grammar in grammars if grammar is not None for path in unenforced(grammar)]


def _schema(grammar: Grammar) -> Enforceable:
    schema = _ANY_OBJECT if grammar.kind == "json" else grammar.definition
    if not isinstance(schema, bool) and (schema is None or isinstance(schema, str)):
        raise RequestError(f"{grammar.where}: a JSON schema is a {type(schema).__name__}; expected an object or true")
    return enforceable(schema, grammar.strict, grammar.where)
