"""The child process that builds a bundle for the NPU in the background: `python -m gateway.builder.npu.background`.

Each call makes one piece and ends, so the gateway chooses when the next one begins, and memory is free in between.
"""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

from gateway.builder.build import build_bundle
from gateway.builder.fetch import ensure_bundle, hub_parts, small_files
from gateway.builder.gguf_choice import gguf_models
from gateway.builder.npu.target import int4_target
from gateway.builder.size import npu_memory
from gateway.builder.sources.detect import open_source
from gateway.bundles.disk import megabytes
from gateway.bundles.replace import exclusive
from gateway.bundles.stamp import BackgroundStep, BuildRequest, plan_bundle, remove_pieces, unfinished_folder
from gateway.child import report_progress, serve_request
from gateway.qnn.detect import required_npu
from gateway.sandbox.child import BACKGROUND


def _advance(request: BuildRequest) -> BackgroundStep:
    _lower_priority()
    models_dir = Path(request.models_dir)
    plan = plan_bundle(request, models_dir, lambda: True)
    if plan.is_ready:
        return BackgroundStep(folder=str(plan.folder))
    source = downloaded(request.source, models_dir)
    if source is None:  # it was removed after the build for the CPU
        return BackgroundStep(folder=str(ensure_bundle(request, models_dir, report_progress)))
    unfinished = unfinished_folder(plan.folder)
    target, model = int4_target(required_npu(), unfinished), open_source(source)
    with exclusive(plan.folder):
        if plan_bundle(request, models_dir, lambda: True).is_ready:  # another program has built it in the meantime
            return BackgroundStep(folder=str(plan.folder))
        needed, available = npu_memory(model.config, target), psutil.virtual_memory().available
        if needed > available:
            return BackgroundStep(waits=f"{megabytes(needed)} of memory are needed, {megabytes(available)} are free")
        done, count = target.advance(model, report_progress)
        if done < count:
            return BackgroundStep(done=done, count=count)
        build_bundle(source, plan.folder, progress=report_progress, target=target)
        remove_pieces(unfinished)
    return BackgroundStep(done=done, count=count, folder=str(plan.folder))


def downloaded(source: str, base: Path) -> Path | None:
    """The folder of weights, or the GGUF file, that is on this machine, without a network. None: it must be downloaded.

    Args:
        source: one for which `has_float_weights` is true.
        base: the folder that a relative path starts from.
    """
    kind, _, name = source.partition(":")
    if kind != "hf":
        return base / source
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo, folder, _, revision = hub_parts(name)
    try:
        within = f"{folder}/" if folder else ""
        patterns = [*small_files(within), f"{within}*.safetensors", f"{within}*.gguf"]
        found = (
            Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=True)) / within
        )
    except (LocalEntryNotFoundError, OSError):
        return None
    if any(found.glob("*.safetensors")):
        return found
    models = gguf_models({path.relative_to(found).as_posix(): 0 for path in found.rglob("*.gguf")})
    return found / models[0].files[0] if len(models) == 1 else None


def _lower_priority() -> None:
    """Of this process and its children."""
    own = psutil.Process()
    if sys.platform == "win32":
        own.nice(psutil.IDLE_PRIORITY_CLASS)
    else:
        own.nice(max(own.nice(), BACKGROUND))


if __name__ == "__main__":
    sys.exit(serve_request(BuildRequest, _advance))
