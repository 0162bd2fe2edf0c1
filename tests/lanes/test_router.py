"""From names to lanes, and from a lane that refuses to its fallback."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.config import BreakerConfig, Config, Defaults, ScriptedModel, ServerConfig
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.errors import (
    BreakerOpen,
    DeadlineExceeded,
    EngineFailed,
    GatewayError,
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    QueueFull,
)
from gateway.generation import Event, Finished, Generation, Started, Text, TextDelta
from gateway.lanes.answer import RoutedAnswer
from gateway.lanes.lane import Lane
from gateway.lanes.router import Route, Router
from tests.support.server import script_of
from tests.support.virtual_time import in_virtual_time, now

BREAKER = BreakerConfig(min_calls=1, probe_itself=False)


def model(reply: str = "fine", fallback: str | None = None, **fields: Any) -> ScriptedModel:
    own = {name: fields.pop(name) for name in list(fields) if name in ScriptedModel.__struct_fields__}
    return ScriptedModel(fallback=fallback, script=script_of(replies=[reply], **fields), **own)


@asynccontextmanager
async def routing(
    models: dict[str, ScriptedModel], *, default_model: str | None = None, server: ServerConfig | None = None
) -> AsyncIterator[Router]:
    config = Config(models=models, default_model=default_model, server=server or ServerConfig(), breaker=BREAKER)
    lanes = {
        name: Lane(name, table, ScriptedEngine(name, table, clock=now), table.breaker or config.breaker, clock=now)
        for name, table in models.items()
    }
    router = Router(config, lanes, now)
    await router.start()
    await router.tried()
    try:
        yield router
        await asyncio.sleep(0)
        assert [(lane.running, lane.waiting) for lane in router.status()] == [(0, 0)] * len(models)
    finally:
        await router.aclose()


def request(name: str = "main", **fields: Any) -> Generation:
    return Generation(id="req-1", model=name, prompt=Text("one two three"), **fields)


async def read(answer: RoutedAnswer) -> list[Event]:
    try:
        return [event async for event in answer]
    finally:
        await answer.aclose()


async def answer_of(router: Router, generation: Generation) -> tuple[str, str]:
    """(the model that answered, what it said)"""
    answer = await router.open(generation)
    events = await read(answer)
    assert [isinstance(event, Started) for event in events] == [True] + [False] * (len(events) - 1)
    assert isinstance(events[-1], Finished)
    return answer.model, "".join(event.text for event in events if isinstance(event, TextDelta))


# --- names

NAMES = {"main": model(aliases=("gpt-4o-mini", "qwen2:7b")), "other": model(aliases=("other:background",))}


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("main", Route("main")),
        ("gpt-4o-mini", Route("main")),
        ("qwen2:7b", Route("main")),
        ("main:background", Route("main", background=True)),
        ("qwen2:7b:background", Route("main", background=True)),
        ("other:background", Route("other")),  # an alias that says so wins
    ],
)
@in_virtual_time
async def test_lookup_of_names_and_aliases(name: str, route: Route) -> None:
    async with routing(NAMES) as router:
        assert router.lookup(name) == route


@pytest.mark.parametrize("name", ["unknown", "MAIN", "main:", ":background", "x\n" * 100])
@in_virtual_time
async def test_unknown_name_is_refused_with_list_of_models(name: str) -> None:
    async with routing(NAMES) as router:
        with pytest.raises(ModelNotFound, match=r"does not exist; there is main, other\.$") as caught:
            await router.open(request(name))
        assert caught.value.param == "model"
        assert "\n" not in caught.value.message
        assert len(caught.value.message) < 200


@pytest.mark.parametrize("name", ["", None])
@in_virtual_time
async def test_missing_name_is_refused(name: str | None) -> None:
    async with routing(NAMES) as router:
        with pytest.raises(ModelNotFound, match="names no model"):
            router.lookup(name)


@in_virtual_time
async def test_default_model_answers_unknown_names() -> None:
    async with routing(NAMES, default_model="other") as router:
        assert router.lookup(None) == Route("other")
        assert router.lookup("gpt-5") == Route("other")
        assert router.lookup("gpt-5:background") == Route("other", background=True)
        assert router.lookup("main") == Route("main")
        assert await answer_of(router, request("gpt-5")) == ("other", "fine")


@in_virtual_time
async def test_model_defaults_override_common_defaults() -> None:
    async with routing({"main": model(max_tokens=7, aliases=("alias",))}) as router:
        assert router.defaults_for("alias") == Defaults(max_tokens=7)


@in_virtual_time
async def test_models_are_listed_with_status() -> None:
    async with routing({"main": model(aliases=("a",)), "broken": model(load_error="no such file")}) as router:
        infos = router.models()
        assert [(info.name, info.aliases, info.status.is_ready) for info in infos] == [
            ("main", ("a",), True),
            ("broken", (), False),
        ]
        assert router.model("a").name == "main"
        assert router.status()[1].engine.detail == "no such file"


@in_virtual_time
async def test_engine_without_tokenizer_has_no_text_tools() -> None:
    async with routing(NAMES) as router:
        with pytest.raises(InvalidRequest, match="tokenizer of main"):
            router.tools("gpt-4o-mini")


@in_virtual_time
async def test_background_suffix_makes_request_background() -> None:
    async with routing({"main": model(max_sequences=1, ttft_s=1.0)}) as router:
        order: list[str] = []

        async def ask(name: str) -> None:
            await answer_of(router, request(name))
            order.append(name)

        await asyncio.gather(*(ask(name) for name in ("main", "main:background", "main")))
        assert order == ["main", "main", "main:background"]


# --- fallback


def with_fallback(**first: Any) -> dict[str, ScriptedModel]:
    return {"main": model("main", fallback="second", **first), "second": model("second")}


@pytest.mark.parametrize("error", ["EngineFailed", "UpstreamFailed", "ModelNotReady", "GatewayError", "QueueFull"])
@pytest.mark.parametrize("after", [0, 1])
@in_virtual_time
async def test_failure_before_content_moves_to_fallback(error: str, after: int) -> None:
    # The scripted engine has already yielded Started when this happens: open() has returned.
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
    async with routing(with_fallback(faults=[{"error": error, "message": "as told"}])) as router:
        answer = await router.open(request())
        with pytest.raises(InvalidRequest, match="as told"):
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
        "second": model(fallback="third", load_error="no such file"),
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


# --- deadlines


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


@pytest.mark.parametrize("said_by", ["client", "configuration"])
@in_virtual_time
async def test_predicted_late_first_token_moves_to_fallback_at_once(said_by: str) -> None:
    by_client = said_by == "client"
    async with routing(with_fallback(ttft_s=0.9, ttft_timeout_s=None if by_client else 0.5)) as router:
        for _ in range(10):
            asked = request(ttft_timeout_s=0.5) if by_client else request()
            assert await answer_of(router, asked) == ("second", "second")
        assert now() == pytest.approx(0.5)  # only the first one had to find out


@pytest.mark.parametrize(("asked_s", "after_s"), [(None, 20.0), (100.0, 20.0), (5.0, 5.0)])
@in_virtual_time
async def test_deadline_is_shorter_of_client_and_server_limit(asked_s: float | None, after_s: float) -> None:
    async with routing(with_fallback(ttft_s=60.0), server=ServerConfig(timeout_s=20.0)) as router:
        with pytest.raises(DeadlineExceeded):
            await read(await router.open(request(timeout_s=asked_s)))
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


# --- leaving


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


# --- the log


async def lines_of(
    caplog: pytest.LogCaptureFixture, router: Router, *generations: Generation, leave: bool = False
) -> list[str]:
    caplog.set_level(logging.INFO, logger="gateway.lanes.answer")
    for generation in generations:
        try:
            answer = await router.open(generation)
            await (answer.aclose() if leave else read(answer))
        except GatewayError:
            pass
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
        figures = "prompt 3 = 1 cached + 2  queue 0 ms  first token 500 ms  4 tokens  10.0 tokens/s  stop"
        assert lines == [
            f"req-1  main  {figures}",
            f"req-1  alias -> main  {figures}",
            f"req-1  broken -> main (model_not_ready)  {figures}",
            "req-1  fails  prompt 3 = 0 cached + 3  queue 0 ms  engine_failed",
            f"req-1  main:background -> main  {figures}",
        ]


@in_virtual_time
async def test_cancelled_request_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with routing({"main": model()}) as router:
        assert await lines_of(caplog, router, request(), leave=True) == [
            "req-1  main  prompt 3 = 0 cached + 3  queue 0 ms  cancelled"
        ]


@in_virtual_time
async def test_prompt_is_logged_only_when_configured(caplog: pytest.LogCaptureFixture) -> None:
    async with routing({"main": model()}) as router:
        assert "one two three" not in "".join(await lines_of(caplog, router, request()))
    async with routing({"main": model()}, server=ServerConfig(log_prompts=True)) as router:
        assert "one two three" in "".join(await lines_of(caplog, router, request()))
