"""`npu-gateway check`: compare the files of the models with their hashes, or examine a bundle before it is served."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.commands import options
from gateway.errors import BundleError, ConfigError, quote
from gateway.monitoring.output import escape

if TYPE_CHECKING:
    from gateway.config.tables import Config, ModelConfig
    from gateway.pull.examine.verdict import Verdict
    from gateway.qnn.chips import Chip
    from gateway.qnn.device import NpuDevice


def add_parser(subparsers: options.Subparsers) -> None:
    text = (
        "Read every file of the models and compare it with its hash. Exit code 1 if a file is damaged. For a folder, a "
        "zip, the URL of a zip, hf:ORG/REPO, or a model with --chip or --mend: its layout, whether it loads on a chip, "
        "what it lacks, needs, and what the gateway corrects. Exit code 1 if it does not load. Nothing is downloaded "
        "but the list of files and the small ones."
    )
    parser = subparsers.add_parser("check", help="find damaged files, examine a bundle", description=text)
    parser.add_argument(
        "models",
        metavar="MODEL|FOLDER|ZIP|URL|hf:ORG/REPO",
        nargs="*",
        help="names of models (default: all), or bundles",
    )
    parser.add_argument(
        "--record", action="store_true", help="accept the files as they are: write new hashes, and compare nothing"
    )
    parser.add_argument("--chip", help="x-elite, x-plus or x2-elite (default: the chip of this machine)")
    parser.add_argument(
        "--mend", action="store_true", help="write the corrected small files to NAME-mended, next to the bundle"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options.add_config(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    targets, models = _sorted(arguments)
    if targets and (models or arguments.record):
        raise ConfigError("check takes names of models, or bundles: not both, and --record takes names only.")
    if targets:
        return _check_bundles(targets, arguments)
    config = options.load(arguments)
    _check_names(config, models)
    if not arguments.chip and not arguments.mend:
        return _check_models(config, models or list(config.models), record=arguments.record, as_json=arguments.json)
    if arguments.record:
        raise ConfigError("--record accepts the files as they are. Leave out --chip and --mend.")
    return _check_bundles(_bundles_of(config, models), arguments)


def _sorted(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """What is a bundle, and what is the name of a model."""
    from gateway.pull.examine.target import is_target
    from gateway.pull.spec import existing

    targets = [text for text in arguments.models if is_target(text)]
    names = [text for text in arguments.models if text not in targets]
    if any(map(existing, names)):  # in the working directory
        configured = options.load(arguments).models
        targets += [name for name in names if name not in configured and existing(name)]
    return targets, [name for name in names if name not in targets]


# --- bundles


def _check_bundles(targets: list[str], arguments: argparse.Namespace) -> int:
    from gateway.qnn.chips import CHIPS, chip_named

    here = cache(_here)  # detection starts a process
    chip = chip_named(arguments.chip) if arguments.chip else here()[1] or CHIPS[0]
    verdicts = [_examined(text, chip, here, mend=arguments.mend) for text in targets]
    if arguments.json:
        print(json.dumps([verdict.as_dict() for verdict in verdicts], indent=2))
    else:
        print("\n\n".join("\n".join(map(escape, _lines(verdict))) for verdict in verdicts))
    return 0 if all(verdict.loads for verdict in verdicts) else 1


def _here() -> tuple[NpuDevice | None, Chip | None]:
    """The NPU or the emulator of this machine, and its chip."""
    from gateway.qnn.detect import chip_here, try_detect_npu

    device = try_detect_npu(emulated=True)
    return device, (device.chip or chip_here()) if device else None


def _examined(
    text: str, chip: Chip, here: Callable[[], tuple[NpuDevice | None, Chip | None]], *, mend: bool
) -> Verdict:
    from gateway.bundles.disk import cache_folder
    from gateway.pull.examine.speed import published_speed
    from gateway.pull.examine.target import open_target
    from gateway.pull.examine.trial import try_folder
    from gateway.pull.examine.verdict import examine
    from gateway.qnn.device import machine_with

    with open_target(text) as target:
        mended = target.next_to / f"{target.name}-mended" if mend else None
        try:
            verdict = examine(target, machine_with(chip), mended=mended)
        except OSError as error:
            raise BundleError(f"{mended or target.name} cannot be written: {error.strerror or error}.") from error
        verdict.tokens_per_s = published_speed(target.root, target.name, chip, cache_folder())
        if target.folder is not None and verdict.loads and verdict.layout in _LOADABLE:
            device, own = here()
            is_own = own is not None and own.soc_models == chip.soc_models
            try_folder(verdict, target.folder, chip.soc_models[0], device if is_own else None, mended)
    return verdict


_LOADABLE = ("genie", "pipeline", "package", "graph", "text-encoder")
_LAYOUTS = {
    "genie": "Genie's configuration and context binaries, for the NPU",
    "pipeline": "stages in ONNX Runtime GenAI's form, for the NPU",
    "package": "a model package of ONNX Runtime",
    "graph": "one graph in ONNX Runtime GenAI's form, for the CPU",
    "text-encoder": "an encoder, for embeddings or rankings",
    "gguf": "weights: `npu-gateway pull` builds a bundle from them",
    "huggingface": "weights: `npu-gateway pull` builds a bundle from them",
}


def _lines(verdict: Verdict) -> Iterator[str]:
    chip = verdict.machine
    yield f"{verdict.target}  {f'loads on {chip}' if verdict.loads else f'does not load on {chip}'}"
    for kind in ("refused", "missing", "corrected", "warnings", "written"):
        for sentence in getattr(verdict, kind):
            yield f"  {kind.removesuffix('s'):<10} {sentence}"
    if verdict.layout in _LAYOUTS:
        tested = "; each release is tested with a small model of it" if verdict.proven_by else ""
        yield f"  layout     {_LAYOUTS[verdict.layout]}{tested}"
    if verdict.made_for or verdict.qairt:
        yield f"  made for   {verdict.made_for or 'an unknown chip'}, QAIRT {verdict.qairt or 'unknown'}"
    if verdict.loads:
        yield f"  needs      {'; '.join(_needs(verdict))}"
        if verdict.tokens_per_s:
            yield f"  speed      about {verdict.tokens_per_s:g} tokens/s, published for this model and chip"
        yield f"  loaded     {verdict.loaded or 'not tried here'}"


def _needs(verdict: Verdict) -> Iterator[str]:
    from gateway.bundles.disk import megabytes

    caches = "" if verdict.layout == "text-encoder" else " and the caches of its conversations"
    yield f"{megabytes(verdict.memory_bytes)} of memory{caches}"
    if verdict.context:
        yield f"context of {verdict.context} tokens"
    if verdict.binaries:
        graphs = f" with {verdict.graphs} graphs" if verdict.graphs else ""
        yield f"{verdict.binaries} binaries{graphs}"


# --- configured models


def _check_names(config: Config, names: list[str]) -> None:
    unknown = [name for name in names if name not in config.models]
    if unknown:
        raise ConfigError(
            f"There is no model {quote(unknown[0])} in the configuration, which has: {', '.join(config.models)}. "
            "`npu-gateway pull` downloads a model and checks it."
        )


def _bundles_of(config: Config, names: list[str]) -> list[str]:
    """The folders of these models' bundles, or of all."""
    from gateway.commands.models.model_state import bundle_folders

    found = {
        name: [str(each) for each in bundle_folders(config.models[name]) if each.is_dir()] for name in config.models
    }
    empty = [name for name in names if not found[name]]
    if empty or not any(found.values()):
        raise ConfigError(
            f"{f'Model {quote(empty[0])} has no' if empty else 'No model has'} files here to examine. "
            "`npu-gateway models` shows the state of each model."
        )
    return [folder for name in names or found for folder in found[name]]


def _check_models(config: Config, names: list[str], *, record: bool, as_json: bool) -> int:
    rows = []
    for row in _states(config, names, record=record):
        rows.append(row)
        if not as_json:
            print("  ".join(row), flush=True)
    if as_json:
        print(json.dumps([dict(zip(("model", "state", "detail"), row, strict=True)) for row in rows], indent=2))
    return 1 if any(state in ("damaged", "not recorded") for _, state, _ in rows) else 0


def _states(config: Config, names: list[str], *, record: bool) -> Iterator[tuple[str, str, str]]:
    """(model, state, detail) for each folder of these models."""
    from gateway.commands.models.model_state import bundle_folders

    for name in names:
        folders = bundle_folders(config.models[name])
        if not folders:
            yield name, "no files", f"engine {config.models[name].engine}"
        for folder in folders:
            yield (name, *_state(name, config.models[name], folder, record=record))


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
