"""`npu-gateway models`: list the configured models and the state of their bundles."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gateway.commands import options
from gateway.commands.tables import Column, write_table

if TYPE_CHECKING:
    from gateway.commands.models.model_state import ModelState
    from gateway.config.tables import Config, ModelConfig


def add_parser(subparsers: options.Subparsers) -> None:
    text = (
        "List the configured models and the state of their bundles. Into a pipe, one line for each model with these "
        "fields between tabs: name, state, engine, context, bytes, aliases, fallback, published speed, detail."
    )
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
        _write(config, states)
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


def _write(config: Config, states: Mapping[str, ModelState]) -> None:
    from gateway.bundles.disk import megabytes

    columns = (
        *("name", "state", "engine", Column("context", right=True)),
        *(Column("size", right=True, shown=megabytes), "also as", "fallback", "published", "detail"),
    )
    write_table([_fields(name, model, states[name]) for name, model in config.models.items()], columns)


def _fields(name: str, model: ModelConfig, state: ModelState) -> tuple[object, ...]:
    return (
        *(name, state.state, model.engine, state.context_length or None, state.bytes or None),
        *(" ".join(model.aliases), model.fallback, state.published, state.detail),
    )
