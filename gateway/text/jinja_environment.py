"""Jinja for untrusted templates: no access to Python.

A chat template comes with a model, from any author. Jinja's own sandbox blocks access to the interpreter. It limits
neither time nor memory, so templates are rendered in a process that has limits (`gateway.sandbox`).
"""

from __future__ import annotations

import json
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_FILTERS = frozenset(
    (
        *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "indent"),
        *("int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject"),
        *("rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string"),
        *("title", "trim", "truncate", "unique", "upper"),
    )
)
_GLOBALS = ("range", "dict", "namespace", "joiner", "cycler")


class Environment(ImmutableSandboxedEnvironment):
    """What chat templates expect: trimmed blocks, loop controls, `{% generation %}`, and a fixed list of filters."""

    def __init__(self) -> None:
        # optimized: an expression of constants would be computed at compile time, and a client would not get its error
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[LoopControlExtension, _Generation]
        )
        self.filters = {name: self.filters[name] for name in _FILTERS} | {"tojson": _tojson}
        self.globals = {name: self.globals[name] for name in _GLOBALS}


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks training data. Here it is replaced by its content."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`json.dumps` without ASCII or HTML escapes, as in Hugging Face transformers."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
