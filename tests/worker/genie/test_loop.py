"""The Genie worker, spoken to in frames as the gateway does: right answers whatever its cache holds, one end each."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from gateway.bundles.genie_config import load_genie_bundle
from gateway.errors import EngineFailed
from gateway.sampling import Sampling
from gateway.worker.frames import (
    Began,
    Cancel,
    Ended,
    Failed,
    FromWorker,
    Prefilled,
    Ready,
    Shutdown,
    Submit,
    Tokens,
    ToWorker,
    WorkerSpec,
    decode_from_worker,
    encode,
)
from gateway.worker.genie import loop as genie_loop
from gateway.worker.genie.library import End, GenieDialog, Performance
from gateway.worker.genie.loop import GenieLoop, Mailbox
from gateway.worker.genie.main import genie_worker_main
from tests.support.child_call import call_in_child
from tests.support.genie_bundle import END
from tests.support.tiny_htp_decoder import TinyDecoder, open_htp_session

PATIENCE_S = 60.0
GREEDY = Sampling(temperature=0.0)
HOT = Sampling(temperature=2.0)
IDS = [1, *((index * 37 + 11) % 96 + 5 for index in range(110))]
STOPPER = TinyDecoder().stopper


class Worker:
    """The real process, and what it has said."""

    def __init__(self, config: Path, **options: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        spec = WorkerSpec(bundle=str(config), **options)
        self.process = context.Process(target=genie_worker_main, args=(theirs, spec), daemon=True)
        self.process.start()
        theirs.close()
        self._last_id = 0

    def load(self) -> FromWorker:
        return self.hear_until(Ready, Failed)[-1]

    def say(self, frame: ToWorker) -> None:
        self.connection.send_bytes(encode(frame))

    def submit(self, ids: Sequence[int], **options: Any) -> int:
        self._last_id += 1
        settings = {"sampling": GREEDY, "max_tokens": 12, "stop_ids": [END]} | options
        self.say(Submit(id=self._last_id, ids=list(ids), **settings))
        return self._last_id

    def hear(self) -> FromWorker:
        assert self.connection.poll(PATIENCE_S), "the worker is silent"
        return decode_from_worker(self.connection.recv_bytes())

    def hear_until(self, *kinds: type) -> list[Any]:
        frames: list[Any] = [self.hear()]
        while not isinstance(frames[-1], kinds):
            frames.append(self.hear())
        return frames

    def ask(self, ids: Sequence[int], **options: Any) -> Told:
        request = self.submit(ids, **options)
        return Told(request, self.hear_until(Ended, Failed))

    def answer(self, ids: Sequence[int], **options: Any) -> list[int]:
        return self.ask(ids, **options).ids

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class Told:
    """What the worker said of one request, which must be nothing of any other."""

    def __init__(self, request: int, frames: Sequence[FromWorker]) -> None:
        assert {frame.id for frame in frames} == {request}  # type: ignore[union-attr]
        self.frames = frames
        self.ids = [index for frame in frames if isinstance(frame, Tokens) for index in frame.ids]
        self.cached = next((frame.cached_tokens for frame in frames if isinstance(frame, Began)), None)
        self.pieces = sum(isinstance(frame, Prefilled) for frame in frames)
        self.last: Any = frames[-1]


@pytest.fixture(scope="module")
def worker(genie_config: Path) -> Iterator[Worker]:
    started = Worker(genie_config)
    assert isinstance(started.load(), Ready)
    yield started
    started.end()


@pytest.fixture
def start(genie_config: Path) -> Iterator[Callable[..., Worker]]:
    workers = []

    def start(config: Path = genie_config, **options: Any) -> Worker:
        workers.append(Worker(config, **options))
        return workers[-1]

    yield start
    for each in workers:
        each.end()


def _refer(connection: Connection, folder: Path) -> None:
    prompt_run, step_run = open_htp_session(folder / "prompt_ctx.onnx"), open_htp_session(folder / "token_ctx.onnx")
    while True:
        ids, count = connection.recv()
        connection.send(TinyDecoder().greedy(prompt_run, step_run, ids, count))


@pytest.fixture(scope="module")
def reference(context_folder: Path) -> Iterator[Callable[[Sequence[int], int], list[int]]]:
    """A plain decode loop over the same binaries, in its own process: the greedy tokens up to the end token."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_refer, args=(theirs, context_folder), daemon=True)
    process.start()

    def refer(ids: Sequence[int], count: int = 12) -> list[int]:
        ours.send((list(ids), count))
        assert ours.poll(PATIENCE_S)
        answer: list[int] = ours.recv()
        return answer[: answer.index(END)] if END in answer else answer

    yield refer
    process.kill()
    process.join()
    ours.close()
    theirs.close()


Reference = Callable[[Sequence[int]], list[int]]

# -- answers ----------------------------------------------------------------------------------------------------------


def test_ready_says_what_is_usable(start: Callable[..., Worker]) -> None:
    ready = start().load()
    assert isinstance(ready, Ready)
    assert (ready.vocab_size, ready.context_length, ready.device) == (128, 112, "emulated")
    assert ready.placement == {"QNN": 2}
    assert ready.load_s > 0 and ready.warm_up_s > 0 and ready.peak_bytes > 0
    assert start(context_length=50).load().context_length == 50  # type: ignore[union-attr]


def test_an_answer_in_frames(worker: Worker, reference: Reference) -> None:
    told = worker.ask(IDS[:20], owner="frames")
    assert told.ids == reference(IDS[:20])
    assert [type(frame) for frame in told.frames] == [Began, Prefilled, *[Tokens] * 12, Ended]
    assert (told.cached, told.last.reason, told.last.counted_stop) == (0, "length", 0)
    assert all(frame.device_s >= 0 for frame in told.frames if isinstance(frame, Prefilled | Tokens))
    assert told.frames[1].device_s > 0  # type: ignore[union-attr]


def test_a_long_prompt_goes_in_pieces(worker: Worker, reference: Reference) -> None:
    told = worker.ask(IDS[:99], owner="pieces")
    assert told.ids == reference(IDS[:99])
    assert told.pieces == 4


def test_an_end_token_stops_and_counts_and_is_not_told(worker: Worker, reference: Reference) -> None:
    ids = [*IDS[:24], STOPPER, 20, 30]
    expected = reference(ids)
    assert 0 < len(expected) < 12
    told = worker.ask(ids)
    assert told.ids == expected
    assert (told.last.reason, told.last.counted_stop) == ("stop", 1)


def test_an_end_token_may_come_first(worker: Worker) -> None:
    told = worker.ask([*IDS[:24], STOPPER, 20, 30, 40, 50, 60])
    assert told.ids in ([], [63])
    assert told.last.reason == "stop"
    assert told.pieces == 1


def test_an_end_token_that_genie_does_not_know_stops_as_well(worker: Worker, reference: Reference) -> None:
    expected = reference(IDS[:30])
    told = worker.ask(IDS[:30], stop_ids=[END, expected[4]])
    assert told.ids == expected[: expected.index(expected[4])]
    assert (told.last.reason, told.last.counted_stop) == ("stop", 1)
    follow_up = [*IDS[:30], *told.ids, 9, 8]
    assert worker.answer(follow_up) == reference(follow_up)


def test_the_last_token_that_fits(worker: Worker, reference: Reference) -> None:
    assert worker.answer(IDS[:100]) == reference(IDS[:100])
    told = worker.ask(IDS[:101])
    assert isinstance(told.last, Failed)
    assert told.last.kind == "ContextLengthExceeded"
    assert "112 tokens" in told.last.message


@pytest.mark.parametrize("ids", [[], [128], [-1, 4]])
def test_a_prompt_of_tokens_that_are_none(worker: Worker, ids: list[int]) -> None:
    told = worker.ask(ids)
    assert (told.last.kind, told.last.param) == ("InvalidRequest", "prompt")


def test_no_tokens_wanted(worker: Worker) -> None:
    told = worker.ask(IDS[:20], max_tokens=0)
    assert (told.ids, told.last.reason) == ([], "length")


# -- what the cache is used for -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "cached"),
    [
        (IDS[:30], [*IDS[:30], 8, 9], 29),
        (IDS[:30], [*IDS[:20], 8, 9, 10], 19),
        (IDS[:60], [*IDS[:3], *range(40, 60)], 2),
        (IDS[:30], IDS[:99], 29),
        (IDS[:90], [*IDS[:80], *range(30, 50)], 79),
        (IDS[:30], IDS[:30], 28),  # the library cannot be asked for nothing, nor for one token
        (IDS[:30], IDS[:25], 23),
        (IDS[:60], IDS[:30], 28),
        (IDS[:30], [7, *IDS[1:30]], 0),  # nothing shared: the library would go on behind the old prompt
        (IDS[:30], IDS[:2], 0),
    ],
)
def test_what_two_prompts_share_is_kept_where_that_is_right(
    worker: Worker, reference: Reference, first: list[int], second: list[int], cached: int
) -> None:
    worker.answer(first)
    told = worker.ask(second)
    assert told.ids == reference(second)
    assert told.cached == cached


@pytest.mark.parametrize("tail", [[8, 9], [END, 8, 9], [END, *range(50, 80)]])
def test_a_conversation_goes_on_behind_its_answer(worker: Worker, reference: Reference, tail: list[int]) -> None:
    prompt = IDS[:40]
    follow_up = [*prompt, *worker.answer(prompt), *tail]
    told = worker.ask(follow_up)
    assert told.ids == reference(follow_up)
    assert told.cached == 51  # the prompt, and the answer but its last token, which was not computed yet
    again = [*follow_up, *told.ids, 10, 11]
    assert worker.answer(again, max_tokens=8) == reference(again)[:8]


def test_any_prompt_after_any_other(worker: Worker, reference: Reference) -> None:
    random = Random(5)

    def tail(*lengths: int) -> list[int]:
        return [random.randrange(3, 128) for _ in range(random.choice(lengths))]

    held, reused = IDS[:20], 0
    for _ in range(16):
        cut = random.randrange(1, len(held))
        prompt = random.choice([[*held, *tail(1, 2, 9)], [*held[:cut], *tail(0, 1, 20)], [*held, END, *tail(0, 1, 3)]])
        told = worker.ask(prompt[:100], max_tokens=random.choice([1, 5, 12]))
        assert told.ids == reference(prompt[:100])[: len(told.ids)]
        assert told.ids or told.last.reason == "stop"
        held, reused = [*prompt[:100], *told.ids][:80], reused + bool(told.cached)
    assert reused > 12


def test_a_conversation_goes_on_behind_an_end_token(worker: Worker, reference: Reference) -> None:
    prompt = [*IDS[:24], STOPPER, 20, 30]
    answer = worker.answer(prompt)
    for tail in ([END, 8, 9], [8, 9], [END]):
        worker.answer(prompt)
        assert worker.answer([*prompt, *answer, *tail]) == reference([*prompt, *answer, *tail])


def test_owners_share_nothing(worker: Worker, reference: Reference) -> None:
    worker.answer(IDS[:30], owner="ann")
    told = worker.ask([*IDS[:30], 8, 9], owner="bob")
    assert (told.cached, told.ids) == (0, reference([*IDS[:30], 8, 9]))


def test_without_a_prefix_cache_nothing_is_kept(start: Callable[..., Worker], reference: Reference) -> None:
    worker = start(prefix_cache=False)
    worker.load()
    worker.answer(IDS[:30])
    told = worker.ask([*IDS[:30], 8, 9])
    assert (told.cached, told.ids) == (0, reference([*IDS[:30], 8, 9]))


# -- sampling -----------------------------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same(worker: Worker, reference: Reference) -> None:
    seeded = Sampling(temperature=2.0, seed=-(2**63) + 5)
    drawn = worker.answer(IDS[:30], sampling=seeded)
    assert worker.answer([*IDS[:30], 9, 9]) == reference([*IDS[:30], 9, 9])
    worker.answer([*IDS[:28], 9, 9], sampling=HOT)
    assert worker.answer(IDS[:30], sampling=seeded) == drawn
    assert worker.answer(IDS[:30], sampling=Sampling(temperature=2.0, seed=6)) != drawn
    assert drawn != reference(IDS[:30])


def test_without_a_seed_every_answer_is_another(worker: Worker) -> None:
    fresh = {tuple(worker.answer(IDS[:30], sampling=HOT)) for _ in range(3)}
    on_a_prefix = {tuple(worker.answer([*IDS[:30], 8, 9 + turn], sampling=HOT)[3:]) for turn in range(3)}
    assert len(fresh) == len(on_a_prefix) == 3


def test_top_k_and_top_p_narrow_the_draw(worker: Worker, reference: Reference) -> None:
    greedy = reference(IDS[:30])
    for narrow in (
        Sampling(temperature=2.0, top_k=1),
        Sampling(temperature=2.0, top_p=0.01),
        Sampling(temperature=1e-300),
    ):
        assert worker.answer(IDS[:30], sampling=narrow) == greedy
    assert len(worker.answer(IDS[:30], sampling=Sampling(temperature=2.0, top_k=10**9))) == 12


# -- order, cancel, end -------------------------------------------------------------------------------------------


def test_a_cancelled_answer_stops_and_no_more_is_said_of_it(worker: Worker, reference: Reference) -> None:
    request = worker.submit(IDS[:30], max_tokens=80)
    frames = worker.hear_until(Tokens)
    worker.say(Cancel(request))
    after = worker.submit([*IDS[:30], *reference(IDS[:30])[:1], 8, 9])
    while (frame := worker.hear()).id == request:  # type: ignore[union-attr]
        frames.append(frame)
    assert not isinstance(frames[-1], Ended)
    assert sum(isinstance(frame, Tokens) for frame in frames) < 60
    told = Told(after, [frame, *worker.hear_until(Ended)])
    assert told.ids == reference([*IDS[:30], *reference(IDS[:30])[:1], 8, 9])


def test_what_follows_an_aborted_answer_is_right(worker: Worker, reference: Reference) -> None:
    expected = reference(IDS[:40])
    for tail in ([8, 9], [END, 8, 9, 10], expected[5:7]):
        worker.answer(IDS[:40], stop_ids=[expected[5]])  # aborted from within
        follow_up = [*IDS[:40], *expected[:5], *tail]
        assert worker.answer(follow_up) == reference(follow_up)


def test_a_prompt_nobody_wants_is_not_computed_to_its_end(worker: Worker, reference: Reference) -> None:
    worker.answer(IDS[:20], owner="other")
    request = worker.submit(IDS[:99])
    worker.say(Cancel(request))
    after = worker.submit(IDS[:50])
    frames = worker.hear_until(Ended)
    assert {frame.id for frame in frames if isinstance(frame, Ended)} == {after}
    assert sum(isinstance(frame, Prefilled) and frame.id == request for frame in frames) < 4
    assert [i for f in frames if isinstance(f, Tokens) and f.id == after for i in f.ids] == reference(IDS[:50])


def test_waiting_requests_are_answered_in_order_and_those_in_the_background_last(worker: Worker) -> None:
    running = worker.submit(IDS[:30], max_tokens=30)
    background = worker.submit(IDS[:20], background=True)
    dropped = worker.submit(IDS[:21])
    first, second = worker.submit(IDS[:22]), worker.submit(IDS[:23])
    worker.say(Cancel(dropped))
    order = []
    while len(order) < 4:
        order += [frame.id for frame in worker.hear_until(Ended)[-1:]]
    assert order == [running, first, second, background]


def test_it_ends_when_told_to_also_in_the_middle_of_an_answer(start: Callable[..., Worker]) -> None:
    worker = start()
    worker.load()
    worker.submit(IDS[:30], max_tokens=80)
    worker.hear_until(Tokens)
    worker.say(Shutdown())
    worker.process.join(PATIENCE_S)
    assert worker.process.exitcode == 0


def test_it_does_not_outlive_the_gateway(start: Callable[..., Worker]) -> None:
    worker = start()
    worker.load()
    worker.submit(IDS[:30], max_tokens=80)
    worker.hear_until(Tokens)
    worker.connection.close()
    worker.process.join(PATIENCE_S)
    assert worker.process.exitcode is not None


# -- a dialog whose pace is watched, or that fails when told to -------------------------------------------------------


class _Watched(GenieDialog):
    """The real dialog; remembers the paces it was set to, and fails where `faults` says."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.paces: list[str] = []
        self.faults: list[str] = []

    def perform(self, performance: Performance) -> None:
        self.paces.append(performance.name)
        super().perform(performance)

    def query(self, *arguments: Any) -> End:
        self._fail("query")
        return super().query(*arguments)

    def reset(self) -> None:
        self._fail("reset")
        super().reset()

    def _fail(self, what: str) -> None:
        if what in self.faults:
            self.faults.remove(what)
            raise EngineFailed(f"{what} failed")


def _watch(config: Path, faults: list[str], pause_s: float) -> tuple[list[str], list[FromWorker], str]:
    """Two requests with a pause between them: the paces, what was said, and why the loop ended."""
    genie_loop._IDLE_S = 0.2
    bundle, mailbox, frames = load_genie_bundle(config), Mailbox(), list[FromWorker]()
    with closing(_Watched(bundle.config)) as dialog:
        loop = GenieLoop(dialog, bundle, mailbox, frames.append)
        dialog.faults = faults

        def speak() -> None:
            for id in (1, 2):
                mailbox.deliver(Submit(id=id, ids=IDS[:20], sampling=GREEDY, max_tokens=2, stop_ids=[END]))
                while not any(isinstance(frame, Ended | Failed) and frame.id == id for frame in list(frames)):
                    time.sleep(0.01)
                time.sleep(pause_s)
            mailbox.deliver(Shutdown())

        threading.Thread(target=speak, daemon=True).start()
        try:
            loop.run()
        except EngineFailed as error:
            return dialog.paces, frames, error.message
        return dialog.paces, frames, "told to"


def test_the_npu_saves_power_when_nothing_comes(genie_config: Path) -> None:
    paces, _, _ = call_in_child(_watch, genie_config, [], 0.6)
    assert paces == ["BURST", "POWER_SAVER"] * 2


def test_a_query_that_fails_ends_its_request_only(genie_config: Path) -> None:
    _, frames, end = call_in_child(_watch, genie_config, ["query"], 0.0)
    failed = next(frame for frame in frames if isinstance(frame, Failed))
    assert (failed.id, failed.kind, failed.message) == (1, "EngineFailed", "query failed")
    assert [frame.id for frame in frames if isinstance(frame, Ended)] == [2]
    assert end == "told to"


def test_a_dialog_that_cannot_be_reset_is_given_up(genie_config: Path) -> None:
    _, frames, end = call_in_child(_watch, genie_config, ["reset", "reset"], 0.0)
    assert [frame.id for frame in frames if isinstance(frame, Failed)] == [1]
    assert end == "reset failed"


# -- over time ----------------------------------------------------------------------------------------------------


def test_memory_is_flat(worker: Worker) -> None:
    process = psutil.Process(worker.process.pid)
    for turn in range(10):
        worker.answer([*IDS[:20], 8, turn], max_tokens=4)
    before = process.memory_info().rss
    for turn in range(60):
        worker.answer([*IDS[:20], 8, turn], max_tokens=4, sampling=HOT)
    assert process.memory_info().rss - before < 4 * 2**20


def test_load_failure_is_reported_and_process_ends(genie_config: Path, start: Callable[..., Worker]) -> None:
    worker = start(genie_config.parent / "gone.json")
    failed = worker.load()
    assert isinstance(failed, Failed)
    assert (failed.id, failed.kind) == (None, "BundleError")
    before = time.monotonic()
    worker.process.join(PATIENCE_S)
    assert worker.process.exitcode == 0
    assert time.monotonic() - before < PATIENCE_S / 2
