"""Several requests in a token loop over a real tiny model.

The clock is the test's: a device call takes 1 s, and 1 s more for each prompt token.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from gateway.sampling import Sampling
from gateway.worker.frames import Began, Cancel, Ended, Prefilled, Tokens
from tests.support.tiny import VOCABULARY
from tests.support.token_loop_fixtures import SLICE_S, Bench, random_ids

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


# -- turns of clients, requests and choices ----------------------------------------------------------------------------


def calls_until_first_token(bench: Bench, request: int) -> int:
    before = len(bench.decoder.calls)
    for _ in range(20_000):
        if bench.of(request, Tokens):
            break
        bench.loop.turn()
    return len(bench.decoder.calls) - before


def assert_half_of_device(bench: Bench, request: int, began_at: float) -> None:
    """The request, one prefill, had half of the device; a chunk of 17 s at each end is not shared."""
    own_s = sum(frame.device_s for frame in bench.of(request, Prefilled))
    assert bench.when(request, Ended)[0] - began_at <= 2 * own_s + 34


def start(bench: Bench, calls: int = 50) -> None:
    for _ in range(calls):
        bench.loop.turn()


#: Submits the requests of one client. Without turns, another client waited for the number of calls.
CROWDS = {
    "128_choices (12850 calls)": lambda bench: bench.submit(PROMPT, n=128, max_tokens=400, client="a"),
    "four_long_answers (359 calls)": lambda bench: [
        bench.submit(random_ids(20, seed), max_tokens=400, client="a") for seed in range(4)
    ],
    "four_prompts_as_long_as_the_context (128 calls)": lambda bench: [
        bench.submit(random_ids(500, seed), max_tokens=1, client="a") for seed in range(4)
    ],
    "background (19 calls)": lambda bench: bench.submit(PROMPT, n=128, max_tokens=400, client="a", background=True),
}


@pytest.mark.parametrize("crowd", CROWDS.values(), ids=CROWDS.keys())
@pytest.mark.parametrize("client", ["a", "b"], ids=["same_client", "other_client"])
def test_first_token_of_another_request_takes_few_calls(bench: Bench, crowd: Callable, client: str) -> None:
    crowd(bench)
    start(bench, 2)
    start(bench, 48 if bench.of(1, Tokens) else 0)
    other = bench.submit(random_ids(20, 9), max_tokens=1, client=client)
    is_own_context = client == "a" and len(bench.loop._requests) == 5
    assert calls_until_first_token(bench, other) <= (60 if is_own_context else 20)


def test_single_slot_is_given_up_after_a_time_slice(make_bench: MakeBench) -> None:
    bench = make_bench(slots=1)
    long = bench.submit(PROMPT, max_tokens=400, client="a")
    start(bench, 20)
    other = bench.submit(random_ids(20, 9), max_tokens=5, client="b")
    assert calls_until_first_token(bench, other) <= SLICE_S
    bench.finish()
    assert bench.when(other, Ended)[0] < bench.when(long, Ended)[0]


def test_first_token_of_a_fifth_client_does_not_wait_for_a_time_slice(bench: Bench) -> None:
    streams = [bench.submit(random_ids(20, seed), max_tokens=300, client=str(seed)) for seed in range(4)]
    start(bench, 20)
    suspended_at = bench.decoder.now
    other = bench.submit(random_ids(3, 9), max_tokens=100, client="other")
    assert calls_until_first_token(bench, other) <= 5
    bench.finish()
    # The suspended stream has begun, so it waits until another one has used up its time slice.
    gaps = [np.diff([t for t in bench.when(stream) if t >= suspended_at]).max(initial=0.0) for stream in streams]
    assert SLICE_S / 2 < max(gaps) < 3 * SLICE_S


def test_sequential_short_requests_take_turns_with_128_choices(bench: Bench) -> None:
    bench.submit(PROMPT, n=128, max_tokens=400, client="a")
    start(bench)
    for seed in range(30):
        other = bench.submit(random_ids(3, seed), max_tokens=1, client="b")
        assert calls_until_first_token(bench, other) <= 8
    assert sum(len(bench.tokens(1, choice)) for choice in range(128)) > 100  # the choices continue meanwhile


def test_clients_share_device_time_whatever_their_number_of_requests(make_bench: MakeBench) -> None:
    bench = make_bench(prefix_cache=False)
    crowd = [bench.submit(random_ids(400, seed), max_tokens=1, client="a") for seed in range(3)]
    alone = bench.submit(random_ids(400, 3), max_tokens=1, client="b")
    bench.finish()
    assert_half_of_device(bench, alone, 0.0)
    assert all(bench.when(request, Ended)[0] > bench.when(alone, Ended)[0] for request in crowd)


def test_requests_of_one_client_share_device_time_whatever_their_number_of_choices(bench: Bench) -> None:
    many = bench.submit(PROMPT, n=3, max_tokens=300, client="a")
    start(bench, 10)
    at = bench.decoder.now
    long = bench.submit(random_ids(200, 3), max_tokens=1, client="a")
    bench.finish()
    assert_half_of_device(bench, long, at)
    assert bench.when(long, Ended)[0] < bench.when(many, Ended)[0]


def test_prefill_is_not_starved_by_a_batch_with_another_client(bench: Bench) -> None:
    """A stream of client a takes part in the calls for client b. That must not use up the time of a's prefill."""
    for client in ("a", "b"):
        bench.submit(PROMPT[:10], max_tokens=450, client=client)
    start(bench, 10)
    at = bench.decoder.now
    long = bench.submit(random_ids(200, 3), max_tokens=1, client="a")
    bench.finish()
    assert_half_of_device(bench, long, at)


def test_flood_of_one_client_at_most_doubles_the_p95_of_the_first_token_of_another(make_bench: MakeBench) -> None:
    """The flood has eight requests in progress at any time."""
    bench, p95 = make_bench(prefix_cache=False), {}
    for flood in (0, 8):
        running: list[int] = []
        waited: list[float] = []
        for seed in range(20):
            other = bench.submit(random_ids(64 + 8 * seed, seed), max_tokens=1, client="b")
            at = bench.decoder.now
            while not bench.of(other, Ended):
                running = [request for request in running if not bench.of(request, Ended)]
                while len(running) < flood:
                    tokens = 60 + 7 * len(bench.frames) % 100
                    running.append(bench.submit(random_ids(tokens, 99), max_tokens=40, client="a"))
                bench.loop.turn()
            waited.append(bench.when(other, Tokens)[0] - at)
        p95[flood] = sorted(waited)[18]
    assert p95[0] < p95[8] <= 2 * p95[0]


# -- suspension keeps answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_batch_invariant", [True, False], ids=["batch_invariant", "float"])
@pytest.mark.parametrize("snapshot_bytes", [1 << 28, 0], ids=["snapshots", "lost_rows"])
def test_suspended_answers_are_identical(make_bench: MakeBench, is_batch_invariant: bool, snapshot_bytes: int) -> None:
    """With slices of one call, each answer is suspended many times."""
    settings = [Sampling(temperature=0), Sampling(seed=4, temperature=1.0), Sampling(seed=5, temperature=1.0)]
    prompts = [random_ids(size, size) for size in (40, 21, 35)]
    options = {"is_batch_invariant": is_batch_invariant, "snapshot_bytes": snapshot_bytes, "slice_s": 1.0}
    bench = make_bench(slots=1, **options)
    pairs = list(zip(prompts, settings, strict=True))
    alone = [bench.answer(ids, max_tokens=150, sampling=each, owner=f"{each.seed}") for ids, each in pairs]
    calls = len(bench.decoder.calls)
    requests = [
        bench.submit(ids, max_tokens=150, sampling=each, owner=f"again {each.seed}", client=f"{each.seed}")
        for ids, each in pairs
    ]
    bench.finish()
    assert [bench.tokens(request) for request in requests] == alone
    assert all(len(bench.of(request, Began)) == 1 for request in requests)
    last_of_first, first_of_last = bench.when(requests[0])[-1], bench.when(requests[2])[0]
    assert first_of_last < last_of_first  # they did take turns
    prefills = sum(kind == "prefill" for kind, _ in bench.decoder.calls[calls:])
    assert prefills == 3 + 2 + 3 if snapshot_bytes else prefills > 8  # a snapshot restores every row


def test_lost_rows_take_at_most_half_of_the_device(make_bench: MakeBench) -> None:
    """Without snapshots a suspended prompt is computed again. Slices of one call must not become only that."""
    bench = make_bench(slots=1, prefix_cache=False, slice_s=1.0)
    requests = [bench.submit(random_ids(200, seed), max_tokens=60, client=f"{seed}") for seed in range(3)]
    bench.finish(3_000)
    assert all(len(bench.tokens(request)) == 60 for request in requests)
    assert bench.decoder.now < 3 * 2 * 2 * (213 + 60)


def test_lost_rows_are_not_device_time_of_the_request(make_bench: MakeBench) -> None:
    bench = make_bench(slots=1, prefix_cache=False, slice_s=1.0)
    requests = [bench.submit(random_ids(50, seed), max_tokens=30, client=f"{seed}") for seed in range(2)]
    bench.finish()
    for request in requests:
        assert sum(frame.device_s for frame in bench.of(request, Prefilled)) <= 54 + 17


@pytest.mark.parametrize("seed", range(6))
def test_random_clients_get_one_ending_each_and_leave_no_state(make_bench: MakeBench, seed: int) -> None:
    dice = random.Random(seed)
    bench = make_bench(slots=dice.randint(1, 4), slice_s=dice.choice([1.0, 50.0]))
    sizes = {}
    for number in range(40):
        n = dice.choice([1, 1, 1, 5])
        options = {"n": n, "max_tokens": dice.randint(1, 12), "client": f"{dice.randint(0, 9) * number}"}
        request = bench.submit(random_ids(dice.randint(1, 60), number), background=dice.random() < 0.3, **options)
        sizes[request] = n
        start(bench, dice.randint(0, 20))
        if dice.random() < 0.2:
            bench.loop.cancel(Cancel(request))
            del sizes[request]
    bench.finish()
    assert all(len(bench.endings(request)) == n for request, n in sizes.items())
    schedule = bench.loop._schedule
    assert not schedule._served and not schedule._waiting and not schedule._running


# -- memory ------------------------------------------------------------------------------------------------------------


def test_128_choices_with_a_prediction_take_the_memory_of_four(bench: Bench) -> None:
    """Each choice had its own index of the prediction: 1,228 MB here."""
    prediction = random_ids(40_000, 5)
    settings = Sampling(temperature=0, repetition_penalty=1.1, logit_bias=dict.fromkeys(range(VOCABULARY), 0.1))
    tracemalloc.start()
    try:
        bench.submit(PROMPT, n=128, max_tokens=400, prediction=prediction, sampling=settings)
        start(bench)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
