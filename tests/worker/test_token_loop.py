"""The token loop over a real tiny model.

The clock is the test's: a device call takes 1 s, and 1 s more for each prompt token.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import pytest

from gateway.errors import EngineFailed
from gateway.sampling import Sampling
from gateway.worker.decoders.cpu import CpuDecoder
from gateway.worker.frames import Began, Ended, Prefilled, Tokens
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


def test_idle_loop_frees_the_memory_of_all_rows_and_answers_as_before(
    make_bench: MakeBench, tiny_decoder: CpuDecoder
) -> None:
    bench = make_bench(slots=3)
    answer = bench.answer(PROMPT)
    again = bench.submit(PROMPT)
    bench.loop.free_cache()  # a request runs
    bench.finish()
    assert (bench.tokens(again), bench.cached(again)) == (answer, len(PROMPT) - 2)
    buffers = [weakref.ref(buffer) for buffer in tiny_decoder._buffers.buffers]
    bench.loop.free_cache()
    assert [buffer() for buffer in buffers] == [None] * len(buffers)
    later = bench.submit(PROMPT)
    bench.finish()
    assert (bench.tokens(later), bench.cached(later)) == (answer, 0)


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


def test_prefilled_shows_the_device_time_of_all_requests_since_it_came(bench: Bench) -> None:
    """Two prompts of two chunks each take turns. The clock also passes between the calls, which is no device time."""
    first, second = bench.submit(random_ids(20, 1)), bench.submit(random_ids(20, 2), owner="other")
    while not bench.loop.is_idle:
        bench.loop.turn()
        bench.decoder.now += 100.0
    chunks = [sum(frame.device_s for frame in bench.of(request, Prefilled)) for request in (first, second)]
    shared = [bench.of(request, Prefilled)[-1].shared_s for request in (first, second)]
    assert max(shared) == sum(chunks) and min(shared) > max(chunks)


# -- several prompts in a call -----------------------------------------------------------------------------------------


@pytest.fixture
def sharing(make_bench: MakeBench) -> Bench:
    """A call computes at most 64 rows of several prompts. A first request has left the rows of PROMPT."""
    bench = make_bench(prompt_width=64, shared_prompt_rows=64)
    bench.answer(PROMPT, max_tokens=1)
    bench.decoder.calls.clear()
    return bench


def _calls_for_prompts(bench: Bench, *missing: int) -> list[tuple[str, int]]:
    """The calls for prompts that start with PROMPT and lack these numbers of tokens. Checks their answers."""
    prompts = [PROMPT[: len(PROMPT) - 2] + random_ids(count, 50 + index) for index, count in enumerate(missing)]
    requests = [bench.submit(prompt, max_tokens=6) for prompt in prompts]
    bench.finish()
    calls = [call for call in bench.decoder.calls if call[0].startswith("prefill")]
    answers = [bench.tokens(request) for request in requests]
    assert answers == [bench.answer(prompt, max_tokens=6, owner="alone") for prompt in prompts]
    return calls


@pytest.mark.parametrize(
    ("missing", "calls"),
    [
        ((16, 16, 16, 16), [("prefill of 4", 16)]),
        ((7, 8, 6), [("prefill of 3", 8)]),  # the shorter ones compute one or two rows again
        ((20, 21, 20, 21), [("prefill of 3", 21), ("prefill", 21)]),  # four have more rows than a call
        ((5, 12), [("prefill", 5), ("prefill", 12)]),  # too many rows again
        ((40, 40), [("prefill", 40), ("prefill", 40)]),
        ((200, 9, 9), [("prefill", 64), ("prefill of 2", 9), ("prefill", 64), ("prefill", 64), ("prefill", 8)]),
    ],
    ids=str,
)
def test_short_prompts_share_a_call(sharing: Bench, missing: tuple[int, ...], calls: list[tuple[str, int]]) -> None:
    assert _calls_for_prompts(sharing, *missing) == calls


def test_shared_call_is_charged_by_the_tokens_of_each_prompt(sharing: Bench) -> None:
    requests = [sharing.submit(PROMPT[:18] + random_ids(count, count), max_tokens=2) for count in (6, 7, 7)]
    began = sharing.decoder.now
    sharing.loop.turn()
    seconds = sharing.decoder.now - began
    charged = [frame.device_s for request in requests for frame in sharing.of(request, Prefilled)]
    assert charged == pytest.approx([seconds * count / 20 for count in (6, 7, 7)])
    sharing.finish()


def test_prompts_without_a_common_prefix_share_a_call_if_they_have_the_same_length(sharing: Bench) -> None:
    for seed in range(3):
        sharing.submit(random_ids(12, seed), owner="other", max_tokens=1)
    sharing.submit(random_ids(11, 9), owner="other", max_tokens=1)  # it has no rows before that it could compute again
    sharing.finish()
    assert sharing.decoder.calls == [("prefill of 3", 12), ("prefill", 11)]


def test_prompt_whose_tokens_are_scored_shares_no_call(sharing: Bench) -> None:
    for is_scored in (True, False):
        sharing.submit(PROMPT, max_tokens=1, prompt_logprobs=is_scored, owner="other")
    sharing.finish()
    assert sharing.decoder.calls == [("verify", 20), ("prefill", 20)]


def test_failed_shared_call_fails_its_requests_and_no_other(sharing: Bench) -> None:
    def fail(kind: str) -> None:
        if kind == "prefill of 2":
            raise EngineFailed("The device is lost.")

    sharing.decoder.before_call = fail
    together = [sharing.submit(random_ids(12, seed), owner="other") for seed in range(2)]
    other = sharing.submit(random_ids(40, 5), owner="other", max_tokens=2)
    sharing.finish()
    assert [sharing.endings(request)[0].kind for request in together] == ["DeviceFailed"] * 2
    assert len(sharing.tokens(other)) == 2
