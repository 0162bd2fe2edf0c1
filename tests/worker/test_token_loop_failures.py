"""Cancelled requests and failing device calls in a token loop over a real tiny model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from gateway.errors import EngineFailed
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
