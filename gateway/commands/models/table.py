"""`npu-gateway models`: list the configured models and the state of their bundles."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from gateway.commands import options
from gateway.commands.tables import Column, write_table
from gateway.errors import GatewayError

if TYPE_CHECKING:
    from gateway.commands.models.model_state import ModelState
    from gateway.config.tables import Config, ModelConfig
    from gateway.lanes.memory.needs import Need, Needs


def add_parser(subparsers: options.Subparsers) -> None:
    text = (
        "List the configured models, the state of their bundles, and their state in the gateway of this configuration "
        "if it runs. Into a pipe, one line for each model with these fields between tabs: name, state, engine, "
        "context, bytes, aliases, fallback, published speed, detail, state in the running gateway, bytes of memory."
    )
    parser = subparsers.add_parser("models", help="list the configured models", description=text)
    options.add_config(parser)
    parser.add_argument("--prepare", action="store_true", help="first download and build missing bundles")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    config = options.load(arguments)
    from gateway.commands.greeting import server_problems, silent_models
    from gateway.commands.models.model_state import examine
    from gateway.commands.models.prepare import prepare
    from gateway.lanes.memory.needs import budget_bytes

    if arguments.prepare:
        config = prepare(config, all_now=True)
    budget = budget_bytes(config.memory)
    states = {name: examine(model, budget) for name, model in config.models.items()}
    running = _running(arguments, config) | silent_models(asyncio.run(server_problems(config)))
    if arguments.json:
        rows = [_row(name, model, states[name], running.get(name), budget) for name, model in config.models.items()]
        print(json.dumps(rows, indent=2))
    else:
        _write(config, states, running)
    return 0


def _running(arguments: argparse.Namespace, config: Config) -> dict[str, str]:
    """model -> its state in the running gateway of this user. Empty if none runs."""
    from gateway.commands.doctor.gateway_state import read_state
    from gateway.commands.running.find import find_gateway

    try:
        found = find_gateway(arguments, config)
    except GatewayError:  # several run on other ports
        return {}
    state = read_state(found) if found.run else None
    return {model.model: str(model) for model in state.models} if state else {}


def _row(name: str, model: ModelConfig, state: ModelState, running: str | None, budget: int) -> dict[str, Any]:
    from gateway.config.tables import BundleModel

    return {
        "name": name,
        "engine": model.engine,
        "aliases": list(model.aliases),
        "fallback": model.fallback,
        "path": model.path if isinstance(model, BundleModel) else "",
        **state.as_dict(),
        "running": running,
        "memory_bytes": (need := _needs().of(model, budget)).bytes,
        "memory_is_measured": need.is_measured,
        "load_s": need.load_s,
    }


@cache
def _needs() -> Needs:
    from gateway.bundles.disk import data_folder
    from gateway.lanes.memory.needs import FILE, Needs

    return Needs(data_folder() / FILE)


def _write(config: Config, states: Mapping[str, ModelState], running: Mapping[str, str]) -> None:
    from gateway.bundles.disk import megabytes
    from gateway.lanes.memory.needs import budget_bytes

    columns = (
        *("name", "state", "engine", Column("context", right=True)),
        *(Column("size", right=True, shown=megabytes), "also as", "fallback", "published", "detail", "now"),
        Column("memory", right=True, shown=_Memory.shown),
    )
    budget = budget_bytes(config.memory)
    rows = [
        (*_fields(name, model, states[name]), running.get(name, ""), _memory(_needs().of(model, budget)))
        for name, model in config.models.items()
    ]
    write_table(rows, columns)


class _Memory(Struct, frozen=True):
    """A field: bytes in a pipe, megabytes in a terminal."""

    need: Need

    def __str__(self) -> str:
        return str(self.need.bytes)

    def shown(self) -> str:
        return self.need.shown


def _memory(need: Need) -> _Memory | None:
    return _Memory(need) if need.bytes else None


def _fields(name: str, model: ModelConfig, state: ModelState) -> tuple[object, ...]:
    return (
        *(name, state.state, model.engine, state.context_length or None, state.bytes or None),
        *(" ".join(model.aliases), model.fallback, state.published, state.detail),
    )
