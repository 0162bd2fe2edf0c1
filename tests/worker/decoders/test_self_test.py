"""The test of a model on an NPU before it serves. The decoder is a real one on the CPU whose results a test changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from msgspec.structs import replace

from gateway.errors import BundleError, EngineFailed, GatewayError
from gateway.worker.decoders.base import DecoderSpec, KVCache, Logits
from gateway.worker.decoders.cpu import CpuDecoder
from gateway.worker.decoders.self_test import self_test
from gateway.worker.frames import Device
from tests.support.workers import Wrapped

END_IDS = [0]


class Changed(Wrapped):
    """Args:
    of_prompt, of_step: change logits.
    """

    def __init__(
        self,
        decoder: CpuDecoder,
        of_prompt: Callable[[Logits], Logits] = lambda logits: logits,
        of_step: Callable[[Logits], Logits] | None = None,
        **spec: object,
    ) -> None:
        super().__init__(decoder)
        self._of_prompt, self._of_step = of_prompt, of_step or of_prompt
        self._changes = {"device": "npu", **spec}
        self.calls: list[str] = []

    @property
    def spec(self) -> DecoderSpec:
        return replace(self._decoder.spec, **self._changes)

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        self.calls.append("prefill")
        return self._of_prompt(self._decoder.prefill(cache, ids))

    def step(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        self.calls.append("step")
        return self._of_step(self._decoder.step(caches, ids)[0])[None]


def codes(logits: Logits) -> Logits:
    """What a uint16 output has before it is dequantised."""
    return np.round(logits * 700 + 32768).astype(np.float32)


def with_value(logits: Logits, index: int | slice, value: float) -> Logits:
    changed = logits.copy()
    changed[index] = value
    return changed


@pytest.mark.parametrize(("device", "steps"), [("npu", 8), ("emulated", 2)])
def test_right_model_passes_with_few_calls(tiny_decoder: CpuDecoder, device: Device, steps: int) -> None:
    decoder, cache = Changed(tiny_decoder, device=device), tiny_decoder.new_cache()
    self_test(decoder, cache, END_IDS)
    assert decoder.calls == ["prefill", *["step"] * steps]
    assert cache.length == 0


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            codes,
            BundleError,
            r"no scale \(about \d+\S*, up to \d+\).* Export it again with a DequantizeLinear",
        ),
        (lambda logits: logits * 1e5, BundleError, "logits have no scale"),
        (lambda logits: with_value(logits, 7, np.nan), BundleError, "no numbers. Take another bundle"),
        (lambda logits: with_value(logits, slice(None), -np.inf), BundleError, "end tokens"),
        (lambda logits: with_value(logits, 0, -np.inf), BundleError, r"none of its end tokens \(0; .* eos_token_id"),
    ],
)
def test_logits_of_no_use_are_refused(
    tiny_decoder: CpuDecoder, change: Callable[[Logits], Logits], kind: type[GatewayError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        self_test(Changed(tiny_decoder, change), tiny_decoder.new_cache(), END_IDS)


def test_unused_tokens_may_have_hidden_logits(tiny_decoder: CpuDecoder) -> None:
    for value in (-1e9, -np.inf):
        hidden = Changed(tiny_decoder, lambda logits, value=value: with_value(logits, slice(200, 210), value))
        with np.errstate(all="ignore"):
            self_test(hidden, tiny_decoder.new_cache(), END_IDS)


def test_codes_of_a_greedy_only_model_pass(tiny_decoder: CpuDecoder) -> None:
    self_test(Changed(tiny_decoder, codes, greedy_only=True), tiny_decoder.new_cache(), END_IDS)


def test_end_token_above_the_vocabulary_is_refused(tiny_decoder: CpuDecoder) -> None:
    vocab_size = tiny_decoder.spec.vocab_size
    with pytest.raises(BundleError, match=rf"\({vocab_size}, 999999; it has {vocab_size} tokens\)"):
        self_test(Changed(tiny_decoder), tiny_decoder.new_cache(), [vocab_size, 999999])
    self_test(Changed(tiny_decoder), tiny_decoder.new_cache(), [vocab_size, 5])  # one of them is possible
    self_test(Changed(tiny_decoder), tiny_decoder.new_cache(), [])


def test_steps_unlike_the_window_are_refused(tiny_decoder: CpuDecoder) -> None:
    decoder = Changed(tiny_decoder, lambda logits: logits, lambda logits: np.roll(logits, 1))
    with pytest.raises(EngineFailed, match=r"prompts and its single steps give different logits.*npu-gateway catalog"):
        self_test(decoder, tiny_decoder.new_cache(), END_IDS)


@pytest.mark.parametrize(("device", "wrong_call"), [("emulated", 1), ("npu", 7)])
def test_other_tokens_the_second_time_are_refused(tiny_decoder: CpuDecoder, device: Device, wrong_call: int) -> None:
    calls = itertools.count()

    def change(logits: Logits) -> Logits:
        return -logits if next(calls) == wrong_call else logits

    with pytest.raises(EngineFailed, match=r"different tokens for one prompt.*Restart the machine"):
        self_test(
            Changed(tiny_decoder, lambda logits: logits, change, device=device), tiny_decoder.new_cache(), END_IDS
        )
