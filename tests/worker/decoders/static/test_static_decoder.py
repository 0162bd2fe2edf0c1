"""The decoder of fixed shapes over both published layouts: the same tokens as float32 and as a plain loop say, on the
emulated NPU and on the CPU, however the ids are cut, taken back and copied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from gateway.builder.sources.detect import open_source
from gateway.errors import EngineFailed
from gateway.worker.decoders.base import Decoder, KVCache, Logits
from gateway.worker.decoders.static import open as static_open
from gateway.worker.decoders.static.decoder import StaticDecoder
from tests.support import windows_ml_bundle
from tests.support.npu_fixtures import OpenDecoder
from tests.support.oracle import Oracle
from tests.support.tiny import write_tiny_folder
from tests.support.tiny_htp_decoder import Run, TinyDecoder

IDS = [11, 50, 7, 90, 33, 5, 64, 71, 20, 98, 41, 13, 77, 36, 102, 9, 58]


def prefill(decoder: Decoder, cache: KVCache, ids: Sequence[int], width: int = 8) -> Logits:
    for start in range(0, len(ids), width):
        logits = decoder.prefill(cache, ids[start : start + width])
    return logits.copy()


def greedy(decoder: Decoder, ids: Sequence[int], count: int) -> list[int]:
    """Prefill in whole windows, then single steps."""
    cache = decoder.new_cache()
    logits = prefill(decoder, cache, ids)
    answer: list[int] = []
    while len(answer) < count:
        answer.append(int(logits.argmax()))
        logits = decoder.step([cache], answer[-1:])[0]
    return answer


def same_words(answer: Sequence[int], oracle: Oracle, ids: Sequence[int], least: int) -> bool:
    """Equal to float32's answer up to a token, `least` or more in, where float32 itself was undecided."""
    expected, logits = oracle.greedy(list(ids), len(answer))
    parting = next((i for i, pair in enumerate(zip(answer, expected, strict=True)) if len(set(pair)) > 1), None)
    if parting is None:
        return True
    second, best = np.sort(logits[parting])[-2:]
    return parting >= least and bool(best - second < 0.5)


@pytest.fixture(params=["windows_ml_uncompiled", "ai_hub_uncompiled"])
def on_cpu(request: pytest.FixtureRequest, open_decoder: OpenDecoder) -> StaticDecoder:
    return open_decoder(request.getfixturevalue(request.param), "cpu")


@pytest.fixture(params=["windows_ml_compiled", "ai_hub_compiled"])
def on_npu(request: pytest.FixtureRequest, open_decoder: OpenDecoder) -> StaticDecoder:
    return open_decoder(request.getfixturevalue(request.param), "qnn")


@pytest.mark.parametrize(
    ("bundle", "provider", "device"),
    [
        ("windows_ml_uncompiled", "cpu", "cpu"),
        ("windows_ml_uncompiled", "qnn", "emulated"),  # compiled at the first start
        ("windows_ml_compiled", "qnn", "emulated"),
        ("windows_ml_cpu_attention", "qnn", "emulated"),
    ],
)
def test_windows_ml_layout_says_what_float32_says(
    bundle: str, provider: str, device: str, oracle: Oracle, open_decoder: OpenDecoder, request: pytest.FixtureRequest
) -> None:
    if provider == "qnn":
        request.getfixturevalue("npu")
    decoder = open_decoder(request.getfixturevalue(bundle), provider)
    assert same_words(greedy(decoder, IDS, 40), oracle, IDS, least=20)
    assert decoder.spec.device == device
    assert ("QNN" in decoder.spec.placement) == (provider == "qnn")


@pytest.mark.parametrize(
    ("bundle", "provider"), [("ai_hub_uncompiled", "cpu"), ("ai_hub_uncompiled", "qnn"), ("ai_hub_compiled", "qnn")]
)
def test_ai_hub_layout_says_what_a_plain_loop_says(
    bundle: str, provider: str, ai_hub_uncompiled: Path, open_decoder: OpenDecoder, request: pytest.FixtureRequest
) -> None:
    if provider == "qnn":
        request.getfixturevalue("npu")

    def graph(phase: str) -> Run:
        session = onnxruntime.InferenceSession(
            ai_hub_uncompiled / f"{phase}_1_of_1.onnx", providers=["CPUExecutionProvider"]
        )
        return lambda feeds: session.run(["logits", "past_key_0_out", "past_value_0_out"], dict(feeds))

    tiny = TinyDecoder()
    decoder = open_decoder(request.getfixturevalue(bundle), provider)
    count = decoder.spec.context_length - len(IDS)
    assert greedy(decoder, IDS, count) == tiny.greedy(graph("prompt"), graph("token"), IDS, count)


def test_our_own_bundle_says_what_float32_says_across_its_contexts(
    npu_bundle: Path, oracle: Oracle, open_decoder: OpenDecoder
) -> None:
    decoder = open_decoder(npu_bundle, "qnn")
    assert decoder.spec.context_length == 128
    assert same_words(greedy(decoder, IDS, 128 - len(IDS)), oracle, IDS, least=64)  # well into the second context


@pytest.mark.parametrize("pieces", [(17,), (1,) * 17, (8, 8, 1), (5, 7, 5), (3, 1, 8, 5)])
def test_a_prompt_in_any_pieces_gives_the_same_logits(on_cpu: StaticDecoder, pieces: tuple[int, ...]) -> None:
    whole, cut = on_cpu.new_cache(), on_cpu.new_cache()
    expected = prefill(on_cpu, whole, IDS)
    start = 0
    for size in pieces:
        logits = prefill(on_cpu, cut, IDS[start : start + size])
        start += size
    assert cut.length == len(IDS)
    np.testing.assert_allclose(logits, expected, atol=0.05)


def test_verify_gives_what_single_steps_give(on_npu: StaticDecoder) -> None:
    stepped, verified = on_npu.new_cache(), on_npu.new_cache()
    prefill(on_npu, stepped, IDS[:9])
    prefill(on_npu, verified, IDS[:9])
    steps = [on_npu.step([stepped], [token])[0] for token in IDS[9:15]]
    logits = on_npu.verify(verified, IDS[9:15])
    assert logits.shape == (6, on_npu.spec.vocab_size)
    np.testing.assert_allclose(logits, steps, atol=0.05)


def test_what_is_taken_back_leaves_no_trace(on_npu: StaticDecoder) -> None:
    cache, fresh = on_npu.new_cache(), on_npu.new_cache()
    prefill(on_npu, cache, IDS)
    on_npu.step([cache], [100])
    cache.truncate(10)
    expected = prefill(on_npu, fresh, IDS[:10] + IDS[:6])
    np.testing.assert_allclose(prefill(on_npu, cache, IDS[:6]), expected, atol=0.05)


def test_a_copied_beginning_goes_on_by_itself(on_npu: StaticDecoder) -> None:
    donor, copy, fresh = (on_npu.new_cache() for _ in range(3))
    prefill(on_npu, donor, IDS)
    copy.copy_from(donor, 12)
    ours = prefill(on_npu, copy, IDS[:3])
    expected = prefill(on_npu, fresh, IDS[:12] + IDS[:3])
    np.testing.assert_allclose(ours, expected, atol=0.05)
    assert (copy.length, donor.length) == (15, len(IDS))


def test_sequences_side_by_side_do_not_disturb_each_other(on_cpu: StaticDecoder) -> None:
    alone = [on_cpu.new_cache() for _ in range(2)]
    together = [on_cpu.new_cache() for _ in range(2)]
    for caches in (alone, together):
        prefill(on_cpu, caches[0], IDS[:5])
        prefill(on_cpu, caches[1], IDS[3:15])
    for token in (70, 80, 90):
        expected = [on_cpu.step([cache], [token])[0].copy() for cache in alone]
        np.testing.assert_array_equal(on_cpu.step(together, [token, token]), expected)


def test_a_context_is_usable_to_its_last_row(on_cpu: StaticDecoder) -> None:
    """Near the end no whole window fits any more: the ids of the last one then go one by one."""
    context = on_cpu.spec.context_length
    ids = (IDS * 8)[:context]
    cache, stepped = on_cpu.new_cache(), on_cpu.new_cache()
    prefill(on_cpu, cache, ids[:-4])
    logits = on_cpu.prefill(cache, ids[-4:])
    prefill(on_cpu, stepped, ids[:-4])
    for token in ids[-4:]:
        expected = on_cpu.step([stepped], [token])[0]
    assert cache.length == context
    np.testing.assert_allclose(logits, expected, atol=0.05)


def test_a_shorter_context_can_be_asked_for(npu_bundle: Path, open_decoder: OpenDecoder) -> None:
    assert open_decoder(npu_bundle, "qnn", context_length=40).spec.context_length == 40
    assert open_decoder(npu_bundle, "qnn", context_length=100).spec.context_length == 100


def test_a_cache_costs_nothing_before_it_is_used(on_cpu: StaticDecoder) -> None:
    cache = on_cpu.new_cache()
    assert cache.nbytes == 0
    on_cpu.prefill(cache, IDS[:2])
    assert cache.nbytes > 0


def test_a_failure_of_the_device_is_an_engine_failure(ai_hub_uncompiled: Path, open_decoder: OpenDecoder) -> None:
    decoder = open_decoder(ai_hub_uncompiled, "cpu")
    cache = decoder.new_cache()
    with pytest.raises(EngineFailed, match="failed while it ran"):
        decoder.prefill(cache, [10_000, 1])
    assert cache.length == 0


def test_a_driver_that_contradicts_itself_is_found_out(
    windows_ml_uncompiled: Path, tmp_path: Path, open_decoder: OpenDecoder
) -> None:
    """The check that a real NPU gets when it is opened."""
    source = open_source(write_tiny_folder(tmp_path / "source", seed=1))
    ours = open_decoder(windows_ml_uncompiled, "cpu")
    other = open_decoder(windows_ml_bundle.write_bundle(tmp_path / "other", source, compiled="none"), "cpu")
    assert static_open._agrees_with_itself(ours)
    assert not static_open._agrees_with_itself(StaticDecoder(ours._prompts, other._steps, ours.spec))
