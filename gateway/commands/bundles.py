"""Bundles on disk for the models that need one: what is there, and making what is missing under progress bars."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct
from msgspec.structs import asdict

from gateway.config import Config, ModelConfig
from gateway.errors import BundleError

if TYPE_CHECKING:
    from gateway.bundles.build import Progress


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
    path = Path(model.path)
    match model.engine:
        case "upstream":
            return ModelState(state="remote", detail=model.url)
        case "scripted":
            return ModelState(state="scripted", detail=model.simulate)
        case "genie":
            found = path.is_file()
            return ModelState(state="ready" if found else "missing", detail="" if found else f"no file {path}")
        case "local":
            return _examine_bundle(model, path)


def _examine_bundle(model: ModelConfig, path: Path) -> ModelState:
    from gateway.bundles.bundle import load_bundle

    if not path.is_dir():
        plan = f"made from {model.source} at the first start" if model.source else f"no folder {path}, and no source"
        return ModelState(state="missing", detail=plan)
    try:
        bundle = load_bundle(path)
    except BundleError as error:
        return ModelState(state="broken", detail=error.message)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return ModelState(state="ready", context_length=bundle.config.context_length, bytes=size)


def prepare(config: Config) -> None:
    """Download and build what the local models' `source` promises; nothing to do when all is there.

    A model whose bundle cannot be made is named on stderr. Raises BundleError when that leaves no model at all.
    """
    from gateway.bundles.fetch import ensure_bundle

    failures: list[BundleError] = []
    for name, model in config.models.items():
        if model.engine != "local":
            continue
        try:
            with progress_bars(name) as progress:
                ensure_bundle(model, config.models_dir, progress)
        except BundleError as error:
            failures.append(error)
            print(f"npu-gateway: {name}: {error.message}", file=sys.stderr)
    if failures and len(failures) == len(config.models):
        raise BundleError("No model can be served.")


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
