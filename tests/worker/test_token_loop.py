"""The token loop over a real tiny model.

The clock is the test's: a device call takes 1 s, and 1 s more for each prompt token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from gateway.errors import EngineFailed
from gateway.sampling import Sampling
from gateway.worker.decoders.base import Logits
from gateway.worker.decoders.cpu import CpuDecoder
from gateway.worker.frames import Began, Cancel, Ended, Failed, Prefilled, Tokens
from tests.support.tiny import VOCABULARY
from tests.support.token_loop_fixtures import Bench, random_ids

MakeBench = Callable[..., Bench]
PROMPT = random_ids(20, 1)


def plain_greedy(decoder: CpuDecoder, ids: Sequence[int], count: int) -> list[int]:
    """Prefill once, then single steps."""
    cache = decoder.new_cache()
    row, answer = decoder.prefill(cache, list(ids)), []
    while len(answer) < count:
        answer.append(int(row.argmax()))
        row = decoder.step([cache], answer[-1:])[0]
    return answer


# -- one request -------------------------------------------------------------------------------------------------------


def test_greedy_answer_equals_prefill_then_steps(make_bench: MakeBench, tiny_decoder: CpuDecoder) -> None:
    expected = plain_greedy(tiny_decoder, PROMPT, 30)
    bench = make_bench(slots=3)
    request = bench.submit(PROMPT, max_tokens=30)
    bench.finish()
    assert bench.tokens(request) == expected


def test_request_sends_frames_in_order_with_device_times(bench: Bench) -> None:
    request = bench.submit(PROMPT, max_tokens=3)
    bench.finish()
    kinds = [type(frame) for frame in bench.frames]
    assert kinds == [Began, Prefilled, Prefilled, Tokens, Tokens, Tokens, Ended]
    assert bench.endings(request) == [Ended(request, "length")]
    assert [frame.device_s for frame in bench.of(request, Prefilled)] == [17, 5]
    assert [frame.device_s for frame in bench.of(request, Tokens)] == [0, 1, 1]


def test_stop_token_ends_answer_and_is_not_sent(bench: Bench) -> None:
    answer = bench.answer(PROMPT, max_tokens=12)
    stop = answer[5]
    request = bench.submit(PROMPT, max_tokens=12, stop_ids=[stop])
    bench.finish()
    assert bench.tokens(request) == answer[: answer.index(stop)]
    assert bench.endings(request) == [Ended(request, "stop", counted_stop=1)]


def test_min_tokens_excludes_stop_token(bench: Bench) -> None:
    answer = bench.answer(PROMPT, max_tokens=12)
    request = bench.submit(PROMPT, max_tokens=12, stop_ids=[answer[1]], min_tokens=6)
    bench.finish()
    assert len(bench.tokens(request)) >= 6
    assert answer[1] not in bench.tokens(request)


def test_answer_can_fill_context(make_bench: MakeBench) -> None:
    bench = make_bench(context_length=32)
    request = bench.submit(PROMPT, max_tokens=12)
    bench.finish()
    assert len(bench.tokens(request)) == 12
    assert bench.endings(request) == [Ended(request, "length")]


@pytest.mark.parametrize(
    ("prompt", "max_tokens"), [pytest.param([], 1, id="empty_prompt"), pytest.param(PROMPT, 13, id="exceeds_context")]
)
def test_request_that_gateway_must_refuse_is_an_assertion(
    make_bench: MakeBench, prompt: list[int], max_tokens: int
) -> None:
    with pytest.raises(AssertionError):
        make_bench(context_length=32).submit(prompt, max_tokens=max_tokens)


def test_max_tokens_zero_sends_no_token(bench: Bench) -> None:
    request = bench.submit(PROMPT, max_tokens=0, prompt_logprobs=True)
    bench.finish()
    assert bench.tokens(request) == []
    assert bench.endings(request) == [Ended(request, "length")]


@pytest.mark.parametrize(
    ("ids", "options", "param"),
    [
        ([1, VOCABULARY], {}, "prompt"),
        ([-1], {}, "prompt"),
        ([1], {"prediction": [VOCABULARY]}, "prediction"),
        ([1], {"sampling": Sampling(logit_bias={VOCABULARY: 1.0})}, "logit_bias"),
    ],
    ids=["prompt_too_large", "prompt_negative", "prediction", "logit_bias"],
)
def test_token_id_outside_vocabulary_is_refused(bench: Bench, ids: list[int], options: dict, param: str) -> None:
    request = bench.submit(ids, **options)
    (failed,) = bench.endings(request)
    assert (failed.kind, failed.param) == ("InvalidRequest", param)
    assert bench.loop.is_idle and not bench.decoder.calls


def test_one_token_prompt_answers_each_choice(bench: Bench) -> None:
    request = bench.submit([7], max_tokens=4, n=2)
    bench.finish()
    assert bench.tokens(request, 0) == bench.tokens(request, 1)
    assert len(bench.tokens(request)) == 4


def test_one_token_prompt_sends_began_before_tokens(bench: Bench) -> None:
    requests = [bench.submit([token], max_tokens=3) for token in (7, 8, 9)]
    bench.finish()
    for request in requests:
        assert [type(frame) for frame in bench.frames if frame.id == request] == [Began, Tokens, Tokens, Tokens, Ended]


# -- several choices ---------------------------------------------------------------------------------------------------


def test_choices_share_one_prefill(make_bench: MakeBench) -> None:
    bench = make_bench(prefix_cache=False)
    request = bench.submit(PROMPT, n=6, max_tokens=6, sampling=Sampling(seed=5, temperature=1.5))
    bench.finish()
    assert sorted(frame.choice for frame in bench.of(request, Ended)) == [0, 1, 2, 3, 4, 5]
    answers = [tuple(bench.tokens(request, choice)) for choice in range(6)]
    assert len(set(answers)) > 3
    computed = sum(size for kind, size in bench.decoder.calls if kind == "prefill")
    assert computed == len(PROMPT) + 5 * 2
    assert len(bench.of(request, Began)) == 1


def test_greedy_choices_are_equal(bench: Bench) -> None:
    request = bench.submit(PROMPT, n=4, max_tokens=10)
    bench.finish()
    assert len({tuple(bench.tokens(request, choice)) for choice in range(4)}) == 1


def test_same_seed_gives_same_choices(make_bench: MakeBench) -> None:
    bench = make_bench()
    options = {"n": 3, "max_tokens": 10, "sampling": Sampling(seed=11, temperature=1.2, top_p=0.9)}
    first, second = bench.submit(PROMPT, **options), bench.submit(PROMPT, **options)
    bench.finish()
    for choice in range(3):
        assert bench.tokens(first, choice) == bench.tokens(second, choice)


@pytest.mark.parametrize("is_batch_invariant", [True, False])
def test_seeded_sampling_steps_alone_unless_batch_invariant(make_bench: MakeBench, is_batch_invariant: bool) -> None:
    bench = make_bench(is_batch_invariant=is_batch_invariant)
    settings = {"seeded": Sampling(seed=4, temperature=1.0), "greedy": Sampling(seed=4, temperature=0.0)}
    settings |= {"unseeded": Sampling(temperature=1.0), "other_seed": Sampling(seed=5, temperature=1.0)}
    repeated = PROMPT[:6] * 3  # gives prompt lookup something to draft
    requests = {name: bench.submit(repeated, max_tokens=30, sampling=sampling) for name, sampling in settings.items()}
    bench.finish()
    assert all(len(bench.tokens(request)) == 30 for request in requests.values())
    widest = max(size for kind, size in bench.decoder.calls if kind == "step")
    assert widest == (4 if is_batch_invariant else 2)
    steps = [frame.device_s for name in ("seeded", "other_seed") for frame in bench.of(requests[name], Tokens)]
    assert is_batch_invariant or steps == [0, *[1] * 29] * 2


def test_seeded_request_verifies_prediction(make_bench: MakeBench) -> None:
    bench = make_bench(is_batch_invariant=False)
    settings = Sampling(seed=4, temperature=1.0)
    plain = bench.answer(PROMPT, max_tokens=20, sampling=settings)
    assert bench.answer(PROMPT, max_tokens=20, sampling=settings, prediction=plain) == plain
    assert "verify" in {kind for kind, _ in bench.decoder.calls}


# -- cancels and failures ----------------------------------------------------------------------------------------------


def test_cancel_prevents_next_call(bench: Bench) -> None:
    request = bench.submit(PROMPT, max_tokens=100)
    for _ in range(6):
        bench.loop.turn()
    calls, frames = len(bench.decoder.calls), len(bench.frames)
    bench.loop.cancel(Cancel(request))
    bench.loop.turn()
    assert bench.loop.is_idle
    assert (len(bench.decoder.calls), len(bench.frames)) == (calls, frames)


def test_cancelled_choice_leaves_others_running(bench: Bench) -> None:
    request = bench.submit(PROMPT, n=3, max_tokens=10)
    for _ in range(5):
        bench.loop.turn()
    bench.loop.cancel(Cancel(request, 1))
    bench.finish()
    assert sorted(frame.choice for frame in bench.of(request, Ended)) == [0, 2]


def test_cancel_of_waiting_choice_starts_no_other_early(bench: Bench) -> None:
    request = bench.submit(random_ids(60, 1), n=3, max_tokens=4)
    bench.loop.turn()
    bench.loop.cancel(Cancel(request, 1))
    bench.finish()
    assert sum(size for kind, size in bench.decoder.calls if kind == "prefill") == 60 + 2
    assert sorted(frame.choice for frame in bench.of(request, Ended)) == [0, 2]


def test_cancel_of_first_choice_starts_others(bench: Bench) -> None:
    request = bench.submit(random_ids(60, 1), n=2, max_tokens=4)
    bench.loop.turn()
    bench.loop.cancel(Cancel(request, 0))
    bench.finish()
    assert [frame.choice for frame in bench.of(request, Ended)] == [1]


def test_cancel_of_waiting_or_unknown_request_sends_nothing(make_bench: MakeBench) -> None:
    bench = make_bench(slots=1)
    running, waiting = bench.submit(PROMPT, max_tokens=4), bench.submit(PROMPT, max_tokens=4)
    bench.loop.turn()
    bench.loop.cancel(Cancel(waiting))
    bench.loop.cancel(Cancel(999))
    bench.loop.cancel(Cancel(running, 7))
    bench.finish()
    assert len(bench.tokens(running)) == 4
    assert not bench.of(waiting, Began, Tokens, Ended)


@pytest.mark.parametrize("error", [EngineFailed("the device is lost"), RuntimeError("a bug")], ids=["engine", "bug"])
@pytest.mark.parametrize("kind", ["prefill", "step", "verify"])
def test_failing_call_fails_its_requests_only(
    bench: Bench, kind: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    plain = bench.answer(PROMPT, max_tokens=10)
    bystander = bench.submit(random_ids(10, 2), max_tokens=30, n=2, background=True)
    victim = bench.submit(PROMPT, max_tokens=10, prediction=plain if kind == "verify" else [], owner="victim")

    def fail(called: str) -> None:
        if called == kind:
            bench.decoder.before_call = lambda kind: None
            raise error

    bench.decoder.before_call = fail
    bench.finish()
    assert [type(frame) for frame in bench.endings(victim)] == [Failed]
    assert bench.endings(victim)[0].kind == "EngineFailed"
    assert len(bench.endings(bystander)) == 2
    assert bench.answer(PROMPT, max_tokens=10, owner="victim") == plain
    assert bool(caplog.records) == isinstance(error, RuntimeError)


def test_failing_batch_fails_each_request_once(bench: Bench) -> None:
    requests = [bench.submit(random_ids(10, seed), n=2, max_tokens=20) for seed in (1, 2)]
    for _ in range(9):
        bench.loop.turn()

    def fail(kind: str) -> None:
        raise EngineFailed("the device is lost")

    bench.decoder.before_call = fail
    bench.finish()
    for request in requests:
        assert [type(frame) for frame in bench.endings(request)] == [Failed]


def test_nan_logits_fail_one_request_only(bench: Bench) -> None:
    bad, good = bench.submit(random_ids(10, 1), max_tokens=20), bench.submit(random_ids(10, 2), max_tokens=20)
    for _ in range(4):
        bench.loop.turn()
    inner = bench.decoder.inner
    step = inner.step

    def poisoned(caches: Sequence, ids: Sequence[int]) -> Logits:
        rows = step(caches, ids)
        rows[0] = np.nan
        return rows

    inner.step = poisoned  # type: ignore[method-assign]
    bench.loop.turn()
    inner.step = step  # type: ignore[method-assign]
    bench.finish()
    assert [type(frame) for frame in bench.endings(bad)] == [Failed]
    assert bench.endings(good) == [Ended(good, "length")]


def test_failing_choice_ends_whole_request_without_log(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    request = bench.submit(random_ids(10, 1), n=2, max_tokens=20)
    for _ in range(4):
        bench.loop.turn()
    step = bench.decoder.inner.step

    def poisoned(caches: Sequence, ids: Sequence[int]) -> Logits:
        assert len(ids) == 2
        return np.full_like(step(caches, ids), np.nan)

    bench.decoder.inner.step = poisoned  # type: ignore[method-assign]
    bench.finish()
    assert [type(frame) for frame in bench.endings(request)] == [Failed]
    assert not caplog.records


def test_random_cancels_and_failures_give_one_ending_each(make_bench: MakeBench) -> None:
    """Submits, cancels and device failures at random. Each request ends once or is cancelled."""
    random = np.random.default_rng(42)
    bench = make_bench(slots=3)
    cancelled: set[tuple[int, int | None]] = set()
    submitted: dict[int, int] = {}

    def sometimes_fail(kind: str) -> None:
        if random.random() < 0.03:
            raise EngineFailed("the device is lost")

    bench.decoder.before_call = sometimes_fail
    for _ in range(400):
        if random.random() < 0.15:
            n = int(random.integers(1, 4))
            ids = random_ids(int(random.integers(1, 40)), int(random.integers(5)))
            options = {"n": n, "max_tokens": int(random.integers(1, 20)), "background": bool(random.random() < 0.3)}
            options["prediction"] = random_ids(10, 1) if random.random() < 0.3 else []
            options["sampling"] = Sampling(seed=1, temperature=float(random.choice([0, 1])))
            submitted[bench.submit(ids, **options)] = n
        if submitted and random.random() < 0.05:
            request = int(random.choice(list(submitted)))
            choice = None if random.random() < 0.5 else int(random.integers(submitted[request]))
            bench.loop.cancel(Cancel(request, choice))
            cancelled.add((request, choice))
        bench.loop.turn()
    bench.finish()
    assert len(submitted) > 30
    for request, n in submitted.items():
        endings = bench.endings(request)
        failed = [frame for frame in endings if isinstance(frame, Failed)]
        ended = [frame.choice for frame in endings if isinstance(frame, Ended)]
        assert len(failed) <= 1 and len(set(ended)) == len(ended)
        may_lack = {choice for r, choice in cancelled if r == request}
        if not failed and None not in may_lack:
            assert set(range(n)) - set(ended) <= may_lack
