"""Several requests in a token loop over a real tiny model.

The clock is the test's: a device call takes 1 s, and 1 s more for each prompt token.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gateway.worker.frames import Began, Ended
from tests.support.token_loop_fixtures import Bench, random_ids

MakeBench = Callable[..., Bench]
PROMPT = random_ids(20, 1)


# -- several requests --------------------------------------------------------------------------------------------------


def test_batched_answers_equal_single_answers(make_bench: MakeBench) -> None:
    bench = make_bench()
    prompts = [random_ids(size, size) for size in (3, 20, 50, 31)]
    alone = [bench.answer(prompt, max_tokens=70, owner=f"alone {i}") for i, prompt in enumerate(prompts)]
    requests = [bench.submit(prompt, max_tokens=70, owner=f"together {i}") for i, prompt in enumerate(prompts)]
    bench.finish()
    assert [bench.tokens(request) for request in requests] == alone
    assert ("step", 4) in bench.decoder.calls


def test_short_answer_finishes_before_running_long_one(bench: Bench) -> None:
    long = bench.submit(PROMPT, max_tokens=200)
    for _ in range(20):
        bench.loop.turn()
    submitted_at = bench.decoder.now
    short = bench.submit(random_ids(10, 2), max_tokens=5)
    bench.finish()
    assert bench.when(short, Ended)[0] - submitted_at < 30
    assert bench.when(long, Ended)[0] > submitted_at + 100


def test_long_prefill_takes_half_of_device_during_stream(bench: Bench) -> None:
    stream = bench.submit(PROMPT, max_tokens=300)
    for _ in range(20):
        bench.loop.turn()
    submitted_at = bench.decoder.now
    long = bench.submit(random_ids(200, 3), max_tokens=2)
    bench.finish()
    first = bench.when(long)[0]
    during = [t for t in bench.when(stream) if submitted_at <= t <= first]
    gaps = np.diff([submitted_at, *during])
    assert max(gaps) <= 18  # one chunk of 16 tokens and a step
    device_s = first - submitted_at
    assert 0.4 * device_s < len(during) < 0.6 * device_s  # a step takes 1 s: about half of the device
    assert device_s < 2.3 * 213


def test_short_prompt_finishes_before_running_long_prefill(bench: Bench) -> None:
    long = bench.submit(random_ids(300, 4), max_tokens=2)
    bench.loop.turn()
    short = bench.submit(random_ids(20, 5), max_tokens=2)
    bench.finish()
    assert bench.when(short, Ended)[0] < bench.when(long)[0]


def test_more_requests_than_slots_start_in_order(make_bench: MakeBench) -> None:
    bench = make_bench(slots=2)
    requests = [bench.submit(random_ids(10, seed), max_tokens=5) for seed in range(6)]
    bench.finish()
    started = [bench.when(request, Began)[0] for request in requests]
    assert started == sorted(started)
    assert all(bench.endings(request) == [Ended(request, "length")] for request in requests)
    assert max(size for kind, size in bench.decoder.calls if kind == "step") == 2


# -- in the background -------------------------------------------------------------------------------------------------


def test_background_stops_at_next_step_for_foreground(bench: Bench) -> None:
    background = bench.submit(random_ids(10, 1), max_tokens=40, background=True)
    for _ in range(5):
        bench.loop.turn()
    submitted_at = bench.decoder.now
    foreground = bench.submit(random_ids(10, 2), max_tokens=10)
    bench.finish()
    done = bench.when(foreground, Ended)[0]
    assert done - submitted_at == 11 + 9
    assert not [t for t in bench.when(background) if submitted_at < t <= done]
    assert len(bench.tokens(background)) == 40


def test_background_gives_up_slot_and_continues_later(make_bench: MakeBench) -> None:
    alone = make_bench(slots=1).answer(PROMPT, max_tokens=20)
    bench = make_bench(slots=1)
    background = bench.submit(PROMPT, max_tokens=20, background=True)
    for _ in range(8):
        bench.loop.turn()
    assert 0 < len(bench.tokens(background)) < 20
    foreground = bench.submit(random_ids(10, 2), max_tokens=3)
    bench.finish()
    assert bench.when(foreground, Ended)[0] < bench.when(background, Ended)[0]
    assert bench.tokens(background) == alone
    assert len(bench.of(background, Began)) == 1


def test_background_starts_after_foreground(bench: Bench) -> None:
    foreground = bench.submit(PROMPT, max_tokens=10)
    background = bench.submit(random_ids(10, 2), max_tokens=3, background=True)
    bench.finish()
    assert bench.when(background, Began)[0] >= bench.when(foreground, Ended)[0]


# -- the prefix cache --------------------------------------------------------------------------------------------------


def test_second_turn_computes_only_new_tokens(bench: Bench) -> None:
    first = bench.answer(PROMPT, max_tokens=10)
    again = bench.submit(PROMPT + first + random_ids(8, 9), max_tokens=10)
    bench.finish()
    assert bench.cached(again) == len(PROMPT) + 9  # the last token of an answer is never computed
    assert [size for kind, size in bench.decoder.calls if kind == "prefill"] == [16, 4, 9]


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_prefix_cache_keeps_answers(make_bench: MakeBench, prefix_cache: bool) -> None:
    bench = make_bench(prefix_cache=prefix_cache)
    system = random_ids(30, 7)
    prompts = [system + random_ids(5, seed) for seed in range(6)]
    answers = [bench.answer(prompt, max_tokens=12) for prompt in prompts]
    cached = [bench.cached(request) for request in range(1, 7)]
    assert cached == ([0, 30, 30, 30, 30, 30] if prefix_cache else [0] * 6)
    assert answers == [make_answer(bench, prompt) for prompt in prompts]


def make_answer(bench: Bench, prompt: list[int]) -> list[int]:
    return bench.answer(prompt, max_tokens=12, owner=f"fresh {bench.decoder.now}")


def test_owners_share_no_prefix(bench: Bench) -> None:
    bench.answer(PROMPT, owner="alice")
    other = bench.submit(PROMPT, owner="bob")
    bench.finish()
    assert bench.cached(other) == 0


def test_prefix_of_running_request_is_reused(bench: Bench) -> None:
    system = random_ids(30, 7)
    bench.submit([*system, 5, 6], max_tokens=50)
    for _ in range(5):
        bench.loop.turn()
    second = bench.submit([*system, 8, 9], max_tokens=5)
    bench.finish()
    assert bench.cached(second) == 30
