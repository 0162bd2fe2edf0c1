"""`npu-gateway list` and `rm`: the models on the disk."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from gateway.commands import options
from gateway.commands.tables import Column, write_table

if TYPE_CHECKING:
    from gateway.pull.stored import Stored

_ADVICE = {
    "interrupted": "repeat the pull, or `npu-gateway rm {}`",
    "unfinished": "the gateway builds it while it runs, or `npu-gateway models --prepare` does now",
}


def add_parser(subparsers: options.Subparsers) -> None:
    text = (
        "List the models on the disk, and downloads that were interrupted. Into a pipe, one line for each model with "
        "these fields between tabs: name, state, bytes, layout, configured or not, source, next step, numbers of the "
        "weights."
    )
    parser = subparsers.add_parser("list", help="list the models on the disk", description=text)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options.add_config(parser)
    parser.set_defaults(run=run_list)
    text = "Remove a model: its table in config.toml, its files in the models folder, an interrupted download of it."
    parser = subparsers.add_parser("rm", help="remove a model", description=text)
    parser.add_argument("model", metavar="NAME", help="the model's name")
    options.add_config(parser)
    parser.set_defaults(run=run_rm)


def run_list(arguments: argparse.Namespace) -> int:
    from gateway.pull.config_edit import find_user_config
    from gateway.pull.stored import stored

    models = stored(find_user_config(arguments.config).config)
    if arguments.json:
        print(json.dumps([model.as_dict() for model in models], indent=2))
        return 0
    if not models and sys.stdout.isatty():
        print("No model is on the disk. `npu-gateway catalog` lists models to download.")
    _write(models)
    return 0


def _write(models: list[Stored]) -> None:
    from gateway.bundles.disk import megabytes

    columns = ("name", "state", Column("size", right=True, shown=megabytes), "layout", "", "from", "", "weights")
    write_table([_fields(model) for model in models], columns)


def _fields(model: Stored) -> tuple[object, ...]:
    advice = _ADVICE.get(model.state, "").format(model.name)
    configured = "configured" if model.is_configured else "not configured"
    return model.name, model.state, model.bytes, model.layout, configured, model.source, advice, model.numbers


def run_rm(arguments: argparse.Namespace) -> int:
    from gateway.pull.config_edit import find_user_config
    from gateway.pull.stored import remove

    for line in remove(arguments.model, find_user_config(arguments.config)):
        print(f"removed {line}")
    return 0
