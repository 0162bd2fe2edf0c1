"""The host's work in a step, by counts: calls of ONNX Runtime, allocations, and bytes that Python code copies.

The graphs for the NPU are hollow. One row of logits has 200 kB and one tensor of the cache 60 kB or more, so every copy
of these is far above the limits.
"""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from gateway.bundles.static_pipeline import NPU_HEAD
from gateway.worker.decoders.onnx import SessionOptions, open_session
from gateway.worker.decoders.static import cache as caches
from gateway.worker.decoders.static import open as opening
from gateway.worker.decoders.static.cache import StaticCache
from gateway.worker.decoders.static.decoder import StaticDecoder
from gateway.worker.decoders.static.open import open_static_decoder
from tests.support.npu.hollow_bundle import Shape, write_in_place, write_npu_head, write_rows_returned

SHAPE = Shape(layers=2, kv_heads=2, head_dim=16, hidden=64, vocab=50_000, context=2048, width=32, parts=2)
ROW = SHAPE.layers * 2 * SHAPE.kv_heads * SHAPE.head_dim  # bytes of the new cache rows of a token, one byte per value
CALLS = 2 + SHAPE.parts  # the graph before the NPU's, those of the NPU, the graph after them or the head
ALLOCATED = 24_000
COPIED = 2_000  # of inputs of the NPU
WRITERS = {"in_place": write_in_place, "npu_head": write_in_place, "rows_returned": write_rows_returned}


class CountedArray(np.ndarray[Any, Any]):
    """Counts the bytes that are written into it, and into views of it, by Python code."""

    written = 0

    def __setitem__(self, key: Any, value: Any) -> None:
        CountedArray.written += self[key].nbytes
        super().__setitem__(key, value)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function is np.copyto:
            CountedArray.written += args[0].nbytes
        return super().__array_function__(function, types, args, kwargs)


@pytest.fixture(scope="module", params=sorted(WRITERS))
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StaticDecoder]:
    """Its buffers count what is written into them."""
    made = caches._host_tensor

    def counted(*args: Any) -> tuple[ort.OrtValue, Any]:
        value, array = made(*args)
        return value, array.view(CountedArray)

    logits = np.random.default_rng(0).normal(0, 1, SHAPE.vocab).astype(np.float32)
    bundle = WRITERS[request.param](tmp_path_factory.mktemp("hollow") / request.param, SHAPE, logits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caches, "_host_tensor", counted)
        if request.param == "npu_head":
            write_npu_head(bundle, SHAPE, logits)
            patch.setattr(opening, "open_session", open_with_npu_head)
        with closing(open_static_decoder(bundle, provider="cpu")) as decoder:
            yield decoder


def open_with_npu_head(path: Path, options: SessionOptions, model: bytes | None) -> ort.InferenceSession:
    """The head for the NPU, on the CPU, in place of that for the CPU."""
    if path.name != "lm_head.onnx":
        return open_session(path, options, model)
    session = open_session(path.with_name(NPU_HEAD), options)
    session.get_providers = lambda: ["QNNExecutionProvider"]
    return session


@pytest.fixture
def cache(decoder: StaticDecoder) -> StaticCache:
    """After a prompt of two windows and a step."""
    cache = decoder.new_cache()
    prompt(decoder, cache)
    decoder.step([cache], [1])
    return cache


def prompt(decoder: StaticDecoder, cache: StaticCache) -> None:
    for _ in range(2):
        decoder.prefill(cache, range(SHAPE.width))


def copied(run: Callable[[], object]) -> int:
    """Bytes that `run` writes into buffers."""
    CountedArray.written = 0
    run()
    return CountedArray.written


def allocated(run: Callable[[], object]) -> tuple[int, int]:
    """Bytes that `run` allocates at most at one time, and those that it keeps. They include the arrays of numpy."""
    tracemalloc.start()
    try:
        run()  # tracemalloc's own first allocations
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        run()
        after, peak = tracemalloc.get_traced_memory()
        return peak - before, after - before
    finally:
        tracemalloc.stop()


def test_step_runs_each_graph_once(
    decoder: StaticDecoder, cache: StaticCache, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    expected = CALLS + ("npu_head" in request.node.name)  # and the cast of its logits to float32
    calls: list[str] = []
    for name in ("run", "run_with_iobinding"):
        method = getattr(ort.InferenceSession, name)

        def counted(*args: Any, method: Any = method, name: str = name) -> Any:
            calls.append(name)
            return method(*args)

        monkeypatch.setattr(ort.InferenceSession, name, counted)
    decoder.step([cache], [1])
    assert calls == ["run_with_iobinding"] * expected
    calls.clear()
    decoder.prefill(cache, range(SHAPE.width))
    assert calls == ["run_with_iobinding"] * expected


def test_step_allocates_less_than_a_row_of_logits(decoder: StaticDecoder, cache: StaticCache) -> None:
    peak, _ = allocated(lambda: decoder.step([cache], [1]))
    assert peak < ALLOCATED


def test_steps_keep_no_memory(decoder: StaticDecoder, cache: StaticCache) -> None:
    _, kept = allocated(lambda: [int(decoder.step([cache], [1])[0].argmax()) for _ in range(30)])
    assert kept < ALLOCATED


def test_window_allocates_less_than_a_row_of_logits(decoder: StaticDecoder, cache: StaticCache) -> None:
    peak, _ = allocated(lambda: decoder.prefill(cache, range(SHAPE.width)))
    assert peak < ALLOCATED


def test_step_copies_new_rows_only(decoder: StaticDecoder, cache: StaticCache) -> None:
    assert 0 < copied(lambda: decoder.step([cache], [1])) <= ROW + COPIED


def test_steps_after_next_prompt_get_rows_of_that_prompt_only(decoder: StaticDecoder, cache: StaticCache) -> None:
    for _ in range(20):
        decoder.step([cache], [1])
    twice = 2 * 2 * SHAPE.width * ROW  # into the tensors for prompts, and into those for steps
    inputs = 2 * 2 * SHAPE.width * SHAPE.hidden * 2  # of our own layout: hidden states
    assert copied(lambda: prompt(decoder, cache)) <= twice / 2 + 21 * ROW + inputs
    assert copied(lambda: decoder.step([cache], [1])) <= twice / 2 + ROW + COPIED


def test_free_caches_frees_tensors_that_no_cache_uses(decoder: StaticDecoder, cache: StaticCache) -> None:
    unused = [weakref.ref(buffer) for each in decoder._memory._free for buffer in each.buffers.values()]
    decoder.free_caches()
    assert not any(ref() for ref in unused)
    decoder.step([cache], [1])
    prompt(decoder, cache)


def test_memory_of_tensors_is_bounded(decoder: StaticDecoder) -> None:
    """Sequences that take turns with prompts and steps: their tensors for prompts are shared."""
    sequences = [decoder.new_cache() for _ in range(5)]
    for _ in range(3):
        for cache in sequences:
            cache.truncate(0)
            prompt(decoder, cache)
        for cache in sequences:
            decoder.step([cache], [1])
    assert len(decoder._memory._free) <= 2
