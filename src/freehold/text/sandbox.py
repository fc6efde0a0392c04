"""The Jinja environment for chat templates out of model files, which are hostile until rendered.

Owns Hugging Face's conventions for chat templates, and the guard: a template reaches only listed methods and filters,
and every step it can repeat and every value it can grow passes through a Budget. Three seams carry that: nodes are
rewritten before compilation so that loop bodies, output and new containers report; calls and operators go through the
environment; filters are wrapped. Knows nothing of messages or tokens. Imported late: jinja2 is slow to load.
"""

from __future__ import annotations

import datetime
import re
import types
from collections.abc import Callable, ItemsView, KeysView, ValuesView
from functools import wraps
from string import Formatter
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes, runtime, utils
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer

from freehold.text import filters
from freehold.text.metering import Budget, OverBudget, budget_of

# Filters no template can name.
_TICK, _ADMIT, _CONCAT = "count a step", "admit a value", "join as text"

# What of Jinja and of str a template may use as it is: none of it makes much out of little.
_PLAIN_FILTERS = """abs capitalize count d default dictsort e escape first float groupby int items last length list
    lower map max min reject rejectattr reverse safe select selectattr slice sort string title truncate unique upper
    urlencode wordcount"""
_STR_METHODS = """capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal isdigit islower
    isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex
    rpartition rsplit rstrip split splitlines startswith strip swapcase title upper"""
_METHODS: tuple[tuple[type, frozenset[str]], ...] = (
    (str, frozenset(_STR_METHODS.split())),
    (dict, frozenset({"get", "items", "keys", "values", "copy"})),
    (list, frozenset({"index", "count", "copy"})),
    (tuple, frozenset({"index", "count"})),
)
_JINJA_OBJECTS = (
    runtime.LoopContext,
    runtime.Macro,
    runtime.BlockReference,
    runtime.TemplateReference,
    runtime.Undefined,
    utils.Namespace,
    utils.Cycler,
    utils.Joiner,
)
_VIEWS = (KeysView, ValuesView, ItemsView)
MAX_FORMAT_NUMBER = 1000
"""Largest width or precision in str.format."""


class Raised(Exception):
    """The template itself called raise_exception."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles a template source so that rendering it stays inside the budget in its context under BUDGET."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, _Generation],
            optimized=False,  # constants are folded at compile time, where no budget watches
            finalize=_output,
            cache_size=0,
        )
        self.globals = {
            "range": self.globals["range"],
            "dict": dict,
            "cycler": utils.Cycler,
            "joiner": utils.Joiner,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        guarded = {name: JINJA_FILTERS[name] for name in _PLAIN_FILTERS.split()} | filters.FILTERS
        self.filters = {name: _guard(filter) for name, filter in guarded.items()}
        self.filters |= {_TICK: _tick, _ADMIT: _admit, _CONCAT: _concat}

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Metered().visit(source), *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, names in _METHODS:
            if isinstance(obj, kind):
                return attr in names
        return isinstance(obj, _JINJA_OBJECTS) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        bound = isinstance(value, (types.MethodType, types.BuiltinMethodType)) and isinstance(value.__self__, str)
        return _Format(self, value.__self__) if bound and value.__name__ == "format" else None

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # Named so that no keyword of a template's call can collide.
        budget = budget_of(__context)
        budget.tick()
        if isinstance(__obj, (Macro, type)):  # these keep their arguments, as varargs or items
            budget.admit(args)
            budget.admit(kwargs)
        elif isinstance(__obj, _Format):
            __obj.budget = budget
        elif isinstance(getattr(__obj, "__self__", None), str):
            args = filters.checked_method_args(budget, __obj.__self__, __obj.__name__, args)
        result: Any = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, _VIEWS):  # they could not be measured
            result = list(result)
        return budget.admit(result)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = budget_of(context)
        budget.tick()
        _check_operands(budget, operator, left, right)
        return budget.admit(super().call_binop(context, operator, left, right))

    def call_test(
        self, name: str, value: Any, args: Any = None, kwargs: Any = None, context: Any = None, *rest: Any
    ) -> Any:
        budget_of(context).tick()
        return super().call_test(name, value, args, kwargs, context, *rest)


class _Metered(NodeTransformer):
    """Makes every loop body, output and newly built container of a template report to the budget."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._step(node), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(self._step(node), node.test, lineno=node.lineno)
        return node

    def _step(self, node: nodes.Node) -> nodes.Filter:
        return nodes.Filter(nodes.Const(True), _TICK, [], [], None, None, lineno=node.lineno)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        # Literal text becomes an expression: a block captured with {% set %} can repeat it, too.
        texts = (nodes.Const(n.data, lineno=n.lineno) if isinstance(n, nodes.TemplateData) else n for n in node.nodes)
        node.nodes = list(texts)
        return node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._admitted(node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        if isinstance(node.arg, nodes.Slice):
            return self._admitted(node)
        self.generic_visit(node)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(self._admitted(parts), _CONCAT, [], [], None, None, lineno=node.lineno)

    def _admitted(self, node: nodes.Node) -> nodes.Expr:
        self.generic_visit(node)
        return nodes.Filter(node, _ADMIT, [], [], None, None, lineno=node.lineno)

    visit_List = visit_Dict = _admitted


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; to render, it is only a scope."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


class _Namespace(utils.Namespace):
    """Printing one must not print what it holds: it may hold itself, or others many times over."""

    def __repr__(self) -> str:
        return "<namespace>"


class _Format(SandboxedFormatter):
    """str.format of one string, with bounded widths and a running total. `budget` is set by the call that uses it."""

    budget: Budget

    def __init__(self, env: Sandbox, text: str) -> None:
        super().__init__(env)
        self._text = text
        self._total = 0

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        self._total = 0
        return Formatter.vformat(self, self._text, args, kwargs)

    def format_field(self, value: Any, format_spec: str) -> Any:
        widths = re.findall(r"\d+", format_spec[:100])
        if len(format_spec) > 100 or any(int(width) > MAX_FORMAT_NUMBER for width in widths):
            raise OverBudget(f"it formats to a width above {MAX_FORMAT_NUMBER}")
        text = super().format_field(value, format_spec)
        self._total += len(text)
        self.budget.check(self._total)
        return text


def _check_operands(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Refuse an operation whose result would be far larger than its operands."""
    if operator == "%" and isinstance(left, str):
        filters.check_printf(budget, left, right)
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        budget.check_bits(left.bit_length() * max(right, 0))
    elif operator == "*" and isinstance(left, int) and isinstance(right, int):
        budget.check_bits(left.bit_length() + right.bit_length())
    elif operator == "*" and isinstance(left, int):
        budget.check(budget.size(right) * max(left, 0))
    elif operator == "*" and isinstance(right, int):
        budget.check(budget.size(left) * max(right, 0))


def _guard(filter: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that reports its result. Lazy results are drawn at once: nested, they could not be counted."""
    wants = utils._PassArg.from_obj(filter)

    def first(context: Context) -> tuple[Any, ...]:
        if wants is utils._PassArg.context:
            return (context,)
        if wants is utils._PassArg.eval_context:
            return (context.eval_ctx,)
        return (context.environment,) if wants is utils._PassArg.environment else ()

    @jinja2.pass_context
    @wraps(filter)
    def guarded(context: Context, *args: Any, **kwargs: Any) -> Any:
        budget = budget_of(context)
        budget.tick()
        result = filter(*first(context), *args, **kwargs)
        if isinstance(result, types.GeneratorType):
            return iter(filters.drawn(budget, result))
        return budget.admit(result)

    return guarded


@jinja2.pass_context
def _tick(context: Context, value: Any) -> Any:
    budget_of(context).tick()
    return value


@jinja2.pass_context
def _admit(context: Context, value: Any) -> Any:
    return budget_of(context).admit(value)


@jinja2.pass_context
def _concat(context: Context, parts: list[Any]) -> str:
    budget = budget_of(context)
    budget.tick()
    return budget.admit("".join(map(str, parts)))


@jinja2.pass_context
def _output(context: Context, value: Any) -> str:
    budget = budget_of(context)
    budget.tick()
    budget.check(budget.size(value))
    text = str(value)
    budget.charge(len(text))
    return text


def _raise_exception(message: object) -> NoReturn:
    raise Raised(str(message)[:1000])


def _strftime_now(format: str) -> str:
    if len(format) > 100:
        raise OverBudget("it formats a date with a pattern of more than 100 characters")
    return datetime.datetime.now().strftime(format)
