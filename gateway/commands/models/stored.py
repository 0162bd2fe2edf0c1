"""`npu-gateway list` and `rm`: the models on the disk."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gateway.commands import options
from gateway.monitoring.output import escape

if TYPE_CHECKING:
    from gateway.pull.stored import Stored

_ADVICE = {
    "interrupted": ": repeat the pull, or `npu-gateway rm {}`",
    "unfinished": ": the gateway builds it while it runs, or `npu-gateway models --prepare` does now",
}


def add_parser(subparsers: options.Subparsers) -> None:
    text = (
        "List the models on the disk, and downloads that were interrupted. Into a pipe, one line for each model with "
        "these fields between tabs: name, state, bytes, layout, configured or not, source."
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
    if not sys.stdout.isatty():
        print(*map(tabbed, models), sep="\n", end="\n" if models else "")
    else:
        print("\n".join(lines(models, shutil.get_terminal_size().columns)))
    return 0


def tabbed(model: Stored) -> str:
    configured = "configured" if model.is_configured else "not configured"
    fields = (model.name, model.state, model.bytes, model.layout, configured, model.source)
    return "\t".join(escape(str(field)) for field in fields)


def lines(models: list[Stored], width: int) -> Iterator[str]:
    """Two or three short lines for each model, which also fit into 50 columns."""
    from gateway.bundles.disk import megabytes

    if not models:
        yield "No model is on the disk. `npu-gateway catalog` lists those that can be had."
    for model in models:
        advice = _ADVICE.get(model.state, "").format(model.name)
        yield from textwrap.wrap(f"{model.name}  {model.state}{advice}", max(width, 20), subsequent_indent="  ")
        facts = [megabytes(model.bytes), model.layout, "" if model.is_configured else "not in config.toml"]
        facts.append(f"from {model.source}" if model.source else "")
        text = escape(", ".join(filter(None, facts)))
        yield from textwrap.wrap(text, max(width, 20), initial_indent="  ", subsequent_indent="  ")


def run_rm(arguments: argparse.Namespace) -> int:
    from gateway.pull.config_edit import find_user_config
    from gateway.pull.stored import remove

    for line in remove(arguments.model, find_user_config(arguments.config)):
        print(f"removed {line}")
    return 0
