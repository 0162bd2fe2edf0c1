"""`npu-gateway list` and `rm`: the models on the disk."""

from __future__ import annotations

import argparse
import json

from gateway.commands import options


def add_parser(subparsers: options.Subparsers) -> None:
    text = "List the models on the disk, and downloads that were interrupted."
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
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "state", "on disk", "layout", "in config.toml", "from", box=None)
    for model in models:
        size = f"{model.bytes / 1e6:.0f} MB"
        configured = "yes" if model.is_configured else "no"
        table.add_row(model.name, model.state, size, model.layout, configured, model.source)
    Console().print(table)
    return 0


def run_rm(arguments: argparse.Namespace) -> int:
    from gateway.pull.config_edit import find_user_config
    from gateway.pull.stored import remove

    for line in remove(arguments.model, find_user_config(arguments.config)):
        print(f"removed {line}")
    return 0
