"""A draft model in a token loop over a real tiny model. The draft model is the same model, with errors.

On the test's clock a call of the main model takes 1 s (and 1 s more for each prompt token), one of the draft model
0.1 s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.activity import Activity
from gateway.bundles.bundle import load_bundle
from gateway.errors import EngineFailed
from gateway.generation import Grammar
from gateway.sampling import Sampling
from gateway.worker.decoders.base import DecoderSpec, KVCache, Logits
from gateway.worker.decoders.cpu import CpuDecoder
from gateway.worker.drafting.model import DraftModel
from gateway.worker.frames import Cancel, DraftLost, Ended, PassTimes, Tokens
from gateway.worker.grammar.compiler import GrammarCompiler
from tests.support.tiny import VOCABULARY
from tests.support.token_loop_fixtures import Bench, MeteredDecoder, random_ids

PROMPT = random_ids(20, 1)
SAMPLED = Sampling(temperature=1.0, seed=5)
CALL_S = 0.1


@pytest.fixture(scope="module")
def small(tiny: Path) -> Iterator[CpuDecoder]:
    decoder = CpuDecoder(load_bundle(tiny), slots=4)
    yield decoder
    decoder.close()


class ErringDecoder:
    """A decoder whose favourite token is wrong at each position with `position % wrong == 0`; 0: never."""

    def __init__(self, inner: CpuDecoder, wrong: int, vocab_size: int, context_length: int) -> None:
        self._inner, self._wrong = inner, wrong
        self.spec = DecoderSpec(vocab_size=vocab_size, context_length=context_length, prompt_width=16, device="cpu")
        self.bench: Bench | None = None
        self.calls: list[tuple[str, int]] = []
        self.is_closed = False
        self.fails = False
        self.call_s: list[float] = []  # of the next calls, the last one first

    def new_cache(self) -> KVCache:
        return self._inner.new_cache()

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        return self._called("prefill", cache, ids, self._inner.prefill)

    def step(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        return self._called("step", caches[0], ids, lambda cache, ids: self._inner.step([cache], ids)[0])[None]

    def verify(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        raise AssertionError("a draft needs only the last logits")

    def free_caches(self) -> None: ...

    def close(self) -> None:
        self.is_closed = True
        if self.fails:
            raise EngineFailed("It cannot be closed.")

    def _called(
        self, kind: str, cache: KVCache, ids: Sequence[int], call: Callable[[KVCache, Sequence[int]], Logits]
    ) -> Logits:
        assert self.bench is not None and len(ids) <= 16 and max(ids) < self.spec.vocab_size
        if self.fails:
            raise EngineFailed("It is broken.")
        self.calls.append((kind, len(ids)))
        self.bench.decoder.now += self.call_s.pop() if self.call_s else CALL_S
        logits = np.array(call(cache, ids))
        if self._wrong and cache.length % self._wrong == 0:
            logits[int(logits.argmax())] = -1.0
        return logits[: self.spec.vocab_size]


@pytest.fixture
def make(tiny_decoder: CpuDecoder, small: CpuDecoder) -> Callable[..., tuple[Bench, ErringDecoder]]:
    def make(
        wrong: int = 0, *, slots: int = 4, vocab_size: int = VOCABULARY, context_length: int = 512, **options: Any
    ) -> tuple[Bench, ErringDecoder]:
        for cache in small._caches:
            cache.length = 0
        small._new_caches = iter(small._caches)
        tiny_decoder._new_caches = iter(tiny_decoder._caches)
        metered = MeteredDecoder(tiny_decoder)
        draft = ErringDecoder(small, wrong, vocab_size, context_length)
        activity = Activity(clock=lambda: metered.now)
        model = DraftModel(
            draft, [draft.new_cache() for _ in range(4)], VOCABULARY, PassTimes(CALL_S, CALL_S), activity
        )
        draft.bench = Bench(metered, slots, activity=activity, lookup=False, draft_model=model, **options)
        return draft.bench, draft

    return make


Make = Callable[..., tuple[Bench, ErringDecoder]]


def plain(decoder: CpuDecoder, ids: Sequence[int], **options: Any) -> tuple[list[list[int]], list[Any]]:
    """The answers of all choices without drafts, and the scores."""
    decoder._new_caches = iter(decoder._caches)
    for cache in decoder._caches:
        cache.length = 0
    bench = Bench(MeteredDecoder(decoder), lookup=False)
    return answers(bench, ids, **options)


def answers(bench: Bench, ids: Sequence[int], **options: Any) -> tuple[list[list[int]], list[Any]]:
    request = bench.submit(ids, **options)
    bench.finish()
    scored = [entry for frame in bench.of(request, Tokens) if frame.choice == 0 for entry in frame.scored]
    return [bench.tokens(request, choice) for choice in range(options.get("n", 1))], scored


def drafted(bench: Bench) -> tuple[int, int]:
    """Tokens of drafts, and the right ones of them."""
    frames = [frame for frame in bench.frames if isinstance(frame, Tokens) and frame.source == "model"]
    return sum(frame.drafted for frame in frames), sum(frame.matched for frame in frames)


def has_only_its_own_errors(bench: Bench, request: int, prompt: Sequence[int], wrong: int) -> bool:
    """True if drafts were wrong only where the draft model errs: its cache has the right rows."""
    length, errors = len(prompt), 0
    *frames, _ = bench.of(request, Tokens)  # the last call can have ended within a draft
    for frame in frames:
        if frame.matched < frame.drafted:
            errors += 1
            if (length + frame.matched) % wrong:
                return False
        length += len(frame.ids)
    return errors > 0


@pytest.mark.parametrize("wrong", [0, 3, 1], ids=["right", "often_wrong", "wrong"])
@pytest.mark.parametrize(
    "options",
    [{}, {"sampling": SAMPLED}, {"n": 3, "sampling": SAMPLED, "logprobs": 2}, {"ids": [7]}],
    ids=["greedy", "sampled", "choices", "one_token_prompt"],
)
def test_answer_is_that_without_drafts(
    make: Make, tiny_decoder: CpuDecoder, wrong: int, options: dict[str, Any]
) -> None:
    ids = options.get("ids", PROMPT)
    options = {"max_tokens": 40} | {key: value for key, value in options.items() if key != "ids"}
    expected = plain(tiny_decoder, ids, **options)
    bench, _ = make(wrong)
    assert answers(bench, ids, **options) == expected
    if options.get("n", 1) == 1 and wrong != 1:
        assert drafted(bench)[0] > 0


def test_right_drafts_save_calls_and_their_time_counts(make: Make) -> None:
    bench, draft = make()
    request = bench.submit(PROMPT, max_tokens=60)
    bench.finish()
    count, right = drafted(bench)
    assert count == right > 35
    calls = [kind for kind, _ in bench.decoder.calls if kind != "prefill"]
    assert len(calls) < 25
    device_s = sum(frame.device_s for frame in bench.of(request, Tokens))
    assert device_s == pytest.approx(len(calls) + CALL_S * len(draft.calls))


def test_wrong_drafts_lose_a_limited_time(make: Make) -> None:
    """32 steps of credit in all, and a hundredth of the time."""
    bench, _ = make(1)
    for seed in range(4):
        bench.answer(random_ids(10, seed), max_tokens=400)
    prompts = sum(1 + size for kind, size in bench.decoder.calls if kind == "prefill")
    steps = 4 * 399
    assert drafted(bench)[1] < 5
    assert bench.decoder.now - prompts < steps * 1.012 + 32


def test_call_during_which_the_machine_slept_costs_no_later_draft(make: Make) -> None:
    bench, draft = make()
    bench.answer(PROMPT, max_tokens=30)
    draft.call_s = [3600.0]
    bench.answer(random_ids(10, 2), max_tokens=60)
    before, _ = drafted(bench)
    bench.answer(random_ids(10, 3), max_tokens=60)
    assert drafted(bench)[0] - before > 30


def test_stop_token_within_a_draft(make: Make, tiny_decoder: CpuDecoder) -> None:
    ((answer,), _) = plain(tiny_decoder, PROMPT, max_tokens=30)
    stop = answer[17]
    bench, _ = make()
    request = bench.submit(PROMPT, max_tokens=30, stop_ids=[stop])
    bench.finish()
    assert bench.tokens(request) == answer[: answer.index(stop)]
    assert bench.endings(request) == [Ended(request, "stop", counted_stop=1)]


def test_grammar_decides_over_a_draft(make: Make, tiny_decoder: CpuDecoder, grammars: GrammarCompiler) -> None:
    grammar = Grammar(kind="regex", source="[a-z]{30}")
    options: dict[str, Any] = {"make_constraint": lambda grammar: partial(grammars.compile(grammar).constraint, "p")}
    bench, _ = make(**options)
    with_draft = answers(bench, PROMPT, max_tokens=40, grammar=grammar, sampling=SAMPLED)
    assert drafted(bench)[0] > 0
    tiny_decoder._new_caches = iter(tiny_decoder._caches)
    without = Bench(MeteredDecoder(tiny_decoder), lookup=False, **options)
    assert with_draft == answers(without, PROMPT, max_tokens=40, grammar=grammar, sampling=SAMPLED)


def test_second_turn_reuses_rows_of_both_models(make: Make, tiny_decoder: CpuDecoder) -> None:
    """Rows of rejected tokens are in neither cache."""
    bench, draft = make(4)
    first = bench.answer(PROMPT, max_tokens=30)
    turn = [*PROMPT, *first, *random_ids(6, 2)]
    draft.calls.clear()
    second = bench.submit(turn, max_tokens=60)
    bench.finish()
    assert max(size for _, size in draft.calls) < 16
    assert has_only_its_own_errors(bench, second, turn, 4)
    assert [bench.tokens(second)] == plain(tiny_decoder, turn, max_tokens=60)[0]


def test_cancel_between_drafts_leaves_no_wrong_rows(make: Make, tiny_decoder: CpuDecoder) -> None:
    bench, _ = make(5)
    request = bench.submit(PROMPT, max_tokens=200)
    while len(bench.tokens(request)) < 30:
        bench.loop.turn()
    begun = bench.tokens(request)
    bench.loop.cancel(Cancel(request))
    assert bench.loop.is_idle
    turn = [*PROMPT, *begun]
    again = bench.submit(turn, max_tokens=60)
    bench.finish()
    assert has_only_its_own_errors(bench, again, turn, 5)
    assert [bench.tokens(again)] == plain(tiny_decoder, turn, max_tokens=60)[0]


def test_failed_verification_leaves_no_wrong_rows_for_others(make: Make, tiny_decoder: CpuDecoder) -> None:
    bench, _ = make()
    fail = iter([False, True])

    def before_call(kind: str) -> None:
        if kind == "verify" and next(fail, False):
            raise EngineFailed("It is broken.")

    bench.decoder.before_call = before_call
    request = bench.submit(PROMPT, max_tokens=200)
    bench.finish()
    assert bench.endings(request)[0].kind == "DeviceFailed"
    turn = [*PROMPT, *bench.tokens(request)]
    later = bench.submit(turn, max_tokens=60)
    bench.finish()
    frames = bench.of(later, Tokens)
    assert sum(frame.drafted for frame in frames) == sum(frame.matched for frame in frames) > 30
    assert [bench.tokens(later)] == plain(tiny_decoder, turn, max_tokens=60)[0]


def test_streams_share_steps_where_these_are_cheaper(make: Make, tiny_decoder: CpuDecoder) -> None:
    """A step of four sequences costs as much as a single one, so four streams draft nothing once that is measured."""
    prompts = [random_ids(12, seed) for seed in range(4)]
    expected = [plain(tiny_decoder, prompt, max_tokens=60)[0][0] for prompt in prompts]
    bench, _ = make(3)
    requests = [bench.submit(prompt, max_tokens=60) for prompt in prompts]
    bench.finish()
    assert [bench.tokens(request) for request in requests] == expected
    assert bench.decoder.calls.count(("step", 4)) > 40
    assert drafted(bench)[0] < 40


def test_long_prompt_is_computed_in_chunks_between_steps(make: Make, tiny_decoder: CpuDecoder) -> None:
    prompt = random_ids(100, 3)
    bench, draft = make()
    answer = bench.answer(prompt, max_tokens=60)
    assert draft.calls[:6] == [("prefill", 16)] * 6
    assert drafted(bench)[1] > 30
    assert [answer] == plain(tiny_decoder, prompt, max_tokens=60)[0]


def test_short_answer_is_not_worth_the_prompt(make: Make) -> None:
    bench, draft = make()
    bench.answer(random_ids(200, 3), max_tokens=2)
    assert not draft.calls


def test_draft_model_with_a_shorter_context_helps_as_far_as_it_reaches(make: Make, tiny_decoder: CpuDecoder) -> None:
    bench, draft = make(context_length=50)
    assert [bench.answer(PROMPT, max_tokens=60)] == plain(tiny_decoder, PROMPT, max_tokens=60)[0]
    assert len(PROMPT) + 10 < sum(size for _, size in draft.calls) < 80


def test_tokens_that_the_draft_model_lacks(make: Make, tiny_decoder: CpuDecoder) -> None:
    ((answer,), _) = plain(tiny_decoder, PROMPT, max_tokens=60)
    size = max(*PROMPT, *answer[:10]) + 1
    bench, _ = make(vocab_size=size)
    assert bench.answer(PROMPT, max_tokens=60) == answer


def test_failed_draft_model_is_reported_once_and_not_needed(make: Make, tiny_decoder: CpuDecoder) -> None:
    bench, draft = make()
    request = bench.submit(PROMPT, max_tokens=60)
    while len(bench.tokens(request)) < 20:
        bench.loop.turn()
    draft.fails = True
    bench.finish()
    assert [bench.tokens(request)] == plain(tiny_decoder, PROMPT, max_tokens=60)[0]
    assert [frame for frame in bench.frames if isinstance(frame, DraftLost)] == [DraftLost("It is broken.")]
    assert draft.is_closed


def test_free_cache_drops_the_rows_of_the_draft_model(make: Make) -> None:
    bench, draft = make()
    bench.answer(PROMPT, max_tokens=30)
    bench.loop.free_cache()
    draft.calls.clear()
    bench.answer(PROMPT, max_tokens=30)
    assert sum(size for _, size in draft.calls) > len(PROMPT)
