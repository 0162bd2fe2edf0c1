"""`npu-gateway pull`, `rm` and `list`: models from elsewhere, in the models folder and in config.toml."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gateway.commands import options

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from gateway.pull.config_edit import UserConfig
    from gateway.pull.pull import Pulled
    from gateway.pull.report import Report
    from gateway.qnn.chips import Chip

_FACTS_WIDTH = 36  # columns for bytes, rate and remaining time: " 1.2/3.1 GB 12.3 MB/s 0:12:34"
_SOURCE = "a name of the catalog, hf:ORG/REPO, hf:ORG/REPO:QUANT, hf:ORG/REPO/FILE, a URL, a zip, a .gguf or a folder"


def add_parser(subparsers: options.Subparsers) -> None:
    text = f"Download a model, check it, and add it to config.toml. An interrupted pull continues. MODEL: {_SOURCE}."
    parser = subparsers.add_parser("pull", help="download a model and add it to config.toml", description=text)
    parser.add_argument("model", metavar="MODEL", help=_SOURCE)
    parser.add_argument("--as", dest="name", metavar="NAME", help="the model's name here (default: from MODEL)")
    parser.add_argument(
        "--print", dest="print_only", action="store_true", help="print the table, do not change config.toml"
    )
    parser.add_argument("--chip", help="x-elite, x-plus or x2-elite (default: the chip of this machine)")
    options.add_config(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from gateway.pull.config_edit import table_text

    user = _user_config(arguments)
    pulled = pull_model(arguments.model, user, name=arguments.name, chip=arguments.chip)
    if arguments.print_only:
        print(table_text(pulled.name, pulled.table), end="")
        return 0
    register(user, pulled)
    _wake_gateways()
    state = "ready" if pulled.is_complete else "not complete. Add what is missing, then"
    print(f"{pulled.name} is {state}: npu-gateway serve {pulled.name}")
    return 0


def _wake_gateways() -> None:
    """Let the gateways that run look at their configuration now: while no client is connected, they do not."""
    from gateway.commands.running.run_file import running_gateways

    for run in running_gateways():
        with suppress(OSError), socket.create_connection((urlsplit(run.url).hostname or "", run.port), 1.0):
            pass


def _user_config(arguments: argparse.Namespace) -> UserConfig:
    from gateway.pull.config_edit import find_user_config

    return find_user_config(arguments.config)


def pull_model(text: str, user: UserConfig, *, name: str | None = None, chip: str | None = None) -> Pulled:
    """Get the model that `text` describes, with progress on stderr. `chip`: the option."""
    from gateway.pull.download import Downloader
    from gateway.pull.job import Surroundings
    from gateway.pull.pull import pull

    downloader = Downloader()
    try:
        with byte_bars() as report:
            around = Surroundings(
                user=user,
                report=report,
                say=say,
                find_chip=lambda: _chip(chip),
                build=lambda model, source: _build(user, model, source),
                downloader=downloader,
            )
            return pull(text, name, around)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command continues the download") from None
    finally:
        downloader.close()


def register(user: UserConfig, pulled: Pulled) -> None:
    """Add the table to config.toml, or print it if that is not possible. Raises ConfigError then."""
    from gateway.errors import ConfigError
    from gateway.pull.config_edit import add_model, table_text

    try:
        if add_model(user, pulled.name, pulled.table):
            say(f"{pulled.name} is in {user.file} now")
    except ConfigError:
        print(table_text(pulled.name, pulled.table), end="", flush=True)
        raise


def say(line: str) -> None:
    from gateway.monitoring.output import escape

    print(f"npu-gateway: {escape(line)}", file=sys.stderr, flush=True)


def _chip(name: str | None) -> Chip:
    """The chip of the option, else of this machine. Without an NPU X Elite."""
    from gateway.qnn.chips import chip_named
    from gateway.qnn.detect import chip_for_downloads

    return chip_named(name) if name else chip_for_downloads()


def _build(user: UserConfig, name: str, source: str) -> None:
    """Build the bundle of a source, as a start of the gateway does."""
    from msgspec.structs import replace

    from gateway.bundles.stamp import has_float_weights
    from gateway.commands.models.prepare import prepare_model
    from gateway.config.tables import LocalModel

    configured, models_dir = user.config.models.get(name), user.config.models_dir
    model = configured if isinstance(configured, LocalModel) else LocalModel()
    prepared = prepare_model(name, replace(model, path=str(models_dir / name), source=source), models_dir)
    if prepared.provider != model.provider and has_float_weights(source, models_dir):
        say(f"{name} answers from the CPU; while the gateway runs, it builds a bundle for the NPU in the background")


@contextmanager
def byte_bars() -> Iterator[Report]:
    """Yield a `Report` that shows a bar with rate and remaining time on a terminal, else a line for each stage."""
    from rich.console import Console

    console, shown = Console(stderr=True), ""
    bar: Progress | None = None

    def report(stage: str, done: int, total: int) -> None:
        nonlocal shown, bar
        if stage != shown:
            shown = stage
            if bar:
                bar.stop()
            has_bar = console.is_terminal and (total or stage.startswith("downloading"))
            bar = _bar(console, stage, total) if has_bar else None
            if bar is None:
                print(f"{stage}{f' ({total / 1e6:.0f} MB)' if total else ''}", file=sys.stderr, flush=True)
        if bar:
            bar.update(bar.task_ids[0], completed=done, total=total or None)
            if done == total:
                bar.stop()

    try:
        yield report
    finally:
        if bar:
            bar.stop()


def _bar(console: Console, stage: str, total: int) -> Progress:
    from rich import progress as rich

    facts = (rich.DownloadColumn(), rich.TransferSpeedColumn(), rich.TimeRemainingColumn())
    bars = (rich.BarColumn(bar_width=12),) if console.width >= 80 else ()
    bar = rich.Progress(rich.TextColumn("{task.description}", markup=False), *bars, *facts, console=console)
    most = max(console.width - _FACTS_WIDTH - 13 * len(bars), 10)
    bar.add_task(stage if len(stage) <= most else f"{stage[: most - 1]}…", total=total or None)
    bar.start()
    return bar
