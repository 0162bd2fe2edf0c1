"""The configured models: their files, where they can run, and the settings that make them slow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.bundles.disk import megabytes
from gateway.commands.doctor.finding import Finding
from gateway.commands.models.model_state import ModelState, bundle_folders, examine, npu_build
from gateway.config.tables import BundleModel, Config, GenieModel, LocalModel, ModelConfig, UpstreamModel

if TYPE_CHECKING:
    from gateway.bundles.preflight.preflight import Machine

OTHER = "`npu-gateway catalog` lists models for this NPU"
_PULL = "`npu-gateway pull` downloads a model; `npu-gateway list` shows those on the disk"


def files(name: str, model: ModelConfig, budget: float = math.inf) -> Iterator[Finding]:
    """The state of a model's files. Nothing is loaded. `budget`: bytes for all models together."""
    if isinstance(model, UpstreamModel):
        return
    found, what = examine(model, budget), f"model {name}"
    match found.state:
        case "ready":
            waits = isinstance(model, LocalModel) and npu_build(model, bundle_folders(model)[0])
            yield Finding("note" if waits else "ok", what, _described(model, found))
        case "missing" if isinstance(model, LocalModel) and model.source:
            because = f"{name} is not here yet: `npu-gateway serve` downloads and builds it"
            yield Finding("note", what, found.detail, "", because)
        case "missing":
            yield Finding("bad", what, found.detail, "bundle is missing", f"{name}: {found.detail}", _PULL)
        case "broken":
            step = f"`npu-gateway check {name}` names the damaged files"
            yield Finding("bad", what, found.detail, "bundle is damaged", f"{name}: {found.detail}", step)
        case _:
            yield Finding("ok", what, f"{found.state} {found.detail}".strip())
    if isinstance(model, BundleModel) and found.state in ("ready", "broken"):
        yield from damages(name, model)


def _described(model: ModelConfig, found: ModelState) -> str:
    path = model.path if isinstance(model, BundleModel) else ""
    facts = (
        path,
        f"context {found.context_length}" if found.bytes else "",
        megabytes(found.bytes) if found.bytes else "",
        found.published and f"published: {found.published}",
    )
    return ", ".join(filter(None, facts)) + (f"; {found.detail}" if found.detail else "")


def damages(name: str, model: BundleModel) -> Iterator[Finding]:
    """Compare the files with their hashes. Files that were compared this week and did not change are not read."""
    from gateway.bundles.hashes import check_hashes, repair_advice

    for folder in bundle_folders(model):
        if found := check_hashes(folder, quick=True):
            has_source = isinstance(model, LocalModel) and bool(model.source)
            advice = repair_advice(name, found, folder=folder, has_source=has_source)
            text = "; ".join(map(str, found))
            yield Finding(
                "bad", f"files of {name}", f"{text}. {advice}", "bundle is damaged", f"{name}: {text}", advice
            )


def fit(name: str, model: BundleModel, machine: Machine) -> Iterator[Finding]:
    """The chip and the QAIRT version of each bundle against the machine."""
    from gateway.bundles.preflight.preflight import UPGRADE, newer_runtime, wrong_chip
    from gateway.bundles.preflight.stated import read_stated

    for folder in bundle_folders(model):
        stated = read_stated(folder) if folder.is_dir() else None
        if stated is None:
            continue
        what = f"bundle {folder.name}"
        if text := wrong_chip(folder.name, stated, machine):
            because, _, step = text.partition(". ")
            yield Finding("bad", what, text, "bundle is for another chip", because, step)
        elif text := newer_runtime(folder.name, stated.qairt, machine.qairt):
            yield Finding(
                "bad", what, text, "bundle needs a newer runtime", text.removesuffix(UPGRADE).strip(), UPGRADE
            )
        elif stated.qairt or stated.soc or stated.architecture:
            runtime = f"QAIRT {stated.qairt or 'unknown'}, installed {machine.qairt or 'none'}"
            yield Finding(
                "ok", what, f"for {stated.target if stated.soc or stated.architecture else 'any chip'}, {runtime}"
            )


def settings(name: str, model: ModelConfig, *, has_npu: bool, cores: int) -> Iterator[Finding]:
    """Keys of the model's table that keep it from the NPU, or that make it slow on the CPU.

    Args:
        has_npu: this machine has a real NPU.
        cores: threads that the gateway takes by default.
    """
    what = f"settings of {name}"
    if isinstance(model, LocalModel) and has_npu:
        if model.provider == "cpu":
            because, step = (
                f'{name} has provider = "cpu"',
                f'remove `provider` from [models."{name}"], or set it to "auto"',
            )
            yield Finding("note", what, because, "provider", because, step, "not on the NPU")
        mode = model.provider_options.get("htp_performance_mode", "burst")
        if mode != "burst":
            because, step = (
                f"{name} has htp_performance_mode = {mode!r}",
                "remove it from `provider_options`: burst is the default",
            )
            yield Finding("note", what, because, "burst", because, step)
    if isinstance(model, LocalModel) and not has_npu and model.provider == "qnn":
        because = f'{name} has provider = "qnn", and this machine has no NPU: the slow emulator runs it'
        yield Finding("note", what, because, "provider", because, f'remove `provider` from [models."{name}"]', "slow")
    on_cpu = isinstance(model, LocalModel) and (model.provider == "cpu" or not has_npu)
    if isinstance(model, LocalModel) and on_cpu and 0 < model.threads < cores:
        because = f"{name} uses {model.threads} of {cores} threads"
        yield Finding("note", what, because, "threads", because, f'remove `threads` from [models."{name}"]')


def npu_graphs(name: str, model: LocalModel, *, has_npu: bool) -> Iterator[Finding]:
    """Load the model's graphs for the NPU, and report how many of their nodes run there, and whether burst is on."""
    from gateway.bundles.encoder.bundle import is_encoder_bundle
    from gateway.bundles.genai_config import read_genai_config
    from gateway.bundles.model_package import variant_folder
    from gateway.bundles.open import is_genie
    from gateway.errors import BundleError
    from gateway.qnn.detect import npu_for
    from gateway.qnn.driver_errors import explain
    from gateway.worker.decoders.static.load_check import check_load

    what, has_graphs = f"model {name} on the NPU", False
    for folder in bundle_folders(model):
        try:
            if not folder.is_dir() or not (folder == Path(model.path) or npu_for(model.provider) is not None):
                continue
            if is_encoder_bundle(folder):
                return  # this check loads the graphs of decoders
            if not (is_genie(folder) or read_genai_config(variant_folder(folder)).decoder.stages):
                continue
            has_graphs = True
            found = check_load(variant_folder(folder), model.provider, model.provider_options)
        except BundleError as error:
            known = explain(error.message)
            because = f"{name}: {known.meaning if known else error.message}"
            yield Finding("bad", what, error.message, "load", because, known.step if known else "")
            continue
        fallback = found.placement.get("CPU", 0)
        where = f"{found.placement.get('QNN', 0)} nodes on the NPU ({found.device}), {fallback} on the CPU"
        text = f"{folder.name}: {where}; loaded in {found.load_s:.1f} s"
        if fallback:
            because = f"{fallback} nodes of {name} run on the CPU"
            yield Finding("note", what, text, "partly on the CPU", because, OTHER)
        else:
            yield Finding("ok", what, text)
        if found.device == "npu":
            yield from burst(name, found.refusal)
    if has_npu and not has_graphs and model.provider != "cpu" and Path(model.path).is_dir():
        because = f"{name} has only a bundle for the CPU"
        yield Finding("note", what, because, "no bundle for the NPU", because, OTHER, "not on the NPU")


def burst(name: str, refusal: str) -> Iterator[Finding]:
    """`refusal`: the driver's message; "": it accepted burst mode."""
    what = f"burst mode of {name}"
    if refusal:
        because, step = f"the driver refuses burst mode: {refusal}", "install the newest driver with Windows Update"
        yield Finding("note", what, because, "burst", because, step)
    else:
        yield Finding("ok", what, "accepted by the driver")


def checked_locally(config: Config) -> dict[str, LocalModel | GenieModel]:
    """The models that run on this machine."""
    return {name: model for name, model in config.models.items() if isinstance(model, LocalModel | GenieModel)}


def is_ready(model: LocalModel | GenieModel) -> bool:
    return examine(model).state == "ready"
