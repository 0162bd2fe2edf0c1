"""`npu-gateway check`: compare the files of the models with their hashes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.commands import options
from gateway.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from gateway.config.tables import Config, ModelConfig


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
    config = options.load(arguments)
    unknown = [name for name in arguments.models if name not in config.models]
    if unknown:
        raise ConfigError(f"There is no model '{unknown[0]}'. The configuration has: {', '.join(config.models)}.")
    is_damaged = False
    for name in arguments.models or config.models:
        folders = _folders(config, config.models[name])
        if not folders:
            print(f"{name}  no files  engine {config.models[name].engine}")
        for folder in folders:
            if arguments.record:
                _record(folder)
            state, detail = _state(name, config.models[name], folder)
            is_damaged = is_damaged or state == "damaged"
            print(f"{name}  {state}  {detail}", flush=True)
    return 1 if is_damaged else 0


def _folders(config: Config, model: ModelConfig) -> list[Path]:
    """The folders of a model's bundles: for the CPU, and for the NPU if there is one."""
    from gateway.bundles.replace import finish_replacement
    from gateway.bundles.stamp import npu_folder
    from gateway.config.tables import BundleModel, GenieModel

    if not isinstance(model, BundleModel) or not model.path:
        return []
    path = config.models_dir / model.path
    if isinstance(model, GenieModel):
        return [path.parent]
    both = (path, npu_folder(path))
    for folder in both:
        finish_replacement(folder)
    return [folder for folder in both if folder.is_dir()] or [path]


def _state(name: str, model: ModelConfig, folder: Path) -> tuple[str, str]:
    from gateway.bundles.disk import folder_bytes
    from gateway.bundles.hashes import check_hashes, repair_advice
    from gateway.config.tables import LocalModel

    if not folder.is_dir():
        return "missing", f"{folder} does not exist"
    damages = check_hashes(folder)
    if damages is None:
        return "unknown", f"no hashes; `npu-gateway check --record {name}` records the files as they are"
    if damages:
        has_source = isinstance(model, LocalModel) and bool(model.source)
        advice = repair_advice(name, damages, folder=folder, has_source=has_source)
        return "damaged", f"{'; '.join(map(str, damages))}. {advice}"
    return "ok", f"{folder.name}, {folder_bytes(folder) / 1e6:.0f} MB"


def _record(folder: Path) -> None:
    from gateway.bundles.hashes import write_hashes

    try:
        write_hashes(folder)
    except OSError as error:
        raise BundleError(f"{folder}: the hashes cannot be written: {error.strerror or error}.") from error
