"""Opening a bundle of fixed shape: devices, context lengths, and the checks of a real NPU's results."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gateway.builder.build import build_bundle
from gateway.builder.npu.build import NpuTarget
from gateway.bundles.hashes import write_hashes
from gateway.errors import BundleError, ConfigError
from gateway.qnn.device import NpuDevice
from gateway.worker.decoders.static.open import open_static_decoder
from gateway.worker.frames import WorkerSpec
from gateway.worker.main import open_decoder as open_any_decoder
from tests.support.npu.fixtures import OpenDecoder

BATCH = 4
WIDTH = 8

# -- devices and options ------------------------------------------------------------------------------------------


def test_auto_provider_refuses_npu_bundle_without_npu(npu: NpuDevice, npu_bundle: Path) -> None:
    if npu.kind == "npu":
        pytest.skip("this machine has a real NPU")
    with pytest.raises(BundleError, match=r"compiled for the NPU, and this machine has none; provider = 'qnn'"):
        open_any_decoder(WorkerSpec(bundle=str(npu_bundle), provider="auto"))


def test_cpu_provider_refuses_npu_bundle_on_any_machine(npu_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"compiled for the NPU, and provider = 'cpu' excludes it\. Remove that key"):
        open_any_decoder(WorkerSpec(bundle=str(npu_bundle), provider="cpu"))


def test_qnn_provider_refuses_cpu_bundle(tiny: Path) -> None:
    with pytest.raises(BundleError, match="build --target qnn"):
        open_any_decoder(WorkerSpec(bundle=str(tiny), provider="qnn"))


def test_misspelt_option_is_config_error(npu_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'vtcm_mb'"):
        open_any_decoder(WorkerSpec(bundle=str(npu_bundle), provider="qnn", provider_options={"vtcm_mbs": "8"}))


@pytest.mark.parametrize("context_length", [40, 100])
def test_context_length_limits_usable_context(npu_bundle: Path, open_decoder: OpenDecoder, context_length: int) -> None:
    decoder = open_decoder(npu_bundle, "qnn", context_length=context_length)
    assert decoder.spec.context_length == context_length


def test_contexts_with_different_batch_sizes_are_refused(
    npu_bundle: Path, tiny_source: Path, npu: NpuDevice, tmp_path: Path
) -> None:
    """All context lengths must agree on the group and the batch row of a sequence."""
    bundle = Path(shutil.copytree(npu_bundle, tmp_path / "mixed"))
    target = NpuTarget(device=npu, contexts=(128,), width=WIDTH, parts=2, batch=3)
    other = build_bundle(tiny_source, tmp_path / "three", progress=lambda *_: None, target=target)
    for file in other.glob("batch_*_ctx*"):
        shutil.copy(file, bundle)
    write_hashes(bundle)
    with pytest.raises(BundleError, match="different batch sizes"):
        open_static_decoder(bundle, provider="qnn", sequences=BATCH)
