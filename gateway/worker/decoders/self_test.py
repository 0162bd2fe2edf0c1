"""Checks a loaded model on an NPU before it serves: a few passes, which also warm it up.

A wrong graph, a wrong scale or a fault of a driver gives answers that look right. So the same tokens go through a
window and through single steps, and the logits must be usable.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gateway.errors import BundleError, EngineFailed
from gateway.worker.decoders.base import Decoder, KVCache, Logits

_TOKENS = 3  # of the prompt, if a window of it does not need more
_STEPS = 4  # greedy tokens on a real NPU; an emulated one takes seconds for each
_MAX_ERROR = 0.3  # relative; the emulator's is below 0.02, that of noise or zeros is 1 or more
_MAX_RANGE = 1000.0  # from the median of a token's logits to the largest; language models have less than 100
_MIN_CODES = 32.0  # the same range, from which whole numbers are codes
_OTHER_BUNDLE = "Take another bundle of the model: `npu-gateway catalog` lists some."


def self_test(decoder: Decoder, cache: KVCache, end_ids: Sequence[int]) -> None:
    """Make one window of each width and some steps, and check their logits. Leaves the cache empty.

    Raises EngineFailed when the device computes wrongly, BundleError when the logits are of no use.
    """
    spec = decoder.spec
    _, *narrow = sorted(spec.pass_costs.keys() - {spec.prompt_width}) or [1]
    longest = max(1, min(spec.prompt_width, spec.context_length - _STEPS))
    prompt = range(1, 1 + min(longest, max([_TOKENS, *(width + 1 for width in narrow)])))
    windows = [np.array(decoder.prefill(cache, prompt))]
    count = _STEPS if spec.device == "npu" else 1
    step, tokens = _greedy(decoder, cache, prompt, count)
    _, again = _greedy(decoder, cache, prompt, count)
    for width in narrow:
        cache.truncate(max(0, len(prompt) - width))
        windows.append(np.array(decoder.prefill(cache, prompt[-width:])))
    cache.truncate(0)
    _check_end(step, spec.vocab_size, end_ids)
    if not spec.greedy_only:
        _check_scale(step)
    if tokens != again:
        raise EngineFailed(
            "The NPU gives different tokens for one prompt, so its answers would be wrong. Restart the machine, and "
            "update the NPU's driver if that does not help."
        )
    if any(np.isnan(logits).any() for logits in (step, *windows)):
        raise EngineFailed(
            f"The model gives logits that are no numbers, so its answers would be wrong. {_OTHER_BUNDLE}"
        )
    finite = np.isfinite(step) & np.isfinite(windows).all(axis=0)  # some models give unused tokens -inf
    if not all(is_close(step[None, finite], window[None, finite]) for window in windows):
        raise EngineFailed(
            f"The model's prompts and its single steps give different logits, so its answers would be wrong. "
            f"{_OTHER_BUNDLE}"
        )


def is_close(logits: Logits, expected: Logits) -> bool:
    """True if every row has a small error, relative to the differences within the row. False if there is a NaN.

    Logits without a known scale are large codes with small differences.
    """
    spread = expected - expected.mean(axis=1, keepdims=True)
    errors = np.linalg.norm(logits - expected, axis=1) / np.linalg.norm(spread, axis=1)
    return bool(errors.max() < _MAX_ERROR)


def _greedy(decoder: Decoder, cache: KVCache, prompt: Sequence[int], count: int) -> tuple[Logits, list[int]]:
    """The logits after the prompt, whose last token is computed again as a step, and `count` tokens."""
    cache.truncate(len(prompt) - 1)
    first = np.array(decoder.step([cache], [prompt[-1]])[0])
    tokens = [int(first.argmax())]
    while len(tokens) < count:
        tokens.append(int(decoder.step([cache], [tokens[-1]])[0].argmax()))
    return first, tokens


def _check_end(logits: Logits, vocab_size: int, end_ids: Sequence[int]) -> None:
    """One end token must be possible. A model without end tokens is not refused."""
    if end_ids and not any(index < vocab_size and np.isfinite(logits[index]) for index in end_ids):
        ids = ", ".join(map(str, end_ids))
        raise BundleError(
            f"The model can generate none of its end tokens ({ids}; it has {vocab_size} tokens), so its answers would "
            "not end. Correct eos_token_id in its genai_config.json."
        )


def _check_scale(logits: Logits) -> None:
    with np.errstate(all="ignore"):
        probabilities = np.exp(logits - logits.max())
        total = float((probabilities / probabilities.sum()).sum())
    if not abs(total - 1) < 1e-3:
        raise BundleError(f"The model gives logits that are no numbers. {_OTHER_BUNDLE}")
    usual, highest = float(np.median(logits)), float(logits.max())  # the least can be -1e9
    is_code = highest - usual > _MIN_CODES and np.array_equal(logits, np.round(logits))
    if is_code or highest - usual > _MAX_RANGE:
        raise BundleError(
            f"The model's logits have no scale (about {usual:.6g}, up to {highest:.6g}), so all probabilities would be "
            f"wrong. Export it again with a DequantizeLinear, or take another bundle: `npu-gateway catalog`."
        )
