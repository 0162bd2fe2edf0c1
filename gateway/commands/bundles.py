"""Bundles on disk for the models that need one: what is there, and making what is missing under progress bars."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct
from msgspec.structs import asdict, replace

from gateway.config import Config, GenieModel, LocalModel, ModelConfig, ScriptedModel, UpstreamModel
from gateway.errors import BundleError

if TYPE_CHECKING:
    from gateway.builder.build import Progress


class ModelState(Struct, frozen=True, kw_only=True):
    """What `models` and `doctor` say of a configured model before anything is loaded."""

    state: Literal["ready", "missing", "broken", "remote", "scripted"]
    detail: str = ""
    context_length: int = 0
    bytes: int = 0

    def as_dict(self) -> dict[str, str | int]:
        return asdict(self)


def examine(model: ModelConfig) -> ModelState:
    """Look at the model's files, without a runtime."""
    match model:
        case UpstreamModel(url=url):
            return ModelState(state="remote", detail=url)
        case ScriptedModel(simulate=chip):
            return ModelState(state="scripted", detail=chip)
        case GenieModel(path=path):
            return _examine_genie(model, Path(path))
        case LocalModel(path=path):
            return _examine_bundle(model, Path(path))


def _examine_bundle(model: LocalModel, path: Path) -> ModelState:
    from gateway.bundles.bundle import load_bundle
    from gateway.bundles.graph_files import check_graph_files

    if not path.is_dir():
        plan = f"made from {model.source} at the first start" if model.source else f"no folder {path}, and no source"
        return ModelState(state="missing", detail=plan)
    try:
        bundle = load_bundle(path)
        check_graph_files(bundle)
    except BundleError as error:
        return ModelState(state="broken", detail=error.message)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return ModelState(state="ready", context_length=bundle.config.context_length, bytes=size)


def _examine_genie(model: GenieModel, path: Path) -> ModelState:
    from gateway.bundles.genie_config import load_genie_bundle

    if not path.is_file():
        return ModelState(state="missing", detail=f"no file {path}")
    try:
        bundle = load_genie_bundle(path, model.dialect)
    except BundleError as error:
        return ModelState(state="broken", detail=error.message)
    size = sum(binary.stat().st_size for binary in bundle.binaries)
    return ModelState(state="ready", context_length=bundle.usable_context, bytes=size)


def prepare(config: Config) -> Config:
    """Download and build what the local models' `source` promises; nothing to do when all is there.

    Returns the configuration with the paths of the bundles that will be used. A model whose bundle cannot be made is
    named on stderr. Raises BundleError when that leaves no model at all.
    """
    models: dict[str, ModelConfig] = {}
    failures: list[BundleError] = []
    for name, model in config.models.items():
        try:
            models[name] = _prepared(name, model, config.models_dir) if isinstance(model, LocalModel) else model
        except BundleError as error:
            models[name] = model
            failures.append(error)
            print(f"npu-gateway: {name}: {error.message}", file=sys.stderr)
    if failures and len(failures) == len(config.models):
        raise BundleError("No model can be served.")
    return replace(config, models=models)


def _prepared(name: str, model: LocalModel, models_dir: Path) -> LocalModel:
    """`auto` falls back to the CPU where the NPU cannot be built for; who asked for `qnn` gets the error."""
    from gateway.builder.fetch import ensure_bundle

    try:
        with progress_bars(name) as progress:
            return replace(model, path=str(ensure_bundle(model, models_dir, progress)))
    except BundleError as error:
        if model.provider != "auto":
            raise
        on_cpu = replace(model, provider="cpu")
        with progress_bars(name) as progress:
            path = ensure_bundle(on_cpu, models_dir, progress)
        print(f"npu-gateway: {name} runs on the CPU: {error.message}", file=sys.stderr)
        return replace(on_cpu, path=str(path))


@contextmanager
def progress_bars(name: str) -> Iterator[Progress]:
    """A bar on stderr for each stage that is reported; none at all when nothing is."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    bars = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
        console=Console(stderr=True),
    )  # fmt: skip
    stages: dict[str, TaskID] = {}

    def report(stage: str, fraction: float) -> None:
        if not stages:
            bars.start()
        if stage not in stages:
            stages[stage] = bars.add_task(f"{name}: {stage}", total=1.0)
        bars.update(stages[stage], completed=fraction)

    try:
        yield report
    finally:
        if stages:
            bars.stop()
