"""The state of a configured model's bundle, for `models` and `doctor`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from msgspec import Struct
from msgspec.structs import asdict, replace

from gateway.config.tables import BundleModel, GenieModel, LocalModel, ModelConfig, ScriptedModel, UpstreamModel
from gateway.errors import BundleError


class ModelState(Struct, frozen=True, kw_only=True):
    """The state of a configured model's files, before a model is loaded."""

    state: Literal["ready", "missing", "broken", "remote", "scripted"]
    detail: str = ""
    context_length: int = 0  # tokens that it serves
    context_note: str = ""  # one sentence if the context is limited for the memory; "": it is not
    bytes: int = 0
    numbers: str = ""  # the number format of the weights of a bundle that was built here, and what it changes
    published: str = ""  # the speed that a pulled model has on a chip, by its publisher: "21.2 tokens/s on x-elite"

    def as_dict(self) -> dict[str, str | int]:
        return asdict(self)


def bundle_folders(model: ModelConfig | BundleModel) -> list[Path]:
    """The folders of a model's bundles that exist: for the CPU, and for the NPU. If none exists, the one for the CPU.

    Empty if the engine has no files.
    """
    from gateway.bundles.genie.config import bundle_folder
    from gateway.bundles.replace import finish_replacement
    from gateway.bundles.stamp import npu_folder

    if not isinstance(model, BundleModel) or not model.path:
        return []
    path = Path(model.path)
    if isinstance(model, GenieModel):
        return [bundle_folder(path)]
    both = (path, npu_folder(path))
    for folder in both:
        finish_replacement(folder)
    return [folder for folder in both if folder.is_dir()] or [path]


def examine(model: ModelConfig, budget_bytes: float = math.inf) -> ModelState:
    """Check the files of a model, without a runtime. `budget_bytes`: for all models together."""
    match model:
        case UpstreamModel(targets=()):
            return ModelState(state="remote", detail=model.url)
        case UpstreamModel(targets=targets):
            return ModelState(state="remote", detail=f"{len(targets)} servers")
        case ScriptedModel(simulate=chip):
            return ModelState(state="scripted", detail=chip or "")
        case GenieModel(path=path):
            return replace(_examine_genie(model, Path(path)), published=_published(bundle_folders(model)[0]))
        case LocalModel():
            folder = bundle_folders(model)[0]
            found = replace(_examine_bundle(model, folder, budget_bytes), published=_published(folder))
            numbers = _numbers(folder)
            details = (found.context_note, found.detail or npu_build(model, folder) or numbers)
            return replace(found, numbers=numbers, detail="; ".join(filter(None, details)))


def npu_build(model: LocalModel, folder: Path) -> str:
    """What is known of a bundle for the NPU that is built in the background; "": nothing."""
    from gateway.bundles.stamp import npu_folder, read_failure, unfinished_pieces

    if (pieces := unfinished_pieces(npu_folder(folder))) is not None:
        return f"on the CPU; a bundle for the NPU is being built, {pieces} pieces are finished"
    failure = read_failure(folder, model.source) if model.source else None
    return f"on the CPU; no bundle for the NPU: {failure.message}" if failure else ""


def _numbers(folder: Path) -> str:
    from gateway.bundles.stamp import read_stamp

    stamp = read_stamp(folder)
    return stamp.numbers() if stamp else ""


def _published(folder: Path) -> str:
    from gateway.bundles.origin import read_origin

    origin = read_origin(folder)
    speed = origin.published_tokens_per_s if origin else None
    return f"{speed:.1f} tokens/s on {origin.chip}" if origin and speed else ""


def _examine_bundle(model: LocalModel, path: Path, budget_bytes: float) -> ModelState:
    from gateway.bundles.disk import folder_bytes
    from gateway.bundles.encoder.bundle import is_encoder_bundle
    from gateway.bundles.genie.bundle import GenieBundle
    from gateway.bundles.graph_files import check_graph_files, has_open_rows
    from gateway.bundles.kv_cache.window import read_window
    from gateway.bundles.open import open_bundle
    from gateway.bundles.static_pipeline import OPEN_ROWS

    if not path.is_dir():
        return ModelState(state="missing", detail=_plan(path, model.source, model.load))
    try:
        if is_encoder_bundle(path):
            return _examine_encoder(model, path)
        bundle = open_bundle(path, model.dialect, model.tokenizer)
        if isinstance(bundle, GenieBundle):
            return ModelState(state="ready", context_length=bundle.context_length, bytes=folder_bytes(path))
        check_graph_files(bundle)
        limit = OPEN_ROWS if has_open_rows(bundle) else bundle.config.context_length
    except BundleError as error:
        return ModelState(state="broken", detail=error.message)
    window = read_window(
        path,
        sequences=model.max_sequences,
        configured=model.context_length,
        budget_bytes=budget_bytes,
        draft=model.draft,
    )
    served = window.context if window else min(bundle.config.context_length, model.context_length or limit)
    note = window.note if window else ""
    return ModelState(state="ready", context_length=served, bytes=folder_bytes(path), context_note=note)


def _examine_encoder(model: LocalModel, path: Path) -> ModelState:
    from gateway.bundles.disk import folder_bytes
    from gateway.bundles.encoder.bundle import load_encoder_bundle

    info = load_encoder_bundle(path).info
    makes = f"embeddings of {info.dimensions} numbers" if info.kind == "embedding" else "scores of documents"
    served = min(info.longest, model.context_length or info.longest)
    return ModelState(state="ready", context_length=served, bytes=folder_bytes(path), detail=f"makes {makes}")


def _plan(path: Path, source: str, load: str) -> str:
    """What is done about a bundle that is not there."""
    if not source:
        return f"no folder {path}, and no source"
    if not source.startswith(("hf:", "pypi:")) and not Path(source).exists():
        return f"no folder {path}, and no source {source}"
    return f"built from {source} " + ("for the first request" if load == "demand" else "at the first start")


def _examine_genie(model: GenieModel, path: Path) -> ModelState:
    from gateway.bundles.genie.bundle import load_genie_bundle

    if not path.exists():
        return ModelState(state="missing", detail=f"no bundle {path}")
    try:
        bundle = load_genie_bundle(path, model.dialect)
    except BundleError as error:
        return ModelState(state="broken", detail=error.message)
    size = sum(binary.stat().st_size for binary in bundle.binaries)
    return ModelState(state="ready", context_length=bundle.usable_context, bytes=size)
