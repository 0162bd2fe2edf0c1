"""StaticDecoder over both published layouts, on the emulated NPU and on the CPU."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from gateway.activity import Activity
from gateway.bundles.bundle import load_bundle
from gateway.bundles.hashes import write_hashes
from gateway.errors import EngineFailed
from gateway.qnn.device import NpuDevice
from gateway.worker.decoders.base import KVCache, Logits
from gateway.worker.decoders.cpu import CpuDecoder
from gateway.worker.decoders.static import cache as cache_module
from gateway.worker.decoders.static.decoder import StaticDecoder
from gateway.worker.decoders.static.open import open_static_decoder
from gateway.worker.decoders.static.window import Window
from gateway.worker.drafting.model import DraftModel
from gateway.worker.frames import FromWorker, PassTimes, Submit, Tokens
from gateway.worker.token_loop import TokenLoop
from tests.support.decoding import IDS, greedy, matches_oracle, prefill
from tests.support.npu.fixtures import OpenDecoder
from tests.support.npu.tiny_htp_decoder import Run, TinyDecoder
from tests.support.oracle import Oracle
from tests.support.token_loop_fixtures import GREEDY, no_grammar


@pytest.fixture(scope="module", params=["windows_ml_uncompiled", "ai_hub_uncompiled"])
def on_cpu(request: pytest.FixtureRequest) -> Iterator[StaticDecoder]:
    with closing(open_static_decoder(request.getfixturevalue(request.param), provider="cpu")) as decoder:
        yield decoder


@pytest.fixture(scope="module", params=["windows_ml_compiled", "ai_hub_compiled"])
def on_npu(npu: NpuDevice, request: pytest.FixtureRequest) -> Iterator[StaticDecoder]:
    with closing(open_static_decoder(request.getfixturevalue(request.param), provider="qnn")) as decoder:
        yield decoder


@pytest.mark.parametrize(
    ("bundle", "provider", "device"),
    [
        ("windows_ml_uncompiled", "cpu", "cpu"),
        ("windows_ml_uncompiled", "qnn", "emulated"),  # compiled when it is opened first
        ("windows_ml_compiled", "qnn", "emulated"),
        ("windows_ml_cpu_attention", "qnn", "emulated"),
    ],
)
def test_windows_ml_bundle_generates_float32_tokens(
    bundle: str, provider: str, device: str, oracle: Oracle, open_decoder: OpenDecoder, request: pytest.FixtureRequest
) -> None:
    if provider == "qnn":
        request.getfixturevalue("npu")
    decoder = open_decoder(request.getfixturevalue(bundle), provider)
    assert matches_oracle(greedy(decoder, IDS, 40), oracle, IDS, min_equal=20)
    assert decoder.spec.device == device
    assert ("QNN" in decoder.spec.placement) == (provider == "qnn")


@pytest.mark.parametrize(
    ("bundle", "provider"), [("ai_hub_uncompiled", "cpu"), ("ai_hub_uncompiled", "qnn"), ("ai_hub_compiled", "qnn")]
)
def test_ai_hub_bundle_generates_plain_loop_tokens(
    bundle: str, provider: str, ai_hub_uncompiled: Path, open_decoder: OpenDecoder, request: pytest.FixtureRequest
) -> None:
    if provider == "qnn":
        request.getfixturevalue("npu")

    def graph(phase: str) -> Run:
        path = ai_hub_uncompiled / f"{phase}_1_of_1.onnx"
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda feeds: session.run(["logits", "past_key_0_out", "past_value_0_out"], dict(feeds))

    tiny = TinyDecoder()
    decoder = open_decoder(request.getfixturevalue(bundle), provider)
    count = decoder.spec.context_length - len(IDS)
    assert greedy(decoder, IDS, count) == tiny.greedy(graph("prompt"), graph("token"), IDS, count)


def test_built_bundle_generates_float32_tokens_across_contexts(
    npu_bundle: Path, oracle: Oracle, open_decoder: OpenDecoder
) -> None:
    decoder = open_decoder(npu_bundle, "qnn")
    assert decoder.spec.context_length == 128
    assert matches_oracle(greedy(decoder, IDS, 128 - len(IDS)), oracle, IDS, min_equal=64)  # the first context has 64


@pytest.mark.parametrize(
    ("length", "count", "expected"),
    [
        (9, 2, [4]),
        (9, 4, [4]),
        (9, 5, [8]),
        (122, 6, [4, 1, 1]),  # at the end of the context
        (123, 2, [4]),
        (125, 2, [1, 1]),
    ],
)
def test_draft_takes_narrowest_window(
    npu_bundle: Path, open_decoder: OpenDecoder, length: int, count: int, expected: list[int]
) -> None:
    decoder = open_decoder(npu_bundle, "qnn")
    assert decoder.spec.pass_costs.keys() == {1, 4, 8}
    ids = (IDS * 8)[: length + count]
    stepped, verified = decoder.new_cache(), decoder.new_cache()
    for cache in (stepped, verified):
        prefill(decoder, cache, ids[:length])
    steps = [decoder.step([stepped], [token])[0].copy() for token in ids[length:]]
    widths: list[int] = []
    run = Window.run

    def recorded(window: Window, *args: Any) -> Logits:
        widths.append(window.width)
        return run(window, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Window, "run", recorded)
        logits = decoder.verify(verified, ids[length:])
    assert widths == expected and verified.length == length + count
    np.testing.assert_allclose(logits, steps, atol=0.05)


def test_bundle_without_narrow_graphs_verifies_in_full_windows(
    npu_bundle: Path, tmp_path: Path, open_decoder: OpenDecoder
) -> None:
    """As earlier versions built it."""
    bundle = shutil.copytree(npu_bundle, tmp_path / "earlier", ignore=shutil.ignore_patterns("verify*"))
    write_hashes(bundle)
    decoder, now = open_decoder(bundle, "qnn"), open_decoder(npu_bundle, "qnn")
    assert decoder.spec.pass_costs.keys() == {1, 8}
    logits = decoder.verify(decoder.new_cache(), IDS[:3])
    np.testing.assert_allclose(logits, now.verify(now.new_cache(), IDS[:3]), atol=0.05)


def test_window_with_one_row_of_logits_verifies_no_draft(ai_hub_compiled: Path, open_decoder: OpenDecoder) -> None:
    decoder = open_decoder(ai_hub_compiled, "qnn")
    rows = decoder._prompts[0].max_logit_rows
    assert decoder.spec.pass_costs.keys() == ({1} if rows == 1 else {1, decoder.spec.prompt_width})


def test_greedy_answers_are_the_same_with_drafts(npu_bundle: Path, tiny: Path, open_decoder: OpenDecoder) -> None:
    """On the loop's clock a narrow window is as cheap as a step, and a full one is not. The draft model is the same
    model on the CPU."""
    decoder = open_decoder(npu_bundle, "qnn")
    cache, widths, verify, step = decoder.new_cache(), [], decoder.verify, decoder.step
    now = 0.0

    def timed_verify(cache: KVCache, ids: Sequence[int]) -> Logits:
        nonlocal now
        now += 1 if len(ids) <= decoder.narrow_width else 20
        widths.append(len(ids))
        return verify(cache, ids)

    def timed_step(caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        nonlocal now
        now += 1
        return step(caches, ids)

    decoder.verify, decoder.step = timed_verify, timed_step  # type: ignore[method-assign]

    def answer(
        ids: list[int], *, lookup: bool, prediction: Sequence[int] = (), small: CpuDecoder | None = None
    ) -> list[int]:
        cache.truncate(0)
        frames: list[FromWorker] = []
        activity = Activity(clock=lambda: now)
        passes = PassTimes(0.1, 0.1)
        loop = TokenLoop(
            decoder,
            [cache],
            frames.append,
            make_constraint=no_grammar,
            lookup=lookup,
            activity=activity,
            draft_model=DraftModel(small, [small.new_cache()], 384, passes, activity) if small else None,
        )
        loop.submit(Submit(id=1, ids=ids, sampling=GREEDY, max_tokens=40, prediction=list(prediction)))
        while not loop.is_idle:
            loop.turn()
        return [token for frame in frames if isinstance(frame, Tokens) for token in frame.ids]

    for start in range(2):
        prompt = IDS[start:] + IDS[: start + 4]
        plain = answer(prompt, lookup=False)
        assert not widths
        repeated = prompt + plain + prompt[-4:]
        assert answer(repeated, lookup=True) == answer(repeated, lookup=False)
        edited = [*plain[:9], 3, 4, *plain[11:]]
        assert answer(prompt, lookup=False, prediction=edited) == plain
        assert answer(prompt, lookup=True, prediction=edited) == plain
        assert min(widths) <= decoder.narrow_width < max(widths)
        widths.clear()
        with closing(CpuDecoder(load_bundle(tiny), slots=1)) as small:
            assert answer(prompt, lookup=False, small=small) == plain
        assert widths and max(widths) <= decoder.narrow_width
        widths.clear()


@pytest.mark.parametrize("sizes", [(17,), (1,) * 17, (8, 8, 1), (5, 7, 5), (3, 1, 8, 5)], ids=str)
def test_chunked_prefill_gives_same_logits(on_cpu: StaticDecoder, sizes: tuple[int, ...]) -> None:
    whole, chunked = on_cpu.new_cache(), on_cpu.new_cache()
    expected = prefill(on_cpu, whole, IDS)
    start = 0
    for size in sizes:
        logits = prefill(on_cpu, chunked, IDS[start : start + size])
        start += size
    assert chunked.length == len(IDS)
    np.testing.assert_allclose(logits, expected, atol=0.05)


def test_verify_gives_logits_of_single_steps(on_npu: StaticDecoder) -> None:
    stepped, verified = on_npu.new_cache(), on_npu.new_cache()
    prefill(on_npu, stepped, IDS[:9])
    prefill(on_npu, verified, IDS[:9])
    steps = [on_npu.step([stepped], [token])[0].copy() for token in IDS[9:15]]
    logits = on_npu.verify(verified, IDS[9:15])
    assert logits.shape == (6, on_npu.spec.vocab_size)
    np.testing.assert_allclose(logits, steps, atol=0.05)


def test_truncated_rows_do_not_change_logits(on_npu: StaticDecoder) -> None:
    cache, fresh = on_npu.new_cache(), on_npu.new_cache()
    prefill(on_npu, cache, IDS)
    on_npu.step([cache], [100])
    cache.truncate(10)
    expected = prefill(on_npu, fresh, IDS[:10] + IDS[:6])
    np.testing.assert_allclose(prefill(on_npu, cache, IDS[:6]), expected, atol=0.05)


def test_copied_prefix_continues_independently(on_npu: StaticDecoder) -> None:
    donor, copy, fresh = (on_npu.new_cache() for _ in range(3))
    prefill(on_npu, donor, IDS)
    copy.copy_from(donor, 12)
    ours = prefill(on_npu, copy, IDS[:3])
    expected = prefill(on_npu, fresh, IDS[:12] + IDS[:3])
    np.testing.assert_allclose(ours, expected, atol=0.05)
    assert (copy.length, donor.length) == (15, len(IDS))


def test_step_of_two_sequences_equals_single_steps(on_cpu: StaticDecoder) -> None:
    single = [on_cpu.new_cache() for _ in range(2)]
    joint = [on_cpu.new_cache() for _ in range(2)]
    for caches in (single, joint):
        prefill(on_cpu, caches[0], IDS[:5])
        prefill(on_cpu, caches[1], IDS[3:15])
    for token in (70, 80, 90):
        expected = [on_cpu.step([cache], [token])[0].copy() for cache in single]
        np.testing.assert_array_equal(on_cpu.step(joint, [token, token]), expected)


def test_context_is_usable_to_last_row(on_cpu: StaticDecoder) -> None:
    """Near the end no full window fits, so the decoder appends the last tokens one by one."""
    context = on_cpu.spec.context_length
    ids = (IDS * 8)[:context]
    cache, stepped = on_cpu.new_cache(), on_cpu.new_cache()
    prefill(on_cpu, cache, ids[:-4])
    logits = on_cpu.prefill(cache, ids[-4:]).copy()
    prefill(on_cpu, stepped, ids[:-4])
    for token in ids[-4:]:
        expected = on_cpu.step([stepped], [token])[0]
    assert cache.length == context
    np.testing.assert_allclose(logits, expected, atol=0.05)


def test_dropped_tensors_of_a_cache_are_freed(
    ai_hub_uncompiled: Path, open_decoder: OpenDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs for a window and for a step take caches of different shapes. Here only one of them stays in memory."""
    monkeypatch.setattr(cache_module, "_MOST_FREE", 0)
    decoder = open_decoder(ai_hub_uncompiled, "cpu")
    cache = decoder.new_cache()
    prefill(decoder, cache, IDS[:16])
    for run in (lambda: decoder.step([cache], [100]), lambda: decoder.prefill(cache, [1, 2])):
        old = [weakref.ref(buffer) for buffer in cache.buffers.values()]
        run()
        assert len(old) == 2 and not any(ref() for ref in old)


def test_unused_cache_has_no_bytes(on_cpu: StaticDecoder) -> None:
    cache = on_cpu.new_cache()
    assert cache.nbytes == 0
    on_cpu.prefill(cache, IDS[:2])
    assert cache.nbytes > 0


def test_device_failure_raises_engine_failed(ai_hub_uncompiled: Path, open_decoder: OpenDecoder) -> None:
    decoder = open_decoder(ai_hub_uncompiled, "cpu")
    cache = decoder.new_cache()
    with pytest.raises(EngineFailed, match="failed while it ran"):
        decoder.prefill(cache, [10_000, 1])
    assert cache.length == 0
