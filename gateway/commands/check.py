"""`npu-gateway check`: compare the files of the models with their hashes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.commands import options
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.config.tables import ModelConfig


def add_parser(subparsers: options.Subparsers) -> None:
    text = "Read every file of the models and compare it with its hash. Exit code 1 if a file is damaged."
    parser = subparsers.add_parser("check", help="find damaged model files", description=text)
    parser.add_argument("models", metavar="MODEL", nargs="*", help="names of models (default: all)")
    parser.add_argument(
        "--record", action="store_true", help="accept the files as they are: write new hashes, and compare nothing"
    )
    options.add_config(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from gateway.commands.model_state import bundle_folders

    config = options.load(arguments)
    unknown = [name for name in arguments.models if name not in config.models]
    if unknown:
        raise ConfigError(f"There is no model '{unknown[0]}'. The configuration has: {', '.join(config.models)}.")
    is_bad = False
    for name in arguments.models or config.models:
        folders = bundle_folders(config.models[name])
        if not folders:
            print(f"{name}  no files  engine {config.models[name].engine}")
        for folder in folders:
            state, detail = _state(name, config.models[name], folder, record=arguments.record)
            is_bad = is_bad or state in ("damaged", "not recorded")
            print(f"{name}  {state}  {detail}", flush=True)
    return 1 if is_bad else 0


def _state(name: str, model: ModelConfig, folder: Path, *, record: bool) -> tuple[str, str]:
    from gateway.bundles.disk import folder_bytes
    from gateway.bundles.hashes import check_hashes, repair_advice, write_hashes
    from gateway.config.tables import LocalModel

    if not folder.is_dir():
        return "missing", f"{folder} does not exist"
    try:
        if record:
            write_hashes(folder)
    except OSError as error:
        return "not recorded", f"{folder}: the hashes cannot be written: {error.strerror or error}"
    damages = check_hashes(folder)
    if damages is None:
        return "unknown", f"no hashes; `npu-gateway check --record {name}` records the files as they are"
    if damages:
        has_source = isinstance(model, LocalModel) and bool(model.source)
        advice = repair_advice(name, damages, folder=folder, has_source=has_source)
        return "damaged", f"{'; '.join(map(str, damages))}. {advice}"
    return "ok", f"{folder.name}, {folder_bytes(folder) / 1e6:.0f} MB"
