"""Builds the missing bundles of the configured models, with progress bars, before the gateway starts.

A child process builds them. This process loads neither the builder nor its native libraries.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import msgspec
from msgspec.structs import replace

from gateway.bundles.stamp import build_request, forget_failure, plan_bundle, plan_start
from gateway.child import Progress, run_in_child
from gateway.config.select import waits_for_demand
from gateway.config.tables import Config, GenieModel, LocalModel, ModelConfig
from gateway.errors import BundleError
from gateway.qnn.detect import Provider, npu_for, variant_here

_CLEAN_UP_S = 10.0  # for the removal of an unfinished bundle after an interrupt


HasNpu = Callable[[Provider], bool]


def ask_once() -> HasNpu:
    """Whether a model with a provider will run on an NPU. Finds it out once for each: a process opens the driver."""
    return cache(lambda provider: npu_for(provider) is not None)


def prepare(config: Config, *, all_now: bool = False, has_npu: HasNpu | None = None) -> Config:
    """Download and build the bundles that are missing or outdated.

    Args:
        all_now: also those for the NPU that a running gateway builds in the background, and those of models that are
            loaded on demand.
        has_npu: None: a new `ask_once`.
    Returns the configuration with the paths of the bundles that will be used. Reports each failure on stderr.
    Raises BundleError if every model failed.
    """
    models: dict[str, ModelConfig] = {}
    failures: list[BundleError] = []
    skipped = 0  # models whose first request builds them

    has_npu = has_npu or ask_once()
    drafts = {model.draft for model in config.models.values() if isinstance(model, LocalModel)}
    for name, model in config.models.items():
        models[name] = model
        if waits_for_demand(model) and not all_now and getattr(model, "path", "") not in drafts:
            skipped += 1
            continue
        try:
            if isinstance(model, GenieModel):
                _require_bundle(model)
            if isinstance(model, LocalModel):
                models[name] = _prepared(name, model, config.models_dir, has_npu, all_now)
        except BundleError as error:
            failures.append(error)
            print(f"npu-gateway: {name}: {error.message}", file=sys.stderr)
    if failures and len(failures) == len(config.models) - skipped:
        raise BundleError("No model can be served.")
    return replace(config, models=models)


def _require_bundle(model: GenieModel) -> None:
    """Raise BundleError if the bundle does not exist: it is not built, so a gateway with no other model is useless."""
    path = Path(model.path)
    if not path.exists():
        raise BundleError(f"There is no bundle {path}. `npu-gateway pull` downloads one; `path` names its folder.")


def first_ready(config: Config, only: str | None, has_npu: HasNpu) -> tuple[str, LocalModel] | None:
    """The first model that is loaded with the gateway, as `prepare` returns it. None: it is not local, or not built.

    Args:
        only: the name of the model to serve; None: all models.
    """
    for name, model in config.models.items():
        if only in (None, name) and isinstance(model, LocalModel) and model.load == "start":
            path = _ready_path(model, config.models_dir, has_npu)
            return (name, replace(model, path=str(path))) if path else None
    return None


def _ready_path(model: LocalModel, models_dir: Path, has_npu: HasNpu) -> Path | None:
    """The folder of the bundle. None: it is not built, or `prepare` has something to report."""
    try:
        plan = plan_start(model, models_dir, lambda: has_npu(model.provider))
        is_ready = plan.is_ready and not plan.waits_for_npu
        return variant_here(plan.folder, model.provider) if is_ready else None
    except (BundleError, OSError):
        return None


def prepare_model(name: str, model: LocalModel, models_dir: Path) -> LocalModel:
    """As `prepare`, for one model. Raises BundleError."""
    return _prepared(name, model, models_dir, ask_once())


def _prepared(name: str, model: LocalModel, models_dir: Path, has_npu: HasNpu, all_now: bool = False) -> LocalModel:
    """The model with the path of its bundle. If the NPU's bundle cannot be built, `auto` falls back to the CPU."""
    plan = plan_start(model, models_dir, lambda: has_npu(model.provider))
    if plan.waits_for_npu:
        on_cpu = _prepared(name, replace(model, provider="cpu"), models_dir, has_npu)
        plan = plan_start(model, models_dir, lambda: True)
        if plan.waits_for_npu and not all_now:  # else the source was a bundle, which is copied now
            return on_cpu
        if plan.waits_for_npu:
            forget_failure(plan.folder)
            plan = plan_bundle(model, models_dir, lambda: True)
    if plan.is_ready:
        return replace(model, path=str(variant_here(plan.folder, model.provider)))
    try:
        return replace(model, path=_build(name, model, models_dir))
    except BundleError as error:
        if not plan.for_npu or model.provider != "auto":
            raise
        on_cpu = _prepared(name, replace(model, provider="cpu"), models_dir, has_npu)
        print(f"npu-gateway: {name} runs on the CPU: {error.message}", file=sys.stderr)
        return on_cpu


def _build(name: str, model: LocalModel, models_dir: Path) -> str:
    """Build the bundle in a child process. Returns its folder."""
    from gateway.engines.head_start import end_unused

    end_unused()  # the build needs the memory, and the model loads in the usual way after it
    request = build_request(model, models_dir)
    with progress_bars(name) as progress:
        what = f"the bundle of {name}"
        reply = run_in_child("gateway.builder.main", request, what, progress=progress, clean_up_s=_CLEAN_UP_S)
    return msgspec.json.decode(reply, type=str)


@contextmanager
def progress_bars(name: str) -> Iterator[Progress]:
    """Yield a `Progress` that shows a bar on stderr for each stage, or a line if stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    bars = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
        console=Console(stderr=True),
    )  # fmt: skip
    stages: dict[str, TaskID] = {}

    def report(stage: str, fraction: float) -> None:
        if stage not in stages:
            if not bars.console.is_terminal:  # there, bars would appear only at the end
                print(f"{name}: {stage}", file=sys.stderr, flush=True)
            elif not stages:
                bars.start()
            stages[stage] = bars.add_task(f"{name}: {stage}", total=1.0)
        bars.update(stages[stage], completed=fraction)

    try:
        yield report
    finally:
        if bars.live.is_started:
            bars.stop()
