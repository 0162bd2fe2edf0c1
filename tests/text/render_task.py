"""A task of the sandbox for the tests of templates: a request is a template's source, the reply its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2

from gateway.text.jinja_environment import Environment


def open_task(variables: Any) -> tuple[bytes, Callable[[bytes], bytes]]:
    environment = Environment()

    def handle(source: bytes) -> bytes:
        try:
            return b"output: " + environment.from_string(source.decode()).render(variables).encode()
        except (jinja2.TemplateError, TypeError, ValueError, OverflowError, RecursionError) as error:
            return f"error: {error}"[:200].encode()

    return b"", handle
