"""The loop over a real tiny model. The clock is the test's: a call takes 1 s, and 1 s more per token of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from gateway.errors import EngineFailed, InvalidRequest
from gateway.generation import Grammar
from gateway.sampling import Sampling
from gateway.worker import sampling
from gateway.worker.decoders.base import Logits
from gateway.worker.decoders.cpu import CpuDecoder
from gateway.worker.frames import Began, Cancel, Ended, Failed, Prefilled, Scored, Tokens
from tests.support.tiny import VOCABULARY
from tests.support.token_loop_fixtures import GREEDY, Bench, random_ids

MakeBench = Callable[..., Bench]
PROMPT = random_ids(20, 1)


def plain_greedy(decoder: CpuDecoder, ids: Sequence[int], count: int) -> list[int]:
    """The obvious loop: prefill once, then step."""
    cache = decoder.new_cache()
    row, answer = decoder.prefill(cache, list(ids)), []
    while len(answer) < count:
        answer.append(int(row.argmax()))
        row = decoder.step([cache], answer[-1:])[0]
    return answer


# -- one request -------------------------------------------------------------------------------------------------------


def test_greedy_answer_is_that_of_the_obvious_loop(make_bench: MakeBench, tiny_decoder: CpuDecoder) -> None:
    expected = plain_greedy(tiny_decoder, PROMPT, 30)
    bench = make_bench(slots=3)
    request = bench.submit(PROMPT, max_tokens=30)
    bench.finish()
    assert bench.tokens(request) == expected


def test_what_the_parent_hears(bench: Bench) -> None:
    request = bench.submit(PROMPT, max_tokens=3)
    bench.finish()
    kinds = [type(frame) for frame in bench.frames]
    assert kinds == [Began, Prefilled, Prefilled, Tokens, Tokens, Tokens, Ended]
    assert bench.endings(request) == [Ended(request, "length")]
    assert [frame.device_s for frame in bench.of(request, Prefilled)] == [17, 5]
    assert [frame.device_s for frame in bench.of(request, Tokens)] == [0, 1, 1]


def test_a_stop_token_ends_and_is_withheld(bench: Bench) -> None:
    answer = bench.answer(PROMPT, max_tokens=12)
    stop = answer[5]
    request = bench.submit(PROMPT, max_tokens=12, stop_ids=[stop])
    bench.finish()
    assert bench.tokens(request) == answer[: answer.index(stop)]
    assert bench.endings(request) == [Ended(request, "stop", counted_stop=1)]


def test_min_tokens_holds_the_stop_back(bench: Bench) -> None:
    answer = bench.answer(PROMPT, max_tokens=12)
    request = bench.submit(PROMPT, max_tokens=12, stop_ids=[answer[1]], min_tokens=6)
    bench.finish()
    assert len(bench.tokens(request)) >= 6
    assert answer[1] not in bench.tokens(request)


def test_the_context_is_the_limit(make_bench: MakeBench) -> None:
    bench = make_bench(context_length=32)
    request = bench.submit(PROMPT, max_tokens=100)
    bench.finish()
    assert len(bench.tokens(request)) == 12
    assert bench.endings(request) == [Ended(request, "length")]
    full = bench.submit(random_ids(32, 2))
    assert [frame.kind for frame in bench.endings(full)] == ["ContextLengthExceeded"]


def test_no_tokens_asked_for_none_given(bench: Bench) -> None:
    request = bench.submit(PROMPT, max_tokens=0, prompt_logprobs=True)
    bench.finish()
    assert bench.tokens(request) == []
    assert bench.endings(request) == [Ended(request, "length")]


@pytest.mark.parametrize(
    ("ids", "options", "param"),
    [
        ([], {}, "prompt"),
        ([1, VOCABULARY], {}, "prompt"),
        ([-1], {}, "prompt"),
        ([1], {"prediction": [VOCABULARY]}, "prediction"),
        ([1], {"sampling": Sampling(logit_bias={VOCABULARY: 1.0})}, "logit_bias"),
    ],
)
def test_what_the_model_cannot_take_is_refused(bench: Bench, ids: list[int], options: dict, param: str) -> None:
    request = bench.submit(ids, **options)
    (failed,) = bench.endings(request)
    assert (failed.kind, failed.param) == ("InvalidRequest", param)
    assert bench.loop.is_idle and not bench.decoder.calls


def test_one_token_prompt(bench: Bench, tiny_decoder: CpuDecoder) -> None:
    request = bench.submit([7], max_tokens=4, n=2)
    bench.finish()
    assert bench.tokens(request, 0) == bench.tokens(request, 1)
    assert len(bench.tokens(request)) == 4


def test_one_token_prompts_begin_before_they_answer(bench: Bench) -> None:
    requests = [bench.submit([token], max_tokens=3) for token in (7, 8, 9)]
    bench.finish()
    for request in requests:
        assert [type(frame) for frame in bench.frames if frame.id == request] == [Began, Tokens, Tokens, Tokens, Ended]


# -- log-probabilities -------------------------------------------------------------------------------------------------


def test_logprobs_are_those_of_the_raw_logits(make_bench: MakeBench, tiny_decoder: CpuDecoder) -> None:
    cache = tiny_decoder.new_cache()
    bench = make_bench(slots=3)
    request = bench.submit(
        PROMPT,
        max_tokens=5,
        logprobs=3,
        sampling=Sampling(seed=1, temperature=1.7, logit_bias={5: 20.0}, repetition_penalty=1.5),
    )
    bench.finish()
    scored = [entry for frame in bench.of(request, Tokens) for entry in frame.scored]
    tokens = bench.tokens(request)
    rows = tiny_decoder.verify(cache, PROMPT + tokens)[len(PROMPT) - 1 : -1]
    for token, entry, row in zip(tokens, scored, rows, strict=True):
        expected = sampling.score(row, token, 3)
        assert (entry.id, entry.top_ids) == (token, expected.top_ids)
        assert entry.logprob == pytest.approx(expected.logprob, abs=1e-3)


def test_prompt_logprobs_of_every_token_but_the_first(make_bench: MakeBench, tiny_decoder: CpuDecoder) -> None:
    cache = tiny_decoder.new_cache()
    rows = tiny_decoder.verify(cache, PROMPT).copy()
    bench = make_bench(slots=3)
    bench.answer(PROMPT)  # rows to take over, which would have no logits
    request = bench.submit(PROMPT, max_tokens=1, logprobs=2, prompt_logprobs=True)
    bench.finish()
    scored: list[Scored] = [entry for frame in bench.of(request, Prefilled) for entry in frame.prompt_logprobs]
    assert bench.cached(request) == 0
    assert [entry.id for entry in scored] == PROMPT[1:]
    for row, entry in zip(rows, scored, strict=False):
        assert entry == sampling.score(row, entry.id, 2)


# -- several requests --------------------------------------------------------------------------------------------------


def test_answers_are_the_same_alone_and_together(make_bench: MakeBench) -> None:
    bench = make_bench()
    prompts = [random_ids(size, size) for size in (3, 20, 50, 31)]
    alone = [bench.answer(prompt, max_tokens=70, owner=f"alone {i}") for i, prompt in enumerate(prompts)]
    requests = [bench.submit(prompt, max_tokens=70, owner=f"together {i}") for i, prompt in enumerate(prompts)]
    bench.finish()
    assert [bench.tokens(request) for request in requests] == alone
    assert ("step", 4) in bench.decoder.calls


def test_a_short_answer_is_not_stuck_behind_a_long_one(bench: Bench) -> None:
    long = bench.submit(PROMPT, max_tokens=200)
    for _ in range(20):
        bench.loop.turn()
    asked_at = bench.decoder.now
    short = bench.submit(random_ids(10, 2), max_tokens=5)
    bench.finish()
    assert bench.when(short, Ended)[0] - asked_at < 30
    assert bench.when(long, Ended)[0] > asked_at + 100


def test_a_long_prompt_does_not_stop_a_stream(bench: Bench) -> None:
    stream = bench.submit(PROMPT, max_tokens=300)
    for _ in range(20):
        bench.loop.turn()
    asked_at = bench.decoder.now
    long = bench.submit(random_ids(200, 3), max_tokens=2)
    bench.finish()
    first = bench.when(long)[0]
    during = [t for t in bench.when(stream) if asked_at <= t <= first]
    gaps = np.diff([asked_at, *during])
    assert max(gaps) <= 18  # one chunk of 16 tokens and a step
    device_s = first - asked_at
    assert 0.4 * device_s < len(during) < 0.6 * device_s  # steps take a second each: half of the device
    assert device_s < 2.3 * 213


def test_a_short_prompt_overtakes_a_long_one(bench: Bench) -> None:
    long = bench.submit(random_ids(300, 4), max_tokens=2)
    bench.loop.turn()
    short = bench.submit(random_ids(20, 5), max_tokens=2)
    bench.finish()
    assert bench.when(short, Ended)[0] < bench.when(long)[0]


def test_more_requests_than_slots_wait_in_order(make_bench: MakeBench) -> None:
    bench = make_bench(slots=2)
    requests = [bench.submit(random_ids(10, seed), max_tokens=5) for seed in range(6)]
    bench.finish()
    started = [bench.when(request, Began)[0] for request in requests]
    assert started == sorted(started)
    assert all(bench.endings(request) == [Ended(request, "length")] for request in requests)
    assert max(size for kind, size in bench.decoder.calls if kind == "step") == 2


# -- in the background -------------------------------------------------------------------------------------------------


def test_the_background_yields_at_the_next_step(bench: Bench) -> None:
    background = bench.submit(random_ids(10, 1), max_tokens=40, background=True)
    for _ in range(5):
        bench.loop.turn()
    asked_at = bench.decoder.now
    foreground = bench.submit(random_ids(10, 2), max_tokens=10)
    bench.finish()
    done = bench.when(foreground, Ended)[0]
    assert done - asked_at == 11 + 9
    assert not [t for t in bench.when(background) if asked_at < t <= done]
    assert len(bench.tokens(background)) == 40


def test_the_background_gives_up_its_slot_and_goes_on_later(make_bench: MakeBench) -> None:
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


def test_the_background_waits_while_others_run(bench: Bench) -> None:
    foreground = bench.submit(PROMPT, max_tokens=10)
    background = bench.submit(random_ids(10, 2), max_tokens=3, background=True)
    bench.finish()
    assert bench.when(background, Began)[0] >= bench.when(foreground, Ended)[0]


# -- the prefix cache --------------------------------------------------------------------------------------------------


def test_the_second_turn_costs_the_new_tokens_only(bench: Bench) -> None:
    first = bench.answer(PROMPT, max_tokens=10)
    again = bench.submit(PROMPT + first + random_ids(8, 9), max_tokens=10)
    bench.finish()
    assert bench.cached(again) == len(PROMPT) + 9  # the last token of an answer is never computed
    assert [size for kind, size in bench.decoder.calls if kind == "prefill"] == [16, 4, 9]


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_the_cache_changes_no_answer(make_bench: MakeBench, prefix_cache: bool) -> None:
    bench = make_bench(prefix_cache=prefix_cache)
    system = random_ids(30, 7)
    prompts = [system + random_ids(5, seed) for seed in range(6)]
    answers = [bench.answer(prompt, max_tokens=12) for prompt in prompts]
    cached = [bench.cached(request) for request in range(1, 7)]
    assert cached == ([0, 30, 30, 30, 30, 30] if prefix_cache else [0] * 6)
    assert answers == [make_answer(bench, prompt) for prompt in prompts]


def make_answer(bench: Bench, prompt: list[int]) -> list[int]:
    return bench.answer(prompt, max_tokens=12, owner=f"someone new {bench.decoder.now}")


def test_owners_share_no_prefix(bench: Bench) -> None:
    bench.answer(PROMPT, owner="alice")
    other = bench.submit(PROMPT, owner="bob")
    bench.finish()
    assert bench.cached(other) == 0


def test_a_running_request_lends_its_prefix(bench: Bench) -> None:
    system = random_ids(30, 7)
    bench.submit([*system, 5, 6], max_tokens=50)
    for _ in range(5):
        bench.loop.turn()
    second = bench.submit([*system, 8, 9], max_tokens=5)
    bench.finish()
    assert bench.cached(second) == 30


# -- several choices ---------------------------------------------------------------------------------------------------


def test_choices_share_one_prompt(make_bench: MakeBench) -> None:
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


def test_same_seed_same_choices(make_bench: MakeBench) -> None:
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
    settings |= {"other": Sampling(temperature=1.0), "too": Sampling(seed=5, temperature=1.0)}
    repeated = PROMPT[:6] * 3  # invites drafts
    requests = {name: bench.submit(repeated, max_tokens=30, sampling=sampling) for name, sampling in settings.items()}
    bench.finish()
    assert all(len(bench.tokens(request)) == 30 for request in requests.values())
    widest = max(size for kind, size in bench.decoder.calls if kind == "step")
    assert widest == (4 if is_batch_invariant else 2)
    steps = [frame.device_s for name in ("seeded", "too") for frame in bench.of(requests[name], Tokens)]
    assert is_batch_invariant or steps == [0, *[1] * 29] * 2


def test_a_seed_does_not_keep_a_prediction_from_being_checked(make_bench: MakeBench) -> None:
    bench = make_bench(is_batch_invariant=False)
    settings = Sampling(seed=4, temperature=1.0)
    plain = bench.answer(PROMPT, max_tokens=20, sampling=settings)
    assert bench.answer(PROMPT, max_tokens=20, sampling=settings, prediction=plain) == plain
    assert "verify" in {kind for kind, _ in bench.decoder.calls}


# -- predictions -------------------------------------------------------------------------------------------------------


def with_prediction(bench: Bench, prediction: list[int], **options: object) -> tuple[list[int], int, int, int]:
    """The answer, accepted and rejected tokens, and device calls after the prompt."""
    before = len(bench.decoder.calls)
    request = bench.submit(PROMPT, prediction=prediction, max_tokens=40, owner=str(before), **options)
    bench.finish()
    frames = bench.of(request, Tokens)
    calls = sum(kind != "prefill" for kind, _ in bench.decoder.calls[before:])
    return bench.tokens(request), sum(f.accepted for f in frames), sum(f.rejected for f in frames), calls


SAMPLED = Sampling(seed=3, temperature=1.0, top_p=0.95, frequency_penalty=0.5)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_right_prediction_is_faster_and_changes_nothing(bench: Bench, settings: Sampling) -> None:
    plain = bench.answer(PROMPT, max_tokens=40, sampling=settings)
    answer, accepted, rejected, calls = with_prediction(bench, plain[1:], sampling=settings)
    assert answer == plain
    assert rejected == 0
    assert calls <= 8
    assert accepted == 39 - calls


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_an_edited_prediction_is_followed_past_the_edit(bench: Bench, settings: Sampling) -> None:
    plain = bench.answer(PROMPT, max_tokens=40, sampling=settings)
    edited = [*plain[:10], 3, 3, *plain[12:25], *plain[28:]]
    answer, accepted, rejected, calls = with_prediction(bench, edited, sampling=settings)
    assert answer == plain
    assert accepted > 10 and rejected > 0
    assert calls < 30


def test_a_wrong_prediction_changes_nothing(bench: Bench) -> None:
    plain = bench.answer(PROMPT, max_tokens=40)
    answer, accepted, rejected, _ = with_prediction(bench, random_ids(30, 77))
    assert answer == plain
    assert accepted + rejected < 30


def test_a_stop_token_inside_a_draft_ends_the_answer(bench: Bench) -> None:
    plain = bench.answer(PROMPT, max_tokens=40)
    stop = plain[20]
    expected = plain[: plain.index(stop)]
    request = bench.submit(PROMPT, prediction=plain, max_tokens=40, stop_ids=[stop])
    bench.finish()
    assert bench.tokens(request) == expected
    after = bench.submit(PROMPT + expected + [9, 8], max_tokens=5)
    bench.finish()
    assert bench.tokens(after) == bench.answer(PROMPT + expected + [9, 8], max_tokens=5, owner="fresh")


def test_a_draft_never_passes_the_limits(make_bench: MakeBench) -> None:
    bench = make_bench(context_length=40)
    plain = bench.answer(PROMPT, max_tokens=100)
    request = bench.submit(PROMPT, prediction=plain * 3, max_tokens=100, owner="other")
    bench.finish()
    assert bench.tokens(request) == plain
    assert len(plain) == 20


# -- grammars ----------------------------------------------------------------------------------------------------------


class Only:
    """Allows the tokens of a fixed answer, then nothing; may say so in advance."""

    end_ids: frozenset[int] = frozenset()

    def __init__(self, answer: list[int], says_so: bool) -> None:
        self.rest = list(answer)
        self.says_so = says_so

    def restrict(self, logits: Logits) -> None:
        value = logits[self.rest[0]]
        logits[:] = -np.inf
        logits[self.rest[0]] = value

    def accept(self, token: int) -> None:
        assert token == self.rest.pop(0)

    def forced(self) -> list[int]:
        return self.rest if self.says_so else []

    @property
    def is_stopped(self) -> bool:
        return not self.rest


@pytest.mark.parametrize(("says_so", "calls"), [(False, 11), (True, 1)])
def test_a_constraint_decides(make_bench: MakeBench, says_so: bool, calls: int) -> None:
    answer = random_ids(12, 8)
    bench = make_bench(make_constraint=lambda grammar: Only(answer, says_so))
    request = bench.submit(PROMPT, max_tokens=40, grammar=Grammar(kind="regex", source="x"), sampling=Sampling(seed=1))
    bench.finish()
    assert bench.tokens(request) == answer
    assert bench.endings(request) == [Ended(request, "stop")]
    assert sum(kind != "prefill" for kind, _ in bench.decoder.calls) == calls
    assert not any(frame.accepted or frame.rejected for frame in bench.of(request, Tokens))


def test_a_grammar_that_does_not_compile_is_refused(make_bench: MakeBench) -> None:
    def refuse(grammar: Grammar) -> Only:
        raise InvalidRequest("no such thing", param="response_format")

    bench = make_bench(make_constraint=refuse)
    request = bench.submit(PROMPT, grammar=Grammar(kind="regex", source="("))
    assert bench.endings(request) == [Failed(request, "InvalidRequest", "no such thing", "response_format")]


def test_a_constraint_that_allows_nothing_fails_its_request_alone(make_bench: MakeBench) -> None:
    class Nothing(Only):
        def restrict(self, logits: Logits) -> None:
            logits[:] = -np.inf

    bench = make_bench(make_constraint=lambda grammar: Nothing([1], False))
    bad = bench.submit(PROMPT, grammar=Grammar(kind="regex", source="x"))
    good = bench.submit(random_ids(10, 2))
    bench.finish()
    assert [frame.kind for frame in bench.endings(bad)] == ["EngineFailed"]
    assert bench.endings(good) == [Ended(good, "length")]


# -- cancels and failures ----------------------------------------------------------------------------------------------


def test_a_cancel_is_seen_before_the_next_call(bench: Bench) -> None:
    request = bench.submit(PROMPT, max_tokens=100)
    for _ in range(6):
        bench.loop.turn()
    calls, frames = len(bench.decoder.calls), len(bench.frames)
    bench.loop.cancel(Cancel(request))
    bench.loop.turn()
    assert bench.loop.is_idle
    assert (len(bench.decoder.calls), len(bench.frames)) == (calls, frames)


def test_a_cancelled_choice_leaves_the_others(bench: Bench) -> None:
    request = bench.submit(PROMPT, n=3, max_tokens=10)
    for _ in range(5):
        bench.loop.turn()
    bench.loop.cancel(Cancel(request, 1))
    bench.finish()
    assert sorted(frame.choice for frame in bench.of(request, Ended)) == [0, 2]


def test_cancelling_a_choice_that_has_not_begun_starts_no_other_early(bench: Bench) -> None:
    request = bench.submit(random_ids(60, 1), n=3, max_tokens=4)
    bench.loop.turn()
    bench.loop.cancel(Cancel(request, 1))
    bench.finish()
    assert sum(size for kind, size in bench.decoder.calls if kind == "prefill") == 60 + 2
    assert sorted(frame.choice for frame in bench.of(request, Ended)) == [0, 2]


def test_a_cancelled_first_choice_lets_the_others_begin(bench: Bench) -> None:
    request = bench.submit(random_ids(60, 1), n=2, max_tokens=4)
    bench.loop.turn()
    bench.loop.cancel(Cancel(request, 0))
    bench.finish()
    assert [frame.choice for frame in bench.of(request, Ended)] == [1]


def test_cancelling_what_waits_or_is_unknown(make_bench: MakeBench) -> None:
    bench = make_bench(slots=1)
    running, waiting = bench.submit(PROMPT, max_tokens=4), bench.submit(PROMPT, max_tokens=4)
    bench.loop.turn()
    bench.loop.cancel(Cancel(waiting))
    bench.loop.cancel(Cancel(999))
    bench.loop.cancel(Cancel(running, 7))
    bench.finish()
    assert len(bench.tokens(running)) == 4
    assert not bench.of(waiting, Began, Tokens, Ended)


@pytest.mark.parametrize("error", [EngineFailed("the device is gone"), RuntimeError("a bug")])
@pytest.mark.parametrize("kind", ["prefill", "step", "verify"])
def test_a_failing_call_fails_those_concerned_and_the_loop_goes_on(
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


def test_a_failing_batch_fails_each_of_its_requests_once(bench: Bench) -> None:
    requests = [bench.submit(random_ids(10, seed), n=2, max_tokens=20) for seed in (1, 2)]
    for _ in range(9):
        bench.loop.turn()

    def fail(kind: str) -> None:
        raise EngineFailed("the device is gone")

    bench.decoder.before_call = fail
    bench.finish()
    for request in requests:
        assert [type(frame) for frame in bench.endings(request)] == [Failed]


def test_logits_that_are_no_numbers_fail_one_request(bench: Bench) -> None:
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


def test_a_bad_choice_takes_its_siblings_along_quietly(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
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


def test_every_request_has_one_ending_whatever_happens(make_bench: MakeBench) -> None:
    """Random submits, cancels and device failures; each request ends once, or was cancelled."""
    random = np.random.default_rng(42)
    bench = make_bench(slots=3)
    cancelled: set[tuple[int, int | None]] = set()
    submitted: dict[int, int] = {}

    def sometimes_fail(kind: str) -> None:
        if random.random() < 0.03:
            raise EngineFailed("the device is gone")

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
