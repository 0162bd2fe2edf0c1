"""The checks and the measurements of a real NPU, here on the emulator and with an injected clock."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from gateway.builder.build import build_bundle
from gateway.builder.npu.build import NpuTarget
from gateway.builder.sources.detect import open_source
from gateway.errors import EngineFailed
from gateway.qnn.device import NpuDevice
from gateway.worker.decoders.base import KVCache, Logits
from gateway.worker.decoders.self_test import is_close, self_test
from gateway.worker.decoders.static import checks
from gateway.worker.decoders.static.decoder import StaticDecoder
from gateway.worker.decoders.static.window import Window
from tests.support.npu import windows_ml_bundle
from tests.support.npu.fixtures import OpenDecoder
from tests.support.tiny import write_tiny_folder

BATCH = 4
WIDTH = 8


def test_consistency_check_finds_wrong_step_graph(
    windows_ml_uncompiled: Path, tmp_path: Path, open_decoder: OpenDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(write_tiny_folder(tmp_path / "source", seed=1))
    ours = open_decoder(windows_ml_uncompiled, "cpu")
    other = open_decoder(windows_ml_bundle.write_bundle(tmp_path / "other", source, compiled="none"), "cpu")
    assert checks.is_consistent(ours)
    mixed = StaticDecoder(ours._prompts, other._steps, ours.spec)
    assert not checks.is_consistent(mixed)
    monkeypatch.setattr(Window, "max_logit_rows", 1)  # then `verify` takes steps only
    assert checks.is_consistent(ours) and not checks.is_consistent(mixed)


def test_consistency_check_compares_differences_of_unscaled_logits() -> None:
    """Codes of 16 bits have a large common part, which must not hide that the logits are unrelated."""
    random = np.random.default_rng(0)
    codes, others = (32768 + random.normal(0, 500, (3, 64)).astype(np.float32) for _ in range(2))
    assert is_close(codes + random.normal(0, 5, codes.shape), codes)
    assert not is_close(others, codes)


@pytest.fixture
def batched(npu_bundle: Path, open_decoder: OpenDecoder) -> StaticDecoder:
    return open_decoder(npu_bundle, "qnn", sequences=BATCH)


def clock_of(*calls_s: float) -> Callable[[], float]:
    """A clock between whose readings the calls take these seconds, and nothing passes between two calls."""
    times = [0.0, *itertools.accumulate(calls_s)]
    return iter([times[(reading + 1) // 2] for reading in range(2 * len(calls_s))]).__next__


@pytest.mark.parametrize(("batched_s", "expected"), [(0.5, 2), (2.5, 3), (4.0, 4), (9.5, 10)])
def test_min_batch_is_measured_with_the_fastest_of_three_calls(
    batched: StaticDecoder, batched_s: float, expected: int
) -> None:
    """Four single steps take 4 s. Above the batch size, no number of sequences shares a call."""
    clock = clock_of(5.0, 4.0, 7.0, batched_s + 1, batched_s + 3, batched_s)
    assert checks.min_batch(batched, clock) == expected


def test_min_batch_with_wrong_batch_graph_disables_batching(
    batched: StaticDecoder, npu: NpuDevice, tmp_path: Path, open_decoder: OpenDecoder, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_tiny_folder(tmp_path / "source", seed=1)
    target = NpuTarget(device=npu, contexts=(128,), width=WIDTH)
    bundle = build_bundle(source, tmp_path / "other", progress=lambda *_: None, target=target)
    other = open_decoder(bundle, "qnn", sequences=BATCH)
    mixed = StaticDecoder(batched._prompts, batched._steps, batched.spec, batch_steps=other._batch_steps)
    assert checks.min_batch(mixed) > BATCH
    assert "each sequence takes single steps" in caplog.text


def _nan(caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
    return np.full((len(ids), 384), np.nan, np.float32)


def _refused(caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
    raise EngineFailed("the device refuses")


@pytest.mark.parametrize("run", [_nan, _refused], ids=["nan", "refused"])
def test_min_batch_with_failing_batch_graph_disables_batching(
    batched: StaticDecoder, run: Callable[..., Logits], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batched._batch_steps[0], "run", run)
    assert checks.min_batch(batched) > BATCH


def test_min_batch_with_more_sequences_than_context_rows(
    tiny_source: Path, npu: NpuDevice, tmp_path: Path, open_decoder: OpenDecoder
) -> None:
    target = NpuTarget(device=npu, contexts=(16,), width=WIDTH, batch=20)
    bundle = build_bundle(tiny_source, tmp_path / "wide", progress=lambda *_: None, target=target)
    assert checks.min_batch(open_decoder(bundle, "qnn", sequences=BATCH), clock_of(*[20.0] * 3, *[7.0] * 3)) == 7


def test_passes_are_timed_by_width(batched: StaticDecoder) -> None:
    """A step takes 2 s, a narrow window 3 s and a full one 5 s, each in the fastest of three calls."""
    clock = clock_of(2.0, 4.0, 9.0, 8.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    assert checks.pass_costs(batched, clock) == {1: 1.0, 4: 1.5, WIDTH: 2.5}


def test_consistency_check_finds_wrong_narrow_graph(
    batched: StaticDecoder, npu: NpuDevice, tmp_path: Path, open_decoder: OpenDecoder
) -> None:
    source = write_tiny_folder(tmp_path / "source", seed=1)
    target = NpuTarget(device=npu, contexts=(128,), width=WIDTH, batch=1, verify=4)
    other = open_decoder(build_bundle(source, tmp_path / "o", progress=lambda *_: None, target=target), "qnn")
    mixed = StaticDecoder(batched._prompts, batched._steps, batched.spec, narrow=other._narrow)
    assert checks.is_consistent(batched) and checks.is_consistent(batched, 5)
    assert not checks.is_consistent(mixed) and checks.is_consistent(mixed, 5)
    with pytest.raises(EngineFailed, match="different logits"):
        self_test(mixed, mixed.new_cache(), ())
