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


class Environment(ImmutableSandboxedEnvironment):
    """What chat templates expect: trimmed blocks, loop controls, `{% generation %}`, and Jinja's own filters and tests.

    None of Jinja's filters, tests and functions reads a file, and the sandbox guards those that read attributes.
    """

    def __init__(self) -> None:
        # optimized: an expression of constants would be computed at compile time, and a client would not get its error
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[LoopControlExtension, _Generation]
        )
        self.filters["tojson"] = _tojson


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
