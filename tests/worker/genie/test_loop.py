"""GenieLoop in its worker process: answers, prefix reuse and sampling against a plain decode loop."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from gateway.sampling import Sampling
from gateway.worker.frames import Began, Ended, Prefilled, Ready, Tokens
from tests.support.npu.genie_bundle import END
from tests.support.npu.genie_worker import HOT, IDS, STOP_TRIGGER, GenieWorker, Reference, StartWorker

# -- answers ----------------------------------------------------------------------------------------------------------


def test_answer_has_frames_in_order(worker: GenieWorker, reference: Reference) -> None:
    reply = worker.request(IDS[:20], owner="frames")
    assert reply.ids == reference(IDS[:20])
    assert [type(frame) for frame in reply.frames] == [Began, Prefilled, *[Tokens] * 12, Ended]
    assert (reply.cached, reply.last.reason, reply.last.counted_stop) == (0, "length", 0)
    assert all(frame.device_s >= 0 for frame in reply.frames if isinstance(frame, Prefilled | Tokens))
    assert reply.frames[1].device_s > 0  # type: ignore[union-attr]


def test_long_prompt_is_prefilled_in_chunks(worker: GenieWorker, reference: Reference) -> None:
    reply = worker.request(IDS[:99], owner="chunks")
    assert reply.ids == reference(IDS[:99])
    assert reply.chunks == 4


def test_end_token_stops_and_is_counted_but_not_sent(worker: GenieWorker, reference: Reference) -> None:
    ids = [*IDS[:24], STOP_TRIGGER, 20, 30]
    expected = reference(ids)
    assert 0 < len(expected) < 12
    reply = worker.request(ids)
    assert reply.ids == expected
    assert (reply.last.reason, reply.last.counted_stop) == ("stop", 1)


def test_end_token_can_be_first_token(worker: GenieWorker) -> None:
    reply = worker.request([*IDS[:24], STOP_TRIGGER, 20, 30, 40, 50, 60])
    assert reply.ids in ([], [63])
    assert reply.last.reason == "stop"
    assert reply.chunks == 1


def test_stop_id_unknown_to_genie_stops(worker: GenieWorker, reference: Reference) -> None:
    expected = reference(IDS[:30])
    reply = worker.request(IDS[:30], stop_ids=[END, expected[4]])
    assert reply.ids == expected[: expected.index(expected[4])]
    assert (reply.last.reason, reply.last.counted_stop) == ("stop", 1)
    follow_up = [*IDS[:30], *reply.ids, 9, 8]
    assert worker.answer(follow_up) == reference(follow_up)


def test_context_is_usable_to_last_token(worker: GenieWorker, reference: Reference) -> None:
    assert worker.answer(IDS[:100]) == reference(IDS[:100])  # 100 + 12 tokens of 112


@pytest.mark.parametrize("ids", [[], [128], [-1, 4]], ids=str)
def test_prompt_with_invalid_ids_is_refused(worker: GenieWorker, ids: list[int]) -> None:
    reply = worker.request(ids)
    assert (reply.last.kind, reply.last.param) == ("InvalidRequest", "prompt")


def test_request_for_no_tokens_ends_at_once(worker: GenieWorker) -> None:
    reply = worker.request(IDS[:20], max_tokens=0)
    assert (reply.ids, reply.last.reason) == ([], "length")


# -- prefix reuse -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "cached"),
    [
        (IDS[:30], [*IDS[:30], 8, 9], 29),
        (IDS[:30], [*IDS[:20], 8, 9, 10], 19),
        (IDS[:60], [*IDS[:3], *range(40, 60)], 2),
        (IDS[:30], IDS[:99], 29),
        (IDS[:90], [*IDS[:80], *range(30, 50)], 79),
        (IDS[:30], IDS[:30], 28),  # the library cannot compute a query of no token, or of one token
        (IDS[:30], IDS[:25], 23),
        (IDS[:60], IDS[:30], 28),
        (IDS[:30], [7, *IDS[1:30]], 0),  # without a common prefix the library would continue the old prompt
        (IDS[:30], IDS[:2], 0),
    ],
)
def test_common_prefix_of_two_prompts_is_reused(
    worker: GenieWorker, reference: Reference, first: list[int], second: list[int], cached: int
) -> None:
    worker.answer(first)
    reply = worker.request(second)
    assert reply.ids == reference(second)
    assert reply.cached == cached


def test_conversation_moves_between_contexts_without_a_crash(
    published_bundle: Path, start: StartWorker, reference: Reference
) -> None:
    """The library ends the process when a conversation moves back from the context of 128 to that of 64."""
    worker = start(published_bundle)
    ready = worker.load()
    assert isinstance(ready, Ready) and (ready.context_length, ready.prompt_width) == (112, 8)
    for prompt, cached in (
        (IDS[:40], 0),
        ([*IDS[:30], 8, 9], 29),
        ([*IDS[:30], 8, 9, *range(41, 76)], 31),  # grows into the context of 128
        ([*IDS[:30], 8, 9, *range(41, 53)], 0),  # fits that of 64 again
        (IDS[:100], 29),
        ([*IDS[:80], 8, 9], 79),
        ([*IDS[:66], 8, 9], 65),
        ([*IDS[:50], 8, 9], 0),
    ):
        reply = worker.request(prompt)
        assert (reply.ids, reply.cached) == (reference(prompt), cached)


@pytest.mark.parametrize("tail", [[8, 9], [END, 8, 9], [END, *range(50, 80)]], ids=["plain", "end", "long"])
def test_follow_up_reuses_prompt_and_answer(worker: GenieWorker, reference: Reference, tail: list[int]) -> None:
    prompt = IDS[:40]
    follow_up = [*prompt, *worker.answer(prompt), *tail]
    reply = worker.request(follow_up)
    assert reply.ids == reference(follow_up)
    assert reply.cached == 51  # 40 + 12 tokens; the last one is not computed yet
    again = [*follow_up, *reply.ids, 10, 11]
    assert worker.answer(again, max_tokens=8) == reference(again)[:8]


def test_random_prompts_get_right_answers(worker: GenieWorker, reference: Reference) -> None:
    assert answer_random_prompts(worker, reference, 8) > 5


@pytest.mark.slow
def test_random_prompts_over_two_contexts_get_right_answers(
    published_bundle: Path, start: StartWorker, reference: Reference
) -> None:
    worker = start(published_bundle)
    worker.load()
    assert answer_random_prompts(worker, reference, 120) > 40


def answer_random_prompts(worker: GenieWorker, reference: Reference, count: int) -> int:
    """Send prompts that continue, cut or change the last one. Returns: how many used a part of the cache."""
    random = Random(5)

    def tail(*lengths: int) -> list[int]:
        return [random.randrange(3, 128) for _ in range(random.choice(lengths))]

    last, reused = IDS[:20], 0
    for _ in range(count):
        cut = random.randrange(1, len(last))
        prompt = random.choice([[*last, *tail(1, 2, 9)], [*last[:cut], *tail(0, 1, 20)], [*last, END, *tail(0, 1, 3)]])
        reply = worker.request(prompt[:100], max_tokens=random.choice([1, 5, 12]))
        assert reply.ids == reference(prompt[:100])[: len(reply.ids)]
        assert reply.ids or reply.last.reason == "stop"
        last, reused = [*prompt[:100], *reply.ids][:80], reused + bool(reply.cached)
    return reused


def test_follow_up_after_end_token_gets_right_answer(worker: GenieWorker, reference: Reference) -> None:
    prompt = [*IDS[:24], STOP_TRIGGER, 20, 30]
    answer = worker.answer(prompt)
    for tail in ([END, 8, 9], [8, 9], [END]):
        worker.answer(prompt)
        assert worker.answer([*prompt, *answer, *tail]) == reference([*prompt, *answer, *tail])


def test_follow_up_after_abort_gets_right_answer(worker: GenieWorker, reference: Reference) -> None:
    expected = reference(IDS[:40])
    for tail in ([8, 9], [END, 8, 9, 10], expected[5:7]):
        worker.answer(IDS[:40], stop_ids=[expected[5]])  # the loop aborts the query
        follow_up = [*IDS[:40], *expected[:5], *tail]
        assert worker.answer(follow_up) == reference(follow_up)


def test_owners_share_no_prefix(worker: GenieWorker, reference: Reference) -> None:
    worker.answer(IDS[:30], owner="ann")
    reply = worker.request([*IDS[:30], 8, 9], owner="bob")
    assert (reply.cached, reply.ids) == (0, reference([*IDS[:30], 8, 9]))


def test_disabled_prefix_cache_reuses_nothing(start: StartWorker, reference: Reference) -> None:
    worker = start(prefix_cache=False)
    worker.load()
    worker.answer(IDS[:30])
    reply = worker.request([*IDS[:30], 8, 9])
    assert (reply.cached, reply.ids) == (0, reference([*IDS[:30], 8, 9]))


# -- sampling -----------------------------------------------------------------------------------------------------


def test_same_seed_gives_same_tokens(worker: GenieWorker, reference: Reference) -> None:
    seeded = Sampling(temperature=2.0, seed=-(2**63) + 5)
    drawn = worker.answer(IDS[:30], sampling=seeded)
    assert worker.answer([*IDS[:30], 9, 9]) == reference([*IDS[:30], 9, 9])
    worker.answer([*IDS[:28], 9, 9], sampling=HOT)
    assert worker.answer(IDS[:30], sampling=seeded) == drawn
    assert worker.answer(IDS[:30], sampling=Sampling(temperature=2.0, seed=6)) != drawn
    assert drawn != reference(IDS[:30])


def test_requests_without_seed_give_different_tokens(worker: GenieWorker) -> None:
    without_prefix = {tuple(worker.answer(IDS[:30], sampling=HOT)) for _ in range(3)}
    with_prefix = {tuple(worker.answer([*IDS[:30], 8, 9 + turn], sampling=HOT)[3:]) for turn in range(3)}
    assert len(without_prefix) == len(with_prefix) == 3


def test_narrow_top_k_and_top_p_give_greedy_tokens(worker: GenieWorker, reference: Reference) -> None:
    greedy = reference(IDS[:30])
    for narrow in (
        Sampling(temperature=2.0, top_k=1),
        Sampling(temperature=2.0, top_p=0.01),
        Sampling(temperature=1e-300),
    ):
        assert worker.answer(IDS[:30], sampling=narrow) == greedy
    assert len(worker.answer(IDS[:30], sampling=Sampling(temperature=2.0, top_k=10**9))) == 12
