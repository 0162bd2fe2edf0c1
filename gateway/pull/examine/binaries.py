"""Reads a bundle's context binaries and the scale of its logits in a child process: a damaged file can crash it."""

from __future__ import annotations

import sys
from pathlib import Path

from gateway.bundles.genie.bundle import load_genie_bundle
from gateway.bundles.open import is_genie
from gateway.bundles.static_pipeline import Pipeline, read_pipelines, runs_on_npu
from gateway.child import serve_request
from gateway.pull.examine.facts import Facts, FactsRequest
from gateway.qnn.context import read_compiled, require_binary
from gateway.qnn.device import NpuDevice
from gateway.worker.decoders.static.dequantiser import find_bare_cast


def _read(request: FactsRequest) -> Facts:
    folder, device = Path(request.folder), NpuDevice(kind="npu", name="", soc=request.soc)
    pipelines = [] if is_genie(folder) else read_pipelines(folder)
    binaries = _compiled(pipelines) if pipelines else set(load_genie_bundle(folder).binaries)
    graphs = sum(len(require_binary(binary, device).graphs) for binary in sorted(binaries))
    cast = find_bare_cast(pipelines[-1]) if pipelines else None
    written = ""
    if cast is not None and cast.dequantiser is not None and request.mended:
        file = Path(request.mended) / cast.file.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(cast.dequantiser)
        written = str(file)
    kind = "" if cast is None else "unscaled" if cast.dequantiser is None else "scaled"
    return Facts(binaries=len(binaries), graphs=graphs, cast=kind, written=written)


def _compiled(pipelines: list[Pipeline]) -> set[Path]:
    files = {pipeline.file(stage) for pipeline in pipelines for stage in pipeline.stages if runs_on_npu(stage)}
    graphs = [read_compiled(file) for file in files]
    return {binary for graph in graphs if graph is not None for binary in graph.binaries}


if __name__ == "__main__":
    sys.exit(serve_request(FactsRequest, _read))
