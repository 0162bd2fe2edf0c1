"""Jinja for untrusted templates: no access to Python, bounded time and memory.

A chat template comes with a model, from any author, and runs for every request. Jinja's own sandbox blocks access to
the interpreter. It does not limit loops or the size of strings. So each rendering has a budget: a number of characters
and a deadline. Every loop step, call, operator, filter and output is charged to it. A slice or a comparison is not
charged; it works on values that were charged when they were made, and the deadline is checked at the next step.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_CHARACTERS = 64 * 1024 * 1024  # sum of all strings that one rendering makes
MAX_NUMBER = 100_000  # largest width, indentation or repetition
MAX_SECONDS = 5.0
_TOO_LARGE = f"it makes more than {MAX_CHARACTERS >> 20} Mi characters"

_FILTERS = frozenset(
    (
        *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "indent"),
        *("int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject"),
        *("rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string"),
        *("title", "trim", "truncate", "unique", "upper"),
    )
)
_FORBIDDEN_METHODS = frozenset(["expandtabs", "format_map", "translate"])  # size of the result is hard to predict
_JOINS = frozenset(["join", "do_join", "sync_do_join"])
_LARGE_WIDTH = re.compile(r"\d{6}")  # in a format string


class BudgetExceeded(Exception):
    """The template used more time or memory than one rendering may use."""


class _Budget:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._deadline = clock() + MAX_SECONDS
        self._characters = MAX_CHARACTERS

    def charge(self, characters: int = 0) -> None:
        self._characters -= characters
        if self._characters < 0:
            raise BudgetExceeded(_TOO_LARGE)
        if self._clock() > self._deadline:
            raise BudgetExceeded(f"it ran for more than {MAX_SECONDS:g} s")


_budget: ContextVar[_Budget] = ContextVar("template_budget")


def render(template: jinja2.Template, variables: Mapping[str, Any], clock: Callable[[], float] = time.monotonic) -> str:
    """Return the template's output. Raises BudgetExceeded, and any exception of the template itself."""
    token = _budget.set(_Budget(clock))
    try:
        return template.render(variables)
    finally:
        _budget.reset(token)


class Environment(ImmutableSandboxedEnvironment):
    """What chat templates expect: trimmed blocks, loop controls, `{% generation %}`, and a fixed list of filters."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[LoopControlExtension, _Generation]
        )
        metered = {name: _metered(function) for name, function in self.filters.items() if name in _FILTERS}
        self.filters = metered | {"tojson": _tojson, "_emit": _emit, "_concat": _concat, "_each": _each}
        self.globals = {name: self.globals[name] for name in ("range", "dict", "namespace", "joiner", "cycler")}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _AddMeters().visit(super()._parse(source, name, filename))
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _FORBIDDEN_METHODS and super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # Jinja's own parameter names
        name, owner = getattr(__obj, "__name__", ""), getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if name in _JOINS:
            args = tuple(map(list, args))  # a list can be measured and still be read; a generator cannot
        if isinstance(owner, str):
            _check(name, owner, *args, *kwargs.values())
        else:
            _check(name, *args, *kwargs.values())
        return _charged(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_operands(operator, left, right)
        return _charged(super().call_binop(context, operator, left, right))


class _AddMeters(NodeTransformer):
    """Wraps everything that is printed, joined or looped over in a filter that charges the budget."""

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        node.nodes = [_filtered("_emit", _as_expression(child)) for child in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filtered("_concat", nodes.List(node.nodes, lineno=node.lineno))

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filtered("_each", node.iter)
        return node


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks training data. Here it is replaced by its content."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _as_expression(node: nodes.Expr) -> nodes.Expr:
    return nodes.Const(node.data, lineno=node.lineno) if isinstance(node, nodes.TemplateData) else node


def _filtered(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)


def _emit(value: Any) -> str:
    _budget.get().charge(_weight(value))
    return str(value)


def _concat(values: list[Any]) -> str:
    _budget.get().charge(sum(map(_weight, values)))
    return "".join(map(str, values))


def _each(values: Iterable[Any]) -> Iterator[Any] | Iterable[Any]:
    """Return the same items and charge one step for each. A sized collection stays sized (for `loop.length`)."""
    if isinstance(values, jinja2.Undefined):
        return values  # iterating over it raises the right error
    return _Steps(values) if hasattr(values, "__len__") else _steps(values)


def _steps(values: Iterable[Any]) -> Iterator[Any]:
    budget = _budget.get()
    for value in values:
        budget.charge()
        yield value


class _Steps:
    def __init__(self, values: Any) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return _steps(self._values)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`json.dumps` without ASCII or HTML escapes, as in Hugging Face transformers."""
    _check("tojson", indent)
    _budget.get().charge(_weight(value) * (1 + (indent or 0)))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _metered(function: Callable[..., Any]) -> Callable[..., Any]:
    skip = int(hasattr(function, "jinja_pass_arg"))  # then the first argument is the context or the environment

    @functools.wraps(function)
    def filter(*args: Any, **kwargs: Any) -> Any:
        if function.__name__ in _JOINS and not isinstance(args[skip], str):
            args = (*args[:skip], list(args[skip]), *args[skip + 1 :])
        _check(function.__name__, *args[skip:], *kwargs.values())
        return _charged(function(*args, **kwargs))

    return filter


def _charged(value: Any) -> Any:
    if isinstance(value, str | list | tuple):
        _budget.get().charge(len(value) * (1 if isinstance(value, str) else 8))
    return value


def _check(name: str, *values: Any) -> None:
    """Charge a call before it runs, for the largest result that it can have."""
    if any(isinstance(value, int) and abs(value) > MAX_NUMBER for value in values):
        raise BudgetExceeded(f"it uses a number above {MAX_NUMBER}")
    _budget.get().charge(_cost(name, values))


def _cost(name: str, values: tuple[Any, ...]) -> int:
    """Upper bound of the characters that a call adds. values[0] is the string that it is called on."""
    match name, values:
        case "replace" | "do_replace", (text, old, new, *_):
            return str(text).count(str(old)) * len(str(new))
        case "do_indent", (text, int(width), *_):
            return (str(text).count("\n") + 1) * abs(width)
        case "join" | "do_join" | "sync_do_join", (separator, *others):
            return _weight(values) + len(separator) * sum(map(_extent, others))
        case "soft_str", (value, *_):
            return _weight(value)
        case "format", (text, *arguments):
            return _format_cost(str(text), arguments)
    return 0


def _extent(value: Any) -> int:
    return abs(value) if isinstance(value, int) else len(value) if hasattr(value, "__len__") else 1


def _format_cost(text: str, arguments: Any) -> int:
    if _LARGE_WIDTH.search(text):
        raise BudgetExceeded(f"it pads text to more than {MAX_NUMBER} characters")
    return (text.count("%") + text.count("{")) * _weight(arguments)


def _check_operands(operator: str, left: Any, right: Any) -> None:
    sized = [hasattr(side, "__len__") for side in (left, right)]
    if operator == "%" and isinstance(left, str):
        _budget.get().charge(_format_cost(left, right))
        _check("%", *(right if isinstance(right, tuple) else (right,)))
    elif operator == "*" and any(sized):
        _budget.get().charge(_extent(left) * _extent(right))
    elif operator in ("*", "**") and (abs(left) > 2**63 or abs(right) > (64 if operator == "**" else 2**63)):
        raise BudgetExceeded("it uses a number that is too large")


def _weight(value: Any) -> int:
    """Approximate number of characters of `value` when printed. Raises BudgetExceeded above MAX_CHARACTERS."""
    if isinstance(value, str):
        return len(value)
    weight, pending = 0, [value]
    while pending:
        item = pending.pop()
        if isinstance(item, Mapping):
            pending += (*item.keys(), *item.values())
        elif isinstance(item, list | tuple | set):
            pending += item
        weight += len(item) if isinstance(item, str) else 8
        if weight > MAX_CHARACTERS:
            raise BudgetExceeded(_TOO_LARGE)
    return weight
