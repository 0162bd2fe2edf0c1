"""Cancelled requests and failing device calls in a token loop over a real tiny model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from gateway.errors import EngineFailed
from gateway.generation import Grammar
from gateway.sampling import Sampling
from gateway.worker.decoders.base import Logits
from gateway.worker.frames import Began, Cancel, Ended, Failed, Tokens
from tests.support.token_loop_fixtures import Bench, random_ids

MakeBench = Callable[..., Bench]
PROMPT = random_ids(20, 1)


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
    assert bench.endings(victim)[0].kind == "DeviceFailed"
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


class Broken:
    """A constraint that fails after some tokens, as a grammar can in the middle of an answer."""

    end_ids: frozenset[int] = frozenset()
    is_stopped = False

    def __init__(self, method: str, tokens: int) -> None:
        self._method, self._left = method, tokens

    def restrict(self, logits: Logits) -> None:
        self._count("restrict")

    def accept(self, token: int) -> None:
        self._count("accept")

    def forced(self) -> Sequence[int]:
        self._count("forced")
        return ()

    def _count(self, method: str) -> None:
        if method == self._method:
            self._left -= 1
            if self._left < 0:
                raise KeyError(method)


@pytest.mark.parametrize("method", ["restrict", "accept", "forced"])
@pytest.mark.parametrize("tokens", [0, 3])
def test_grammar_that_fails_ends_its_request_only_and_blames_nothing(
    make_bench: MakeBench, method: str, tokens: int, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(make_constraint=lambda grammar: lambda: Broken(method, tokens))
    good = bench.submit(random_ids(10, 1), max_tokens=12), bench.submit(random_ids(10, 2), max_tokens=12)
    grammar = Grammar(kind="regex", source="x")
    bad = [bench.submit(PROMPT, max_tokens=12, n=n, grammar=grammar) for n in (1, 3)]
    bench.finish()
    for request in good:
        assert bench.endings(request) == [Ended(request, "length")]
    for request in bad:
        assert [frame.kind for frame in bench.endings(request)] == ["GatewayError"]
    assert {record.exc_info[0] for record in caplog.records if record.exc_info} == {KeyError}


@pytest.mark.parametrize("is_first", [True, False])
def test_request_that_cannot_begin_ends_alone_and_blames_nothing(make_bench: MakeBench, is_first: bool) -> None:
    def raising(*grammar: Grammar) -> Broken:
        raise TypeError("a schema with a wrong type")

    bench = make_bench(make_constraint=raising if is_first else lambda grammar: raising)
    good = bench.submit(PROMPT)
    bad = bench.submit(PROMPT, grammar=Grammar(kind="regex", source="x"))
    bench.finish()
    assert [frame.kind for frame in bench.endings(bad)] == ["GatewayError"]
    assert bench.endings(good) == [Ended(good, "length")]


def test_only_logits_of_the_device_are_held_against_it(make_bench: MakeBench) -> None:
    """The same useless row: from the device, and from a constraint that permits no token."""

    class Nothing(Broken):
        def restrict(self, logits: Logits) -> None:
            logits[:] = -np.inf

    bench = make_bench(make_constraint=lambda grammar: lambda: Nothing("", 0))
    excluded = bench.submit(PROMPT, grammar=Grammar(kind="regex", source="x"))
    bench.finish()
    assert [frame.kind for frame in bench.endings(excluded)] == ["InvalidRequest"]
    prefill = bench.decoder.inner.prefill
    bench.decoder.inner.prefill = lambda *args: np.full_like(prefill(*args), np.nan)  # type: ignore[method-assign]
    poisoned = bench.submit(PROMPT)
    bench.finish()
    assert [frame.kind for frame in bench.endings(poisoned)] == ["DeviceFailed"]


@pytest.mark.parametrize("method", ["copy_from", "snapshot"])
def test_lack_of_memory_for_the_rows_of_a_sequence_fails_at_most_its_request(
    bench: Bench, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [random_ids(20, seed) for seed in range(5)]
    alone = [bench.answer(prompt, max_tokens=5, owner=f"alone {i}") for i, prompt in enumerate(prompts)]
    bystander = bench.submit(prompts[0], max_tokens=60, owner="bystander")
    bench.loop.turn()
    failing = [True]

    def fail(self: object, *args: object) -> None:
        if failing.pop(0) if failing else False:
            raise MemoryError
        original(self, *args)

    cache_type = type(bench.loop._schedule._pool.slots[0].cache)
    original = getattr(cache_type, method)
    monkeypatch.setattr(cache_type, method, fail)
    victim = bench.submit(prompts[0], max_tokens=5, owner="bystander")
    bench.finish()
    monkeypatch.undo()
    assert not failing
    assert bench.endings(bystander) == [Ended(bystander, "length")]
    failures = bench.of(victim, Failed)
    assert [failure.kind for failure in failures] == ["EngineFailed"] * (method != "snapshot")
    assert bench.loop._schedule._served == {}
    for prompt, answer in zip(prompts, alone, strict=True):
        assert bench.answer(prompt, max_tokens=5, owner="bystander") == answer
