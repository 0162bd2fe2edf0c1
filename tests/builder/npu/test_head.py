"""The head on the NPU: its check in a build, its tokens, and the head on the CPU where the NPU refuses it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from gateway.builder.build import build_bundle
from gateway.builder.npu import build as build_module
from gateway.builder.npu import head as npu_head
from gateway.builder.npu.build import REPORT, NpuReport, NpuTarget
from gateway.builder.npu.head import HeadCheck
from gateway.bundles.hashes import write_hashes
from gateway.bundles.static_pipeline import NPU_HEAD
from gateway.errors import BundleError
from gateway.qnn.device import NpuDevice
from gateway.qnn.sessions import NpuSessions
from gateway.worker.decoders.base import Logits
from gateway.worker.decoders.static import checks
from gateway.worker.decoders.static.decoder import StaticDecoder
from gateway.worker.decoders.static.load_check import check_load
from tests.support.decoding import IDS, greedy, prefill
from tests.support.made_once import made_once
from tests.support.npu.fixtures import OpenDecoder

pytestmark = pytest.mark.usefixtures("compiled_once")
ROWS = 4  # of one call of the head
BATCH = 4


@pytest.fixture(scope="session")
def with_head(npu: NpuDevice, tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By default: for this head, a few weights are many."""
    target = NpuTarget(device=npu, contexts=(64,), width=12, verify=ROWS, batch=BATCH)

    def build(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build_module, "LARGE_HEAD", 1000)
            build_bundle(tiny_source, folder, progress=lambda *_: None, target=target)

    return made_once(tmp_path_factory, "bundle_with_npu_head", build)


@pytest.fixture
def on_npu(with_head: Path, open_decoder: OpenDecoder) -> StaticDecoder:
    return open_decoder(with_head, "qnn", sequences=BATCH)


@pytest.fixture
def on_cpu(with_head: Path, tmp_path: Path, open_decoder: OpenDecoder) -> StaticDecoder:
    """The same bundle with its head on the CPU."""
    bundle = shutil.copytree(with_head, tmp_path / "b", ignore=shutil.ignore_patterns("npu_head*"))
    write_hashes(bundle)
    return open_decoder(bundle, "qnn", sequences=BATCH)


def report(bundle: Path) -> NpuReport:
    return msgspec.json.decode((bundle / REPORT).read_bytes(), type=NpuReport)


def test_check_compares_head_with_both_cpu_graphs(with_head: Path) -> None:
    head = report(with_head).head
    assert head is not None and 0 < head.npu_error < 0.003 and head.top1 == 1.0


def test_head_generates_tokens_of_the_cpu_head(on_npu: StaticDecoder, on_cpu: StaticDecoder) -> None:
    assert on_npu.spec.placement["QNN"] == on_cpu.spec.placement["QNN"] + 1
    assert greedy(on_npu, IDS, 40) == greedy(on_cpu, IDS, 40)


def test_head_of_a_real_npu_is_compared_with_the_cpu_head(
    with_head: Path, on_npu: StaticDecoder, on_cpu: StaticDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checks.agree(on_npu, on_cpu)
    monkeypatch.setattr(on_npu, "verify", lambda cache, ids: on_cpu.verify(cache, ids)[:, ::-1])
    assert not checks.agree(on_npu, on_cpu)


def _verify(count: int) -> Callable[[StaticDecoder], Logits]:
    def call(decoder: StaticDecoder) -> Logits:
        cache = decoder.new_cache()
        prefill(decoder, cache, IDS[:3])
        return decoder.verify(cache, IDS[3 : 3 + count]).copy()

    return call


def _steps(decoder: StaticDecoder) -> Logits:
    caches = [decoder.new_cache() for _ in range(3)]
    for index, cache in enumerate(caches):
        prefill(decoder, cache, IDS[index : index + 5])
    return decoder.step(caches, IDS[:3]).copy()


@pytest.mark.parametrize(
    "call",
    [_verify(1), _verify(3), _verify(ROWS), _verify(ROWS + 1), _verify(11), _steps],
    ids=["step", "narrow", "full", "two calls", "three calls", "batch"],
)
def test_each_row_has_the_logits_of_the_cpu_head(
    on_npu: StaticDecoder, on_cpu: StaticDecoder, call: Callable[[StaticDecoder], Logits]
) -> None:
    logits, expected = call(on_npu), call(on_cpu)
    assert logits.shape == expected.shape and logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=0.02)


def test_load_check_counts_the_head(with_head: Path, on_npu: StaticDecoder, on_cpu: StaticDecoder) -> None:
    counted = check_load(with_head, "qnn", {}).placement["QNN"]
    assert counted == on_npu.spec.placement["QNN"] > on_cpu.spec.placement["QNN"]


def test_refused_head_runs_on_the_cpu(
    with_head: Path, open_decoder: OpenDecoder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chip or a driver can refuse what the emulator takes."""
    original = NpuSessions.open

    def without_head(sessions: NpuSessions, files: Any) -> Any:
        if any(file.name == NPU_HEAD for file in files):
            raise BundleError("The NPU has no memory.")
        return original(sessions, files)

    monkeypatch.setattr(NpuSessions, "open", without_head)
    decoder = open_decoder(with_head, "qnn")
    assert "the NPU refuses the head, so it runs on the CPU: The NPU has no memory." in caplog.text
    assert len(greedy(decoder, IDS, 4)) == 4


def _crash(*args: Any, **options: Any) -> Any:
    raise BundleError("The compiler crashed.")


@pytest.mark.parametrize(
    ("fails", "reason"), [("compile_graphs", "The compiler crashed."), ("_check_in_child", "relative error is 0.0040")]
)
def test_build_with_refused_head_keeps_it_on_the_cpu(
    npu: NpuDevice, tiny_source: Path, tmp_path: Path, fails: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inexact = HeadCheck(npu_error=0.004, top1=1.0)
    monkeypatch.setattr(npu_head, fails, _crash if fails == "compile_graphs" else lambda request: inexact)
    stages: list[str] = []
    target = NpuTarget(device=npu, contexts=(64,), width=8, batch=1, npu_head=True)
    bundle = build_bundle(tiny_source, tmp_path / "out", progress=lambda what, _: stages.append(what), target=target)
    assert any(stage.startswith("the head stays on the CPU") and reason in stage for stage in stages)
    assert report(bundle).head is None and not list(bundle.glob("npu_head*"))
