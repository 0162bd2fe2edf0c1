"""RoutedAnswer: fallbacks, deadlines, cancelled reads and the log line. In virtual time."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

import pytest

from gateway.config.tables import ScriptedModel, ServerConfig
from gateway.errors import (
    BreakerOpen,
    DeadlineExceeded,
    EngineFailed,
    GatewayError,
    InvalidRequest,
    ModelNotReady,
    QueueFull,
)
from gateway.generation import Event, Finished, Generation, Started, TextDelta
from gateway.lanes.router import Router
from gateway.monitoring.observers import AnswerRecord
from tests.support.routing import answer_of, model, read, request, routing
from tests.support.virtual_time import in_virtual_time, now


def with_fallback(**first: Any) -> dict[str, ScriptedModel]:
    return {"main": model("main", fallback="second", **first), "second": model("second")}


@pytest.mark.parametrize("error", ["EngineFailed", "UpstreamFailed", "ModelNotReady", "GatewayError", "QueueFull"])
@in_virtual_time
async def test_failure_before_content_moves_to_fallback(error: str) -> None:
    # The scripted engine has already emitted Started when it fails: `open` has returned.
    async with routing(with_fallback(faults=[{"error": error}])) as router:
        assert await answer_of(router, request()) == ("second", "second")


@in_virtual_time
async def test_failure_after_content_ends_answer() -> None:
    async with routing(with_fallback(faults=[{"error": "EngineFailed", "after": 2}], repeat=True)) as router:
        answer = await router.open(request())
        with pytest.raises(EngineFailed):
            await read(answer)
        assert answer.model == "main"


@pytest.mark.parametrize("error", ["InvalidRequest", "ContextLengthExceeded", "UnsupportedParameter"])
@in_virtual_time
async def test_wrong_request_is_not_sent_to_fallback(error: str) -> None:
    async with routing(with_fallback(faults=[{"error": error, "message": "from the script"}])) as router:
        answer = await router.open(request())
        with pytest.raises(InvalidRequest, match="from the script"):
            await read(answer)


@in_virtual_time
async def test_open_breaker_moves_to_fallback_or_refuses() -> None:
    async with routing(with_fallback(ttft_s=[1.2, 0.1]) | {"alone": model(ttft_s=1.2)}) as router:
        for name in ("main", "alone"):
            await answer_of(router, request(name))  # too slow
        assert await answer_of(router, request()) == ("second", "second")
        with pytest.raises(BreakerOpen) as caught:
            await router.open(request("alone"))
        assert caught.value.retry_after_s == pytest.approx(10, abs=2)
        await asyncio.sleep(10)
        assert await answer_of(router, request()) == ("main", "main")


@in_virtual_time
async def test_full_queue_and_broken_model_move_to_fallback() -> None:
    models = with_fallback(max_sequences=1, queue=0, ttft_s=0.5)
    async with routing(models | {"broken": model(load_error="no", fallback="main")}) as router:
        answers = await asyncio.gather(*(answer_of(router, request("broken")) for _ in range(2)))
        assert answers == [("main", "main"), ("second", "second")]


@in_virtual_time
async def test_client_gets_error_of_requested_model_when_all_lanes_refuse() -> None:
    models = {
        "main": model(fallback="second", max_sequences=1, queue=0, ttft_s=1.0),
        "second": model(fallback="third", load_error="file not found"),
        "third": model(context_length=2),
    }
    async with routing(models) as router:
        first = asyncio.create_task(answer_of(router, request()))
        await asyncio.sleep(0.1)
        with pytest.raises(QueueFull):
            answer = await router.open(request())
            await read(answer)
        with pytest.raises(ModelNotReady, match="second could not be loaded"):
            answer = await router.open(request("second"))
            await read(answer)
        await first


@in_virtual_time
async def test_circular_fallbacks_are_tried_once() -> None:
    models = {name: model(fallback=other, load_error=name) for name, other in [("a", "b"), ("b", "a")]}
    async with routing(models) as router:
        with pytest.raises(ModelNotReady, match="a could not be loaded"):
            await router.open(request("a"))


@in_virtual_time
async def test_configured_ttft_limit_applies_only_with_fallback() -> None:
    models = with_fallback(ttft_timeout_s=1.0, ttft_s=3.0) | {"alone": model(ttft_timeout_s=1.0, ttft_s=3.0)}
    async with routing(models) as router:
        assert await answer_of(router, request()) == ("second", "second")
        assert now() == pytest.approx(1.0)
        assert await answer_of(router, request("alone")) == ("alone", "fine")


@in_virtual_time
async def test_client_ttft_limit_applies_to_every_lane() -> None:
    async with routing(with_fallback(ttft_s=3.0) | {"alone": model(ttft_s=3.0)}) as router:
        assert await answer_of(router, request(ttft_timeout_s=0.5)) == ("second", "second")
        with pytest.raises(DeadlineExceeded, match="first token"):
            await read(await router.open(request("alone", ttft_timeout_s=0.5)))


@pytest.mark.parametrize("limit_from", ["client", "configuration"])
@in_virtual_time
async def test_predicted_late_first_token_moves_to_fallback_at_once(limit_from: str) -> None:
    by_client = limit_from == "client"
    async with routing(with_fallback(ttft_s=0.9, ttft_timeout_s=None if by_client else 0.5)) as router:
        for _ in range(10):
            generation = request(ttft_timeout_s=0.5) if by_client else request()
            assert await answer_of(router, generation) == ("second", "second")
        assert now() == pytest.approx(0.5)  # only the first request waited for the limit


@pytest.mark.parametrize(("client_s", "after_s"), [(None, 20.0), (100.0, 20.0), (5.0, 5.0)])
@in_virtual_time
async def test_deadline_is_shorter_of_client_and_server_limit(client_s: float | None, after_s: float) -> None:
    async with routing(with_fallback(ttft_s=60.0), server=ServerConfig(timeout_s=20.0)) as router:
        with pytest.raises(DeadlineExceeded):
            await read(await router.open(request(timeout_s=client_s)))
        assert now() == pytest.approx(after_s)


@in_virtual_time
async def test_fallback_gets_rest_of_the_deadline() -> None:
    models = {
        "main": model(fallback="second", ttft_timeout_s=3.0, ttft_s=10.0),
        "second": model(ttft_s=10.0),
    }
    async with routing(models) as router:
        with pytest.raises(DeadlineExceeded, match="second"):
            await read(await router.open(request(timeout_s=5.0)))
        assert now() == pytest.approx(5.0)


@in_virtual_time
async def test_unread_answer_can_be_closed() -> None:
    async with routing({"main": model(token_s=1.0, repeat=True)}) as router:
        answer = await router.open(request())
        assert router.status()[0].running == 1
        await answer.aclose()
        assert router.status()[0].running == 0
        await answer.aclose()


@in_virtual_time
async def test_cancelled_open_leaves_queue() -> None:
    async with routing({"main": model(max_sequences=1, ttft_s=1.0)}) as router:
        first = asyncio.create_task(answer_of(router, request()))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(router.open(request()))
        await asyncio.sleep(0.1)
        assert router.status()[0].waiting == 1
        waiting.cancel()
        await asyncio.wait([waiting])
        assert router.status()[0].waiting == 0
        await first


@in_virtual_time
async def test_cancelled_reads_lose_no_event() -> None:
    models = {"main": model(fallback="second", ttft_s=1.0, faults=[{"error": "EngineFailed"}])}
    async with routing(models | {"second": model("a b c", ttft_s=1.0, token_s=1.0)}) as router:
        answer = await router.open(request())
        events: list[Event] = []
        timeouts = 0
        while not events or not isinstance(events[-1], Finished):
            try:
                async with asyncio.timeout(0.3):
                    events.append(await anext(answer))
            except TimeoutError:
                timeouts += 1
        with pytest.raises(StopAsyncIteration):
            await anext(answer)
        await answer.aclose()
    assert timeouts > 10 and answer.model == "second"
    assert isinstance(events[0], Started)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "a b c"


async def lines_of(
    caplog: pytest.LogCaptureFixture, router: Router, *generations: Generation, cancel: bool = False
) -> list[str]:
    caplog.set_level(logging.INFO, logger="gateway.lanes.answer")
    for generation in generations:
        try:
            answer = await router.open(generation)
            await (answer.aclose() if cancel else read(answer))
        except GatewayError:
            pass  # the log line is under test, also that of a refused request
    return [record.message for record in caplog.records if record.name == "gateway.lanes.answer"]


@in_virtual_time
async def test_each_request_has_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    models = {
        "main": model("a b c", cached_tokens=1, ttft_s=0.5, token_s=0.1, aliases=("alias",)),
        "broken": model(fallback="main", load_error="no"),
        "fails": model(faults=[{"error": "EngineFailed"}]),
    }
    async with routing(models) as router:
        lines = await lines_of(caplog, router, *map(request, ("main", "alias", "broken", "fails", "main:background")))
        figures = "prompt 3 (1 cached)  first 500 ms  4 tokens  10.0/s  stop  ..req-1"
        assert lines == [
            f"main  {figures}",
            f"alias -> main  {figures}",
            f"broken -> main (model_not_ready)  {figures}",
            "fails  prompt 3  503 engine_failed: The script makes this request fail  ..req-1",
            f"main:background -> main  {figures}",
        ]


@in_virtual_time
async def test_cancelled_request_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with routing({"main": model()}) as router:
        assert await lines_of(caplog, router, request(), cancel=True) == [
            "main  prompt 3  cancelled after 0.0 s  ..req-1"
        ]


@in_virtual_time
async def test_error_of_another_server_that_repeats_the_prompt_is_logged_without_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults = [{"error": "UpstreamFailed", "message": "cannot parse one two three"}]
    models = {"far": model(faults=faults), "first": model(faults=faults, fallback="far")}
    async with routing(models) as router:
        lines = await lines_of(caplog, router, request("far"), request("first"))
    assert lines[0] == "far  prompt 3  502 upstream_failed: cannot parse [...]  ..req-1"
    assert "one two three" not in caplog.text and "first: cannot parse [...]; far answers" in caplog.text


@in_virtual_time
async def test_prompt_is_logged_only_when_configured(caplog: pytest.LogCaptureFixture) -> None:
    async with routing({"main": model()}) as router:
        assert "one two three" not in "".join(await lines_of(caplog, router, request()))
    async with routing({"main": model()}, server=ServerConfig(log_prompts=True)) as router:
        assert "one two three" in "".join(await lines_of(caplog, router, request()))


@in_virtual_time
async def test_each_request_has_one_record() -> None:
    models = {
        "main": model("a b c", cached_tokens=1, ttft_s=0.5, token_s=0.1),
        "broken": model(fallback="main", load_error="no"),
        "alone": model(load_error="no"),
        "slow": model(ttft_s=2.0),
        "endless": model(repeat=True, token_s=0.5),
    }
    records: list[AnswerRecord] = []
    async with routing(models) as router:
        router.observers.add(records.append)
        for name in ("main", "broken", "alone", "slow"):
            with suppress(ModelNotReady):
                await read(await router.open(request(name, owner="laptop", endpoint="/v1/x")))
        answer = await router.open(request("endless"))
        for _ in range(4):
            await anext(answer)
        await answer.aclose()
        await answer.aclose()
        await router.route(request()).aclose()
    endings = [(record.requested, record.model, record.ending, record.status, record.is_slow) for record in records]
    assert endings == [
        ("main", "main", "stop", 200, False),
        ("broken", "main", "stop", 200, False),
        ("alone", "alone", "model_not_ready", 503, False),
        ("slow", "slow", "stop", 200, True),
        ("endless", "endless", "cancelled", 499, False),
        ("main", "main", "cancelled", 499, False),
    ]
    first, cancelled = records[0], records[4]
    assert (first.key, first.endpoint, first.prompt_tokens, first.cached_tokens) == ("laptop", "/v1/x", 3, 1)
    assert (first.ttft_ms, first.per_token_ms, first.total_ms) == pytest.approx((500.0, 100.0, 800.0))
    assert (first.limit_ttft_ms, first.limit_per_token_ms) == (1000.0, None)
    assert cancelled.per_token_ms == pytest.approx(500.0)
