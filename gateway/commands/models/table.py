"""`npu-gateway models`: list the configured models and the state of their bundles."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gateway.commands import options
from gateway.monitoring.output import escape

if TYPE_CHECKING:
    from gateway.commands.models.model_state import ModelState
    from gateway.config.tables import Config, ModelConfig


def add_parser(subparsers: options.Subparsers) -> None:
    text = "List the configured models and the state of their bundles."
    parser = subparsers.add_parser("models", help="list the configured models", description=text)
    options.add_config(parser)
    parser.add_argument("--prepare", action="store_true", help="first download and build missing bundles")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    config = options.load(arguments)
    from gateway.commands.models.model_state import examine
    from gateway.commands.models.prepare import prepare

    if arguments.prepare:
        config = prepare(config, all_now=True)
    states = {name: examine(model) for name, model in config.models.items()}
    if arguments.json:
        print(json.dumps([_row(name, model, states[name]) for name, model in config.models.items()], indent=2))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000
        print("\n".join(lines(config, states, width)))
    return 0


def _row(name: str, model: ModelConfig, state: ModelState) -> dict[str, Any]:
    from gateway.config.tables import BundleModel

    return {
        "name": name,
        "engine": model.engine,
        "aliases": list(model.aliases),
        "fallback": model.fallback,
        "path": model.path if isinstance(model, BundleModel) else "",
        **state.as_dict(),
    }


def lines(config: Config, states: dict[str, ModelState], width: int) -> Iterator[str]:
    """Two or three short lines for each model, which also fit into 50 columns."""
    from gateway.bundles.disk import megabytes

    for name, model in config.models.items():
        state = states[name]
        title = f"{name}  {state.state}{f': {state.detail}' if state.detail else ''}"
        facts = (
            model.engine,
            f"context {state.context_length}" if state.context_length else "",
            megabytes(state.bytes) if state.bytes else "",
            state.published and f"published {state.published}",
            f"also as {' '.join(model.aliases)}" if model.aliases else "",
            f"fallback {model.fallback}" if model.fallback else "",
        )
        for text, indent in ((title, ""), (", ".join(filter(None, facts)), "  ")):
            yield from textwrap.wrap(escape(text), max(width, 20), initial_indent=indent, subsequent_indent="  ")
