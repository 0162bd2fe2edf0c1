"""`npu-gateway catalog`: the models that can be had for the NPU of this machine, and those that are on it already."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.commands import options
from gateway.commands.models.pull import say
from gateway.errors import ConfigError
from gateway.monitoring.output import escape

if TYPE_CHECKING:
    from gateway.bundles.preflight.preflight import Machine
    from gateway.pull.catalog.catalog import Catalog
    from gateway.pull.catalog.entry import Entry
    from gateway.pull.installed.search import Installed
    from gateway.qnn.chips import Chip

_TEXT = """\
List the models that can be had for the NPU of this machine: from Qualcomm AI Hub, the Hugging Face Hub and a list
in this program. With NAME: all that is known about it. Lists are kept for a day. Exit code 1 if no server answered.
Into a pipe, one line for each model with these fields between tabs: name, chip, state (ready, export, not served),
billions of parameters, precision, context, bytes, layout, proven or not, licence, tokens/s, milliseconds to the first
token after 128 tokens, the same after a full context, source, URL."""


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser("catalog", help="list the models that can be had for the NPU", description=_TEXT)
    parser.add_argument("name", metavar="NAME", nargs="?", help="a model: 'llama3.2-3b'")
    parser.add_argument("--chip", help="x-elite, x-plus or x2-elite (default: the chip of this machine)")
    parser.add_argument(
        "--installed", action="store_true", help="list the models that other programs have on this machine instead"
    )
    parser.add_argument("--refresh", action="store_true", help="read the servers again")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.installed and arguments.name:
        raise ConfigError("--installed lists the models of all programs. Leave out NAME.")
    if arguments.installed:
        return _run_installed(arguments.json)
    from gateway.pull.catalog.catalog import entries_for, named, read_catalog

    chip = _chip(arguments.chip)
    catalog = read_catalog(refresh=arguments.refresh, say=say if sys.stderr.isatty() else lambda line: None)
    for problem in catalog.problems:
        say(problem)
    entries = named(arguments.name, chip, catalog) if arguments.name else entries_for(chip, catalog)
    if arguments.json:
        _print_json(entries, chip, catalog)
    elif not sys.stdout.isatty():
        print(*map(tabbed, entries), sep="\n")
    elif arguments.name:
        print("\n\n".join("\n".join(map(escape, details(entry, arguments.chip))) for entry in entries))
    else:
        print("\n".join(lines(entries, chip, shutil.get_terminal_size().columns, arguments.chip)))
    return 0 if catalog.is_read else 1


def _chip(name: str | None) -> Chip | None:
    """The chip of the option, else of this machine; None if the machine has none that is known."""
    from gateway.qnn.chips import chip_named
    from gateway.qnn.detect import chip_here

    return chip_named(name) if name else chip_here()


def _print_json(entries: list[Entry], chip: Chip | None, catalog: Catalog) -> None:
    models = [entry.as_dict() for entry in entries]
    print(json.dumps({"chip": chip and chip.name, "models": models, "problems": catalog.problems}, indent=2))


def _state(entry: Entry) -> str:
    if entry.kind != "text":
        return "not served"
    return "ready" if entry.url else "export"


def tabbed(entry: Entry) -> str:
    ttft = entry.ttft_ms or ("", "")
    fields = [
        *(entry.name, entry.chip, _state(entry), entry.parameters, entry.precision, entry.context, entry.bytes),
        *(entry.layout, "proven" if entry.proven_by else "not proven", entry.licence, entry.tokens_per_s),
        *(*ttft, entry.source, entry.url),
    ]
    return "\t".join("" if field is None else escape(str(field)) for field in fields)


def _pull_command(name: str, option: str | None) -> str:
    return f"npu-gateway pull {name}{f' --chip {option}' if option else ''}"


def lines(entries: list[Entry], chip: Chip | None, width: int, option: str | None = None) -> Iterator[str]:
    """Two or three short lines for each model, which also fit into 50 columns. `option`: the value of --chip."""

    def wrapped(text: str, indent: str = "") -> list[str]:
        return textwrap.wrap(escape(text), max(width, 20), initial_indent=indent, subsequent_indent=indent)

    title = chip.title if chip else "Snapdragon laptops"
    yield from wrapped(f"Models for {title}. `{_pull_command('NAME', option)}` gets one.")
    for kind, title in (("ready", ""), ("export", "To export yourself"), ("not served", "Not served")):
        group = [entry for entry in entries if _state(entry) == kind]
        if group and title:
            yield ""
            yield from wrapped(f"{title} (`npu-gateway catalog NAME` says more):")
        for entry in group:
            yield ""
            yield from wrapped(entry.name if chip else f"{entry.name} ({entry.chip})")
            yield from wrapped(", ".join(_facts(entry)), "  ")


def _facts(entry: Entry) -> Iterator[str]:
    if entry.parameters:
        yield f"{entry.parameters:g}B"
    if entry.precision:
        yield entry.precision
    if entry.bytes:
        yield f"{entry.bytes / 1e9:.1f} GB"
    if entry.context:
        yield f"context {entry.context}"
    if entry.tokens_per_s:
        yield f"{entry.tokens_per_s:.1f} tokens/s"
    if entry.ttft_ms:
        yield f"first token {entry.ttft_ms[0]:.0f} to {entry.ttft_ms[1]:.0f} ms"
    if entry.kind == "text" and not entry.proven_by:
        yield "layout not tested"
    yield f"{entry.licence} licence" if entry.licence else "licence not stated"
    yield f"from {entry.source}"


def details(entry: Entry, option: str | None = None) -> Iterator[str]:
    """All that is known about one model. `option`: the value of --chip."""
    yield f"{entry.name}: {entry.title} for {entry.chip}"
    yield f"  {', '.join(_facts(entry))}"
    tested = "each release is tested with a small model of it" if entry.proven_by else "not tested with this gateway"
    yield f"  layout {entry.layout}: {tested}"
    if entry.qairt:
        yield f"  compiled with QAIRT {entry.qairt}"
    if entry.licence_url:
        yield f"  licence: {entry.licence_url}"
    if entry.note:
        yield f"  {entry.note}"
    if entry.url:
        yield f"  {entry.url}"
    if entry.export:
        yield from (f"    {line}" for line in entry.export.splitlines())
    elif entry.kind == "text":
        yield f"  {_pull_command(entry.name, option)}"


def _run_installed(as_json: bool) -> int:
    from msgspec.structs import asdict

    from gateway.config.file import environment_with
    from gateway.pull.installed.programs import program_folders
    from gateway.pull.installed.search import find_installed

    programs = list(program_folders(Path.home(), environment_with()))
    found = find_installed(programs, cache(_machine))
    if as_json:
        print(json.dumps({"installed": [asdict(model) for model in found]}, indent=2))
    elif not sys.stdout.isatty():
        for model in found:
            fields = (model.program, model.name, model.layout, model.bytes, model.path, model.problem)
            print("\t".join(escape(str(field)) for field in fields))
    else:
        print("\n".join(installed_lines(found, shutil.get_terminal_size().columns)))
    return 0


def _machine() -> Machine:
    """This machine, which starts a process. Nothing that can be compared if its chip is not known."""
    from gateway.bundles.preflight.preflight import Machine
    from gateway.qnn.device import machine_with

    chip = _chip(None)
    return machine_with(chip) if chip else Machine()


def installed_lines(found: list[Installed], width: int) -> Iterator[str]:
    """The tables to add to config.toml, then the models that cannot be served, with the reason."""
    served, others = [model for model in found if model.table], [model for model in found if not model.table]
    if not found:
        yield "No model of another program was found."
    if served:
        yield "# Add the tables of your choice to config.toml."
        yield "# `npu-gateway pull PATH` does that for one."
    for model in served:
        yield ""
        yield f"# {model.program}, {model.layout}, {model.bytes / 1e9:.1f} GB"
        yield model.table.rstrip()
    for model in others:
        yield ""
        yield f"# {escape(model.name)} ({model.program}) cannot be served:"
        text = f"{model.path}: {model.problem}"
        yield from textwrap.wrap(escape(text), max(width, 20), initial_indent="#   ", subsequent_indent="#   ")
