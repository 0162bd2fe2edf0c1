"""NpuEncoder on the emulated NPU, without fallback to the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.builder.encoders.build import write_encoder_files
from gateway.bundles.encoder.bundle import load_encoder_bundle
from gateway.errors import BundleError
from gateway.qnn.device import NpuDevice
from gateway.worker.encoder.model import Text
from gateway.worker.encoder.npu import NpuEncoder
from tests.support.encoders.models import TEXTS, write_folder
from tests.support.encoders.workers import VECTORS


def test_npu_gives_the_reference_in_float16_with_all_nodes(tmp_path: Path, npu: NpuDevice) -> None:
    source = write_folder(tmp_path / "source", "bert-mean", VECTORS["bert-mean"]["shapes"])
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    write_encoder_files(source, bundle, "float", lambda stage, share: None, for_npu=True)
    model = NpuEncoder(load_encoder_bundle(bundle), npu, {}, lambda stage: None)
    assert model.placement.keys() == {"QNN"} and model.device == "emulated" and model.longest == 64
    cosines = (model.run([Text(ids) for ids in TEXTS]) * np.array(VECTORS["bert-mean"]["rows"])).sum(1)
    assert cosines.min() > 0.9999


def test_bundle_without_graphs_for_the_npu_is_refused(tmp_path: Path, npu: NpuDevice) -> None:
    source = write_folder(tmp_path / "source", "bert-max", VECTORS["bert-max"]["shapes"])
    write_encoder_files(source, tmp_path, "float", lambda stage, share: None, for_npu=True)
    with pytest.raises(BundleError, match="has no graphs for the NPU"):
        NpuEncoder(load_encoder_bundle(tmp_path), npu, {}, lambda stage: None)
