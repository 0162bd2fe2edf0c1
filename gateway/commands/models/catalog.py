"""`npu-gateway catalog`: the models that a user can get for the NPU of this machine, and those that are on it."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.commands import options
from gateway.commands.models.pull import say
from gateway.commands.tables import Column, wrapped, write_table
from gateway.errors import ConfigError
from gateway.monitoring.output import escape

if TYPE_CHECKING:
    from gateway.bundles.preflight.preflight import Machine
    from gateway.pull.catalog.catalog import Catalog
    from gateway.pull.catalog.entry import Entry
    from gateway.pull.installed.search import Installed
    from gateway.qnn.chips import Chip

_TEXT = """\
List the models that you can get for the NPU of this machine: from Qualcomm AI Hub, the Hugging Face Hub and a list
in this program. With NAME: all that is known about it. Lists are kept for a day. Exit code 1 if no server answered.
Into a pipe, one line for each model with these fields between tabs: name, chip, state (ready, export, not served),
billions of parameters, precision, context, bytes, layout, proven or not, licence, tokens/s, milliseconds to the first
token after 128 tokens, the same after a full context, source, URL."""


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser("catalog", help="list the models that you can get for the NPU", description=_TEXT)
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
        write_table([_fields(entry) for entry in entries], ())
    elif arguments.name:
        print("\n\n".join("\n".join(map(escape, details(entry, arguments.chip))) for entry in entries))
    else:
        write_groups(entries, chip, arguments.chip)
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


def _fields(entry: Entry) -> tuple[object, ...]:
    """What a pipe gets, in the order of the help text."""
    return (
        *(entry.name, entry.chip, _state(entry), entry.parameters, entry.precision, entry.context, entry.bytes),
        *(entry.layout, "proven" if entry.proven_by else "not proven", entry.licence, entry.tokens_per_s),
        *(*(entry.ttft_ms or (None, None)), entry.source, entry.url),
    )


def _pull_command(name: str, option: str | None) -> str:
    return f"npu-gateway pull {name}{f' --chip {option}' if option else ''}"


def write_groups(entries: list[Entry], chip: Chip | None, option: str | None = None) -> None:
    """Write the models to a terminal: those to download, to export, and those that are not served.

    Args:
        chip: of this machine or of the option; None: the models of every chip.
        option: the value of --chip.
    """
    width = shutil.get_terminal_size().columns
    title = chip.title if chip else "Snapdragon laptops"
    print("\n".join(wrapped(f"Models for {title}. `{_pull_command('NAME', option)}` gets one.", width)))
    for kind, title in (("ready", ""), ("export", "To export yourself"), ("not served", "Not served")):
        group = [entry for entry in entries if _state(entry) == kind]
        if group:
            title = f"\n{title} (`npu-gateway catalog NAME` says more):" if title else ""
            print("\n".join(wrapped(title, width)))
            write_table([_cells(entry, chip) for entry in group], _COLUMNS)


_COLUMNS = (
    *("name", "", Column("size", right=True, shown=lambda size: f"{size / 1e9:.1f} GB"), Column("context", right=True)),
    *(Column("tokens/s", right=True, shown=lambda speed: f"{speed:.1f}"), "first token", "", "licence", "from"),
)


def _cells(entry: Entry, chip: Chip | None) -> tuple[object, ...]:
    parameters = f"{entry.parameters:g}B" if entry.parameters else ""
    ttft = f"{entry.ttft_ms[0]:.0f} to {entry.ttft_ms[1]:.0f} ms" if entry.ttft_ms else ""
    return (
        *(
            entry.name if chip else f"{entry.name} ({entry.chip})",
            " ".join(filter(None, (parameters, entry.precision))),
        ),
        *(entry.bytes or None, entry.context, entry.tokens_per_s, ttft, _not_tested(entry)),
        *(entry.licence or "not stated", entry.source),
    )


def _not_tested(entry: Entry) -> str:
    return "layout not tested" if entry.kind == "text" and not entry.proven_by else ""


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
    if untested := _not_tested(entry):
        yield untested
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
    found = find_installed(programs, cache(machine_here))
    if as_json:
        print(json.dumps({"installed": [asdict(model) for model in found]}, indent=2))
    elif not sys.stdout.isatty():
        fields = attrgetter("program", "name", "layout", "bytes", "path", "problem")
        write_table([fields(model) for model in found], ())
    else:
        print("\n".join(installed_lines(found, shutil.get_terminal_size().columns)))
    return 0


def machine_here() -> Machine:
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
        yield from wrapped(escape(f"{model.path}: {model.problem}"), max(width, 20), "#   ", "#   ")
