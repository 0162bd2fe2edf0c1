"""`npu-gateway models`: list the configured models and the state of their bundles."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from gateway.commands import options

if TYPE_CHECKING:
    from gateway.commands.model_state import ModelState
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
    from gateway.commands.model_state import examine
    from gateway.commands.prepare import prepare

    if arguments.prepare:
        config = prepare(config)
    states = {name: examine(model) for name, model in config.models.items()}
    if arguments.json:
        print(json.dumps([_row(name, model, states[name]) for name, model in config.models.items()], indent=2))
    else:
        _print_table(config, states)
    return 0


def _row(name: str, model: ModelConfig, state: ModelState) -> dict[str, Any]:
    from gateway.config.tables import BundleModel

    return {
        "name": name,
        "engine": model.engine,
        "aliases": model.aliases,
        "fallback": model.fallback,
        "path": model.path if isinstance(model, BundleModel) else "",
        **state.as_dict(),
    }


def _print_table(config: Config, states: dict[str, ModelState]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "also as", "engine", "state", "context", "on disk", "published", "fallback", box=None)
    for name, model in config.models.items():
        state = states[name]
        table.add_row(
            name,
            ", ".join(model.aliases),
            model.engine,
            f"{state.state}: {state.detail}" if state.detail else state.state,
            str(state.context_length or ""),
            f"{state.bytes / 1e6:.0f} MB" if state.bytes else "",
            state.published,
            model.fallback or "",
        )
    Console().print(table)
