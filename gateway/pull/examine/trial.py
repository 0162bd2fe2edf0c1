"""What only a folder on this machine shows: its hashes, its context binaries, a real load. In child processes."""

from __future__ import annotations

from pathlib import Path

from gateway.bundles.bundle import Bundle
from gateway.bundles.graph_files import check_graph_files
from gateway.bundles.hashes import check_hashes
from gateway.bundles.model_package import variant_folder
from gateway.bundles.open import open_bundle
from gateway.errors import BundleError
from gateway.pull.examine.facts import read_facts
from gateway.pull.examine.verdict import Verdict
from gateway.qnn.device import NpuDevice, runtime_version
from gateway.worker.decoders.static.load_check import check_load

_CAST = {
    "scaled": "the logits have no scale in the bundle: it was found in a context binary or in the metadata",
    "unscaled": "the logits have no scale: only greedy answers, without log-probabilities",
}


def try_folder(verdict: Verdict, folder: Path, soc: int | None, device: NpuDevice | None, mended: Path | None) -> None:
    """Add to the verdict on the bundle in `folder`, which nothing speaks against so far.

    Args:
        soc: the chip that it must fit; None: any.
        device: the NPU or emulator of this machine if it has that chip, else None: then the bundle is not loaded.
        mended: the folder for a corrected graph; None: it is not written.
    """
    try:
        _check_files(verdict, folder)
        if verdict.layout not in ("graph", "text-encoder") and runtime_version() and not verdict.refused:
            _check_binaries(verdict, variant_folder(folder), soc, mended)
            if device is not None:
                _load(verdict, variant_folder(folder), device)
    except BundleError as error:
        verdict.refused.append(error.message)


def _check_files(verdict: Verdict, folder: Path) -> None:
    bundle = None if verdict.layout == "text-encoder" else open_bundle(folder)
    if isinstance(bundle, Bundle):
        check_graph_files(bundle)
    verdict.refused += [f"{damage}. Download the model again." for damage in check_hashes(folder) or ()]


def _check_binaries(verdict: Verdict, folder: Path, soc: int | None, mended: Path | None) -> None:
    facts = read_facts(folder, soc, mended)
    verdict.binaries, verdict.graphs = facts.binaries, facts.graphs
    if facts.cast:
        (verdict.corrected if facts.cast == "scaled" else verdict.warnings).append(_CAST[facts.cast])
    verdict.written += [facts.written] if facts.written else []


def _load(verdict: Verdict, folder: Path, device: NpuDevice) -> None:
    try:
        report = check_load(folder, "qnn", {})
    except BundleError as error:
        if device.kind == "npu" or "crashed" not in error.message:
            raise
        verdict.warnings.append(
            "The emulator of this machine cannot load it. It loads no binary whose graphs share weights, as the "
            "published ones do; a real NPU does."
        )
        return
    on_cpu = report.placement.get("CPU", 0)
    where = "NPU" if report.device == "npu" else "emulated NPU"
    verdict.loaded = f"{report.placement.get('QNN', 0)} networks on the {where} in {report.load_s:.1f} s"
    if on_cpu:
        verdict.warnings.append(
            f"{on_cpu} nodes run on the CPU, between the networks on the NPU. `npu-gateway bench` measures the cost."
        )
