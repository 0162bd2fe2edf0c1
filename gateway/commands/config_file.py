"""`npu-gateway config init|path|check`: make the user's config.toml, say which one is read, and check one."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.commands import options
from gateway.errors import ConfigError, GatewayError
from gateway.monitoring.output import escape

if TYPE_CHECKING:
    from gateway.config.tables import Config, ModelConfig

_DOCUMENTED = "Every key: docs/configuration.md."


def add_parser(subparsers: options.Subparsers) -> None:
    text = f"Make the configuration, show which file is read, or check one. {_DOCUMENTED}"
    parser = subparsers.add_parser("config", help="make, find or check config.toml", description=text)
    commands = parser.add_subparsers(metavar="init|path|check", required=True)

    text = "Write the delivered configuration with its comments to FILE, which must not exist, for you to edit."
    init = commands.add_parser("init", help="write a configuration to edit", description=text)
    init.add_argument("file", metavar="FILE", nargs="?", type=Path, help="default: config.toml in your data folder")
    init.add_argument("--installed", action="store_true", help="add models that other programs have on this machine")
    init.set_defaults(run=run_init)

    text = "Print the file that is read. In a terminal also why, and the order of the search."
    path = commands.add_parser("path", help="print which file is read, and why", description=text)
    options.add_config(path)
    path.set_defaults(run=run_path)

    text = "Check a configuration: one line for each mistake, or `ok` and what is configured. No model is loaded."
    check = commands.add_parser("check", help="check a configuration", description=text)
    check.add_argument("file", metavar="FILE", nargs="?", type=Path, help="default: the file that is read")
    options.add_config(check)
    check.set_defaults(run=run_check)


def run_init(arguments: argparse.Namespace) -> int:
    from gateway.config.find import NAME, delivered_file, search, user_file

    delivered, base = delivered_file()
    file = (arguments.file or user_file()).absolute()
    if file.is_dir():
        file = file / NAME
    if file.exists():
        raise GatewayError(f"{file} exists already and is not changed. Edit it, or give another FILE.")
    text = delivered.read_text(encoding="utf-8")
    if file.parent != base.absolute():
        text = _with_models_dir(text, base.absolute() / "models")
    if arguments.installed:
        text = "\n".join([text.rstrip(), "", *_installed_tables(), ""])
    _write(file, text)
    print(f"{escape(str(file))} is written. {_DOCUMENTED}")
    used = next(each for each in search() if each.state == "used")
    if used.file.absolute() != file:
        print(f"Here {escape(str(used.file.absolute()))} is read ({used.why}); the new one with --config FILE.")
    return 0


def _with_models_dir(text: str, models_dir: Path) -> str:
    """The models stay where they are: a relative `models_dir` would mean another folder."""
    path = str(models_dir)
    value = f"'{path}'" if "'" not in path and path.isprintable() else json.dumps(path, ensure_ascii=False)
    return re.sub(r'(?m)^models_dir = ".*?"', lambda _: f"models_dir = {value}", text, count=1)


def _installed_tables() -> Iterator[str]:
    from gateway.commands.models.catalog import machine_here
    from gateway.config.file import environment_with
    from gateway.pull.installed.programs import program_folders
    from gateway.pull.installed.search import find_installed

    found = find_installed(list(program_folders(Path.home(), environment_with())), cache(machine_here))
    for model in found:
        if model.table:
            yield f"# {escape(model.program)}, {model.bytes / 1e9:.1f} GB"
            yield model.table
    if not any(model.table for model in found):
        yield "# No model of another program was found on this machine: `npu-gateway catalog --installed`."


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600, exist_ok=False)  # it may get keys
        file.write_text(text, encoding="utf-8")
    except FileExistsError:
        raise GatewayError(f"{file} cannot be written: {file.parent} is not a folder, or the file exists.") from None
    except OSError as error:
        raise GatewayError(f"{file} cannot be written: {error.strerror or error}. Give another FILE.") from None


def run_path(arguments: argparse.Namespace) -> int:
    from gateway.commands.tables import Column, write_table
    from gateway.config.find import CONFIG_VARIABLE, search

    found = search(arguments.config)
    used = next(each for each in found if each.state == "used")
    print(escape(str(used.file.absolute())))
    if sys.stdout.isatty():
        rows = [(each.why, str(each.file.absolute()), each.state) for each in found]
        if not arguments.config:
            named = (
                []
                if used.why.endswith(CONFIG_VARIABLE)
                else [(f"environment variable {CONFIG_VARIABLE}", "", "not set")]
            )
            rows = [("--config FILE", "", "not given"), *named, *rows]
        print("\nThe first of these that is there:")
        write_table([(index, *row) for index, row in enumerate(rows, 1)], [Column(right=True), "", "", ""])
    if not used.file.exists():
        raise GatewayError(f"{used.file}: the file does not exist; `npu-gateway config init FILE` writes one")
    return 0


def run_check(arguments: argparse.Namespace) -> int:
    from gateway.config.file import all_mistakes
    from gateway.config.find import find_config

    path = arguments.file or arguments.config
    config, mistakes = all_mistakes(path)
    for message in mistakes:
        print(escape(message), file=sys.stderr)
    if mistakes:
        raise ConfigError(f"{len(mistakes)} {'mistakes' if len(mistakes) > 1 else 'mistake'}")
    file, _ = find_config(path)
    print(f"ok  {escape(str(file.absolute()))}")
    for line in _configured(config, file):
        print(f"  {escape(line)}")
    return 0


def _configured(config: Config, file: Path) -> Iterator[str]:
    from gateway.commands.models.model_state import examine
    from gateway.config.file import has_keys
    from gateway.config.keys import key_warnings
    from gateway.config.limits import limit_lines, limit_warnings
    from gateway.config.tables import UpstreamModel
    from gateway.config.upstream import missing_key, servers_of

    keys = len(config.server.api_keys)
    needed = f"{keys} API {'keys' if keys > 1 else 'key'}" if keys else "no API key needed"
    if config.state.keys:
        needed = f"{needed}, and those of the database" if keys else "a key of the database is needed"
    yield f"{options.base_url(config.server.host, config.server.port)}/v1, {needed}"
    for name, model in config.models.items():
        yield f"{name}: {_described(model)}"
    yield from limit_lines(config)
    if config.default_model:
        yield f"requests for an unknown model get {config.default_model}"
    for name, model in config.models.items():
        state = examine(model)
        if state.state in ("missing", "broken"):
            yield f"note: {name}: {state.detail}"
        if isinstance(model, UpstreamModel):
            for problem in dict.fromkeys(filter(None, map(missing_key, servers_of(name, model)))):
                yield f"note: {name}: {problem}"
    for line in [*key_warnings(config.server, file if has_keys(file) else None), *limit_warnings(config)]:
        yield f"note: {line}"


def _described(model: ModelConfig) -> str:
    from gateway.config.tables import GenieModel, LocalModel, UpstreamModel

    match model:
        case UpstreamModel(targets=()):
            what = f"on the server {model.url}"
        case UpstreamModel():
            what = f"on {len(model.targets)} server{'s' * (len(model.targets) != 1)}"
        case LocalModel(source=source, path=path, provider=provider):
            where = {"auto": "on the NPU if there is one", "qnn": "on the NPU", "cpu": "on the CPU"}[provider]
            what = f"{where}, {path}" + (f", built from {source}" if source else "")
        case GenieModel(path=path):
            what = f"on the NPU with Genie, {path}"
        case _:
            what = "scripted answers"
    names = f", also as {', '.join(model.aliases)}" if model.aliases else ""
    fallback = f", fallback {model.fallback}" if model.fallback else ""
    return f"{what}{names}{fallback}"
