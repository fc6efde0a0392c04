"""Hostile chat templates: each ends in a TemplateError, soon, and without taking memory."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from freehold.errors import TemplateError
from freehold.text.chat import Message
from freehold.text.templates import MAX_SOURCE_CHARS, ChatTemplate
from freehold.text.tokenizer import Tokenizer, load_tokenizer
from tiny_vocabulary import gguf_metadata

MAX_SECONDS = 0.2
MAX_CHARS = 200_000
MAX_MEMORY = 64 * 2**20
"""Far below what any of the attacks below would take; the budget itself allows 64 bytes per character, 12 MiB."""

GROW = "{%% set ns = namespace(a=%s) %%}{%% for i in range(200) %%}{%% set ns.a = %s %%}{%% endfor %%}"

ENDLESS = {
    "nested loops": "{% set l = [0] * 9999 %}{% for i in l %}{% for j in l %}{% for k in l %}{% endfor %}{% endfor %}"
    "{% endfor %}",
    "loop that selects nothing": "{% set l = [0] * 39000 %}{% for i in l if 1 in l %}{% endfor %}",
    "doubling macro": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "doubling caller": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}{% macro r(n) %}{% if n %}"
    "{% call m() %}{{ r(n-1) }}{% endcall %}{% endif %}{% endmacro %}{{ r(50) }}",
    "quadratic filter": "{{ ([1] * 39000)|select('in', [0] * 39000)|list }}",
    "filter in a loop": "{% for i in range(99999) %}{% set x = range(20000)|sort %}{% endfor %}",
}
LARGE = {
    "string times": "{{ 'x' * 10**10 }}",
    "times string": "{{ 10**10 * 'x' }}",
    "list times": "{{ [1] * 10**10 }}",
    "power": "{{ 9**999999999 }}",
    "squaring": GROW % ("3", "ns.a * ns.a"),
    "long hexadecimal": "{{ ('f' * 9999)|int(0, 16) % 7 }}",
    "doubling concat": GROW % ("'x'", "ns.a ~ ns.a"),
    "doubling plus": GROW % ("'x'", "ns.a + ns.a"),
    "doubling list": GROW % ("['x']", "ns.a + ns.a"),
    "shared lists compared": "{% set ns = namespace(a=[], b=[]) %}{% for i in range(99) %}{% set ns.a = [ns.a, ns.a] %}"
    "{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
    "shared tuples hashed": GROW % ("()", "(ns.a, ns.a)") + "{{ {}[ns.a] }}",
    "shared dictionaries printed": GROW % ("{}", "{1: ns.a, 2: ns.a}") + "{{ ns.a }}",
    "dict()": GROW % ("{}", "dict(a=ns.a, b=ns.a)") + "{{ ns.a }}",
    "views": GROW % ("{}", "{1: ns.a.items(), 2: ns.a.values()}") + "{{ ns.a }}",
    "cycler": "{% set ns = namespace(a=1, b=1) %}{% for i in range(22) %}{% set ns.a = cycler(ns.a, ns.a).items %}"
    "{% set ns.b = cycler(ns.b, ns.b).items %}{% endfor %}{{ ns.a == ns.b }}",
    "varargs": "{% macro m(n) %}{% if n %}{{ m(n-1, varargs, varargs) }}{% else %}{{ varargs }}{% endif %}"
    "{% endmacro %}{{ m(90, 1) }}",
    "deep tuple": "{% set ns = namespace(a=()) %}{% for i in range(500) %}{% set ns.a = (ns.a,) %}{% endfor %}",
    "slices": "{% set x = 'x' * 99999 %}{% for i in range(9999) %}{% set y = x[1:] %}{% endfor %}",
    "captured block": "{% set x %}{% for i in range(99999) %}" + "y" * 1000 + "{% endfor %}{% endset %}",
    "captured output": "{% set y = 'y' * 99999 %}{% set x %}{% for i in range(9999) %}{{ y }}{% endfor %}{% endset %}",
    "output": "{% for i in range(99999) %}" + "y" * 100 + "{% endfor %}",
    "join": "{{ (['x' * 10000] * 10000)|join }}",
    "join with": "{{ range(9999)|join('x' * 10000) }}",
    "str.join": "{{ 'y'.join(['x' * 10000] * 10000) }}",
    "replace": "{{ ('x' * 10000)|replace('x', 'y' * 10000) }}",
    "str.replace": "{{ ('x' * 10000).replace('', 'y' * 10000) }}",
    "filter block": "{% filter replace('x', 'y' * 10000) %}" + "x" * 10000 + "{% endfilter %}",
    "folded constants": "{{ 'a'" + "|replace('', 'bbbbbbbbbb')" * 9 + " }}",
    "center": "{{ 'x'|center(10**9) }}",
    "indent": "{{ 'x'|indent(10**9) }}",
    "indent lines": "{{ ('x\n' * 50000)|indent(900) }}",
    "batch": "{{ [1]|batch(10**9, 'x')|list }}",
    "slice": "{{ [1]|slice(10**9)|list }}",
    "round": "{{ 5|round(-10**9) }}",
    "tojson indent": "{{ [1]|tojson(indent=10**9) }}",
    "tojson lines": "{{ ([[1]] * 10000)|tojson(indent=900) }}",
    "tojson separators": "{{ ([1] * 10000)|tojson(separators=('x' * 10000, ':')) }}",
    "strip": "{{ ('a' * 99999).strip('b' * 9999 ~ 'a') }}",
    "trim": "{{ ('a' * 99999)|trim('b' * 9999 ~ 'a') }}",
    "format width": "{{ '{:1000000000}'.format(1) }}",
    "format variable width": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "format repeats": "{{ ('{0}' * 1000).format('x' * 10000) }}",
    "printf width": "{{ '%1000000000d' % 1 }}",
    "printf variable width": "{{ '%*d' % (10**9, 1) }}",
    "printf key": "{{ '%(a(b)c)999999999d' % {'a(b)c': 1} }}",
    "printf repeats": "{{ ('%s' * 1000) % (('x' * 10000,) * 1000) }}",
    "printf filter": "{{ '%999999999d'|format(1) }}",
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "macro recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "block recursion": "{% block a %}{{ self.a() }}{% endblock %}",
    "loop recursion": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "operators": "{{ " + "+".join(["1"] * 3000) + " }}",
    "nested for": "{% for a in [1] %}" * 25 + "{% endfor %}" * 25,
    "nested if": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "source": "x" * (MAX_SOURCE_CHARS + 1),
}
ESCAPES = {
    "class": "{{ ''.__class__.__mro__ }}",
    "class by item": "{{ ''['__class__'].x }}",
    "class in format": "{{ '{0.__class__.x}'.format('x') ~ missing.x }}",
    "class by map": "{{ messages|map(attribute='__class__.__mro__')|list|first|first }}",
    "function globals": "{{ raise_exception.__globals__.x }}",
    "macro environment": "{% macro m() %}{% endmacro %}{{ m._environment.globals }}",
    "template context": "{{ self._TemplateReference__context.x }}",
    "loop internals": "{% for i in [1] %}{{ loop._iterable.x }}{% endfor %}",
    "namespace class": "{{ namespace.__init__.__globals__ }}",
    "int method": "{{ (1).to_bytes(10**10, 'big') }}",
    "format_map": "{{ '{x:999999999}'.format_map({'x': 1}) }}",
    "ljust": "{{ 'x'.ljust(10**9) }}",
    "list mutation": "{{ messages.append(1) }}",
    "dictionary mutation": "{{ messages[0].update({}) }}",
    "lorem ipsum": "{{ lipsum(n=10**9) }}",
    "include": "{% include 'x' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'x' %}",
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(None, gguf_metadata(), {})


@pytest.fixture(scope="module", autouse=True)
def _jinja_is_loaded(tokenizer: Tokenizer) -> None:
    ChatTemplate("", tokenizer)  # so that no attack is blamed for the import


def attack(source: str, tokenizer: Tokenizer, max_seconds: float = MAX_SECONDS) -> TemplateError:
    start = time.thread_time()  # a busy machine must not fail the test
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source, tokenizer, max_seconds=max_seconds, max_chars=MAX_CHARS).render([Message("user", "hi")])
    assert time.thread_time() - start < max_seconds + 1
    return caught.value


@pytest.mark.parametrize("name", ENDLESS)
def test_time_is_bounded(tokenizer: Tokenizer, name: str) -> None:
    # A fast processor meets the other limit first where values are made all the time.
    message = str(attack(ENDLESS[name], tokenizer))
    assert "ran for more than 0.2 seconds" in message or "intermediate values" in message


@pytest.mark.parametrize("name", LARGE)
def test_size_is_bounded(tokenizer: Tokenizer, name: str) -> None:
    tracemalloc.start()
    try:
        assert "ran for more than" not in str(attack(LARGE[name], tokenizer, max_seconds=20))
        assert tracemalloc.get_traced_memory()[1] < MAX_MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ESCAPES)
def test_nothing_outside_is_reached(tokenizer: Tokenizer, name: str) -> None:
    attack(ESCAPES[name], tokenizer)


def test_a_namespace_is_printed_without_its_content(tokenizer: Tokenizer) -> None:
    source = GROW % ("1", "namespace(x=ns.a, y=ns.a)") + "{{ ns.a }}"
    assert ChatTemplate(source, tokenizer).render_text([Message("user", "hi")]) == "<namespace>"


def test_long_honest_conversations_fit(tokenizer: Tokenizer) -> None:
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim ~ '<|im_end|>\n' }}{% endfor %}"
    )
    messages = [Message("user", "A sentence of honest length. " * 40)] * 1000
    assert len(ChatTemplate(source, tokenizer).render_text(messages)) > 1_000_000
